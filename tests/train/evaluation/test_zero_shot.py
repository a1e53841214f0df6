"""Zero-shot classification: prompts and folders, the two-stage attack against its formula, and the shipped CLIP."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip import zero_shot_metadata
from PIL import Image
from torch import Tensor

from rclip_metric.train.attacks.classifier import ClassifierAttackResult, attack_classes, margins
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, prompt_names, read_classes, read_prompts
from rclip_metric.train.data.scenes.draw import BACKGROUNDS, SHAPES, generator, render, sample_scene
from rclip_metric.train.evaluation.attack import DEFAULTS, RunSettings
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import result_name
from rclip_metric.train.evaluation.tasks.zero_shot import ZeroShot, ZeroShotAttack, ZeroShotData, evaluate_zero_shot
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric
from rclip_metric.train.metrics.registry import load_metric
from rclip_metric.train.models.text import TextModel, class_embeddings
from rclip_metric.train.models.text_weights import load_text
from rclip_metric.train.models.tokenizer import WordTokenizer
from rclip_metric.train.runs.seeds import seeded

PER_CLASS = 3


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: Any) -> Path:
    """Scenes sorted into folders by the colour of their ground, which the shipped CLIP tells well."""
    folder: Path = tmp_path_factory.mktemp("grounds")
    count = dict.fromkeys(BACKGROUNDS, 0)
    index = 0
    while min(count.values()) < PER_CLASS:
        scene = sample_scene(generator(99, "ground", index))
        index += 1
        if count[scene.ground_colour] < PER_CLASS:
            count[scene.ground_colour] += 1
            path = folder / scene.ground_colour / f"{index:03d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(render(scene)).save(path)
    return folder


@pytest.fixture(scope="module")
def metric() -> EncoderMetric:
    loaded = load_metric("tiny-clean")
    assert isinstance(loaded, EncoderMetric)
    return loaded


@pytest.fixture(scope="module")
def text() -> TextModel:
    return load_text("tiny-clean")


class TestPrompts:
    def test_imagenets_come_from_open_clip(self) -> None:
        prompts = read_prompts("imagenet")
        folders = [f"n{number:08d}" for number in range(1000)]
        assert prompts.words(folders) == tuple(zero_shot_metadata.IMAGENET_CLASSNAMES)
        made = [template.replace("{}", "tench") for template in prompts.templates]
        assert made == [template("tench") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES]
        assert len(made) == 80 and len(read_prompts("imagenet-simple").templates) == 7
        assert read_prompts("imagenet-tecoa").templates == ("This is a photo of a {}",)
        with pytest.raises(ValueError, match=r"'imagenet' name 1000 classes .* there are 999 folders: pass a set"):
            prompts.words(folders[1:])

    def test_without_words_a_class_is_called_like_its_folder(self) -> None:
        names = ["african_elephant", "hot-dog", "cat"]
        assert read_prompts("simple").words(names) == ("african elephant", "hot dog", "cat")

    @pytest.mark.parametrize(("name", "classes"), [("scenes", SHAPES), ("scenes-grounds", tuple(BACKGROUNDS))])
    def test_those_of_scenes_keep_to_their_words(self, name: str, classes: tuple[str, ...]) -> None:
        prompts = read_prompts(name)
        for word in prompts.words(classes):
            WordTokenizer()([template.replace("{}", word) for template in prompts.templates])

    def test_all_that_come_along_are_well_formed(self) -> None:
        assert {"imagenet", "scenes", "simple"} < set(prompt_names())
        assert all(read_prompts(name).name == name for name in prompt_names())

    def test_a_file_may_give_words_by_folder_name(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"templates": ["{}!"], "classes": {"b": "bee", "a": "ay", "c": "sea"}}))
        assert read_prompts(path).words(["a", "b"]) == ("ay", "bee")
        with pytest.raises(ValueError, match="'mine' have no words for the class folder 'd': add some"):
            read_prompts(path).words(["a", "d"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[", "is not JSON"),
            ("[]", "expected an object"),
            ('{"classes": []}', "field 'templates': is missing"),
            ('{"templates": ["{}"], "prompts": []}', "field 'prompts': is not known"),
            ('{"templates": "{}"}', "templates must be a list of texts with one {} each"),
            ('{"templates": ["a {} on a {}"]}', "templates must be a list of texts with one {} each"),
            ('{"templates": []}', "templates must be a list of texts"),
            ('{"templates": ["{}"], "classes": {"a": 1}}', "classes must be an object or a list of texts"),
        ],
    )
    def test_malformed_ones_are_refused(self, content: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(path)

    def test_unknown_ones_are_refused_with_the_names(self) -> None:
        with pytest.raises(
            ValueError, match=r"there are no prompts 'imagnet': pass one of imagenet, .* or a JSON file"
        ):
            read_prompts("imagnet")


class TestFolders:
    def test_classes_are_the_folders_in_sorted_order(self, tmp_path: Path) -> None:
        for name in ("b/2.png", "b/1.JPEG", "a/deep/er/3.png", "a/notes.txt", ".hidden/4.png", "stray.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        found = read_classes(tmp_path)
        assert found.names == ("a", "b")
        assert [(image.key, image.label) for image in found.images] == [
            ("a/deep/er/3.png", 0),
            ("b/1.JPEG", 1),
            ("b/2.png", 1),
        ]
        assert found.images[0].path == tmp_path / "a/deep/er/3.png"
        assert [image.key for image in read_classes(tmp_path, per_class=1).images] == ["a/deep/er/3.png", "b/1.JPEG"]
        with pytest.raises(ValueError, match="at least one image per class is needed, and 0 were asked for"):
            read_classes(tmp_path, per_class=0)

    def test_what_is_no_such_set_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"there is no folder .*: pass one that holds a folder per class"):
            read_classes(tmp_path / "absent")
        with pytest.raises(ValueError, match="holds no class folders: pass a folder with at least two"):
            read_classes(tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_bytes(b"")
        with pytest.raises(ValueError, match="holds 1 class folder: pass a folder with at least two"):
            read_classes(tmp_path)
        (tmp_path / "b").mkdir()
        with pytest.raises(ValueError, match=r"the class folder .*/b holds no images: add some or remove it"):
            read_classes(tmp_path)


def linear_problem(classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images away from the box, the weights of a linear classifier, its labels, and what a ball of 0.02 can reach.

    Over the ball, z_k - z_y rises by at most 0.02 ||w_k - w_y||_1: an image can be fooled where that lifts any class
    above its label.
    """
    weights = torch.randn(classes, 90, generator=seeded(3))
    images = 0.3 + 0.4 * torch.rand(40, 3, 6, 5, generator=seeded(4))
    logits = images.flatten(1) @ weights.T  # (40, K)
    label = logits.argmax(1)
    rise = 0.02 * (weights[None] - weights[label][:, None]).abs().sum(2)  # (40, K)
    return images, weights, label, margins(logits + rise, label) < 0


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


class TestAttack:
    ball = LpBall("linf", 0.02)

    def attack(self, classes: int, embed: Any = flat, **settings: Any) -> tuple[ClassifierAttackResult, Tensor]:
        images, weights, label, fooled = linear_problem(classes)
        settings = {"scale": 100.0, **settings}
        return attack_classes(embed, weights, images, label, self.ball, 20, list(range(40)), **settings), fooled

    @pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
    def test_together_the_stages_fool_exactly_what_can_be_fooled(self, scale: float) -> None:
        attacked, fooled = self.attack(6, scale=scale)
        assert [stage is not None for stage in attacked.stages] == fooled.tolist()
        assert 25 < fooled.sum() < 40
        if scale != 1.0:  # a softmax that is flat, or that saturates, misleads the cross-entropy
            assert attacked.stages.count("apgd-t") >= 5

    def test_the_second_stage_works_on_what_the_first_left(self) -> None:
        sizes: list[int] = []

        def embed(images: Tensor) -> Tensor:
            sizes.append(len(images))
            return flat(images)

        attacked, _ = self.attack(6, embed)
        left = int((~attacked.untargeted.success).sum())
        assert attacked.targeted is not None and len(attacked.left) == len(attacked.targeted.images) == left
        one = sizes.index(40, 1)  # the clean images, whose highest classes are the targets: after the first stage
        assert sum(sizes[:one]) == attacked.untargeted.evaluations
        assert sum(sizes[one + 1 :]) == attacked.targeted.evaluations and max(sizes[one + 1 :]) <= left

    def test_every_target_is_tried_and_none_twice(self) -> None:
        runs = {targets: self.attack(6, targets=targets)[0].targeted for targets in (1, 5, 99)}
        hopeless = 40 - int(linear_problem(6)[3].sum())
        for targets, run in runs.items():
            assert run is not None and run.evaluations >= hopeless * min(targets, 5) * 21  # 20 steps visit 21 points
        assert runs[5] is not None and runs[99] is not None and runs[5].evaluations == runs[99].evaluations

    def test_targets_go_by_the_clean_similarity(self) -> None:
        """The nearest class is out of reach, the second is within it; the cross-entropy sees the nearest alone."""
        noise = torch.randn(5, 90, generator=seeded(1))
        size = torch.tensor([0.0, 0.002, 1.0, 0.001, 0.001])[:, None]
        logits = torch.tensor([0.0, -0.05, -1.0, -5.0, -5.0])[:, None]
        weights = size * (noise - noise.mean(1, keepdim=True)) + logits / 45  # on an image of 0.5, these logits
        image = torch.full((1, 3, 6, 5), 0.5)
        rise = 0.02 * weights.abs().sum(1) + logits[:, 0]
        assert [bool(value > 0) for value in rise[1:]] == [False, True, False, False]
        label = torch.zeros(1, dtype=torch.long)
        for targets, stage in ((1, None), (2, "apgd-t")):
            attacked = attack_classes(flat, weights, image, label, self.ball, 20, [0], targets=targets)
            assert attacked.stages == [stage]

    def test_with_fewer_than_four_classes_the_first_stage_is_alone(self) -> None:
        attacked, fooled = self.attack(3, scale=1.0)
        assert attacked.targeted is None and attacked.stages.count("apgd-ce") > 10
        assert set(attacked.stages) == {"apgd-ce", None}
        assert all(can for can, stage in zip(fooled.tolist(), attacked.stages, strict=True) if stage)


KEYS = [f"image {index}" for index in range(40)]
BALL = LpBall("linf", 0.02)


class Linear(EmbeddingMetric):
    """The embedding is the pixels themselves, so that class embeddings are the weights of a linear model."""

    def fix(self, images: Tensor) -> Tensor:
        return self.function(images)

    embed = fix


def block(
    classes: Tensor, images: Tensor, label: Tensor, keys: Sequence[str] = KEYS, *,
    attacks: Sequence[ZeroShotAttack] = (ZeroShotAttack(BALL, 20, 5),), run: RunSettings = DEFAULTS, half: Any = None,
) -> Any:  # fmt: skip
    """One block of images that are tensors."""
    labelled = [LabelledImage(key, Path(key), int(own)) for key, own in zip(keys, label, strict=True)]
    names = tuple(map(str, range(len(classes))))
    data = ZeroShotData("set", LabelledFolders(names, tuple(labelled)), read_prompts("simple"), "test")
    tower = SimpleNamespace(logit_scale=torch.tensor(100.0).log())
    task = ZeroShot(data, TextModel(tower, WordTokenizer(), "none"), classes)  # type: ignore[arg-type]
    load = dict(zip((image.path for image in labelled), images, strict=True)).__getitem__
    shown = ImageSet([[image.path for image in labelled]], load, images.device, run)
    on = Evaluation(Linear(flat, 1, name="linear"), attacks, run, half=half and Linear(half, 1, name="half"))
    return task.judge(labelled, shown, on)


class TestBlock:
    def test_margins_ties_and_labels(self) -> None:
        classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the first and the last are the same
        images = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.7]]).view(3, 2, 1, 1)
        rows = block(classes, images, torch.tensor([0, 2, 1]), KEYS[:3], attacks=[])["rows"]
        assert [row["clean"] for row in rows] == [1.0, 0.0, 1.0]  # of equal classes, the first is the answer
        assert [row["tie"] for row in rows] == [True, True, False]
        assert [row["margin"] for row in rows] == pytest.approx([0.0, 0.0, 0.5])
        assert all(row["attacks"] == [] and row["split"] == "test" for row in rows)

    def test_the_robust_margin_is_that_of_the_worst_point(self) -> None:
        images, weights, label, fooled = linear_problem(6)
        label[:5] = (label[:5] + 1) % 6  # wrong from the start: not attacked
        found = block(weights, images, label)
        rows = found["rows"]
        assert [row["fooled_by"] for row in rows[:5]] == [["wrong"]] * 5
        assert all(row["attacks"] == [(0.0, row["margin"])] and row["margin"] < 0 for row in rows[:5])
        logits = images.flatten(1) @ weights.T
        rise = 0.02 * (weights[None] - weights[label][:, None]).abs().sum(2)
        lowest = margins(logits + rise, label)
        for row, can, bound in zip(rows[5:], fooled[5:].tolist(), lowest[5:].tolist(), strict=True):
            [(score, margin)] = row["attacks"]
            assert score == float(not can) and (margin <= 0) == can
            assert bound - 1e-3 <= margin <= row["margin"]
            if not can:
                assert margin == pytest.approx(bound, rel=0.02)
        clean, attack = found["costs"]
        assert clean["evaluations"] == 40 and attack["evaluations"] > 35 and attack["violation"] < 1e-7

    def test_several_attacks_share_the_clean_pass(self) -> None:
        images, weights, label, _ = linear_problem(6)
        balls = [LpBall("linf", eps) for eps in (0.0, 0.005, 0.02)]
        found = block(weights, images, label, attacks=[ZeroShotAttack(ball, 5, 2) for ball in balls])
        robust = torch.tensor([[score for score, _ in row["attacks"]] for row in found["rows"]]).sum(0)
        assert robust[0] == 40 > robust[1] > robust[2] > 0
        alone = block(weights, images, label, attacks=[ZeroShotAttack(balls[1], 5, 2)])
        assert [row["fooled_by"][1] for row in found["rows"]] == [row["fooled_by"][0] for row in alone["rows"]]

    def test_an_outcome_depends_neither_on_the_batch_nor_on_the_chunks(self) -> None:
        images, weights, label, _ = linear_problem(6)
        whole = block(weights, images, label)["rows"]
        parts = [slice(0, 7), slice(7, 40)]
        split = [row for part in parts for row in block(weights, images[part], label[part], KEYS[part])["rows"]]
        chunked = block(weights, images, label, run=RunSettings(chunk_size=3))["rows"]
        for rows in (split, chunked):
            assert [row["fooled_by"] for row in rows] == [row["fooled_by"] for row in whole]
            expected = [row["attacks"][0][1] for row in whole]
            assert [row["attacks"][0][1] for row in rows] == pytest.approx(expected, abs=1e-4)
        other = block(weights, images, label, run=RunSettings(seed=1))["rows"]
        assert [row["attacks"] for row in other] != [row["attacks"] for row in whole]

    def test_what_the_cheaper_encoder_finds_is_confirmed(self) -> None:
        images, weights, label, fooled = linear_problem(6)

        def mistaken(points: Tensor) -> Tensor:  # takes everything for class 0, wherever its gradients lead
            return flat(points) + 1000 * weights[0]

        found = block(weights, images, label, half=mistaken)
        for row, can in zip(found["rows"], fooled.tolist(), strict=True):
            [(score, margin)] = row["attacks"]
            assert score == 1.0 or (can and margin <= 0)
        assert sum(row["attacks"][0][0] for row in found["rows"]) < 40

    def test_what_cannot_be_classified_is_refused(self) -> None:
        images, label = torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
        with pytest.raises(ValueError, match="classification needs at least 2 classes, and there is 1"):
            block(torch.ones(1, 48), images, label, KEYS[:2])
        with pytest.raises(
            ValueError, match="have 48 numbers and the classes' 7: take the text tower of the same CLIP"
        ):
            block(torch.ones(2, 7), images, label, KEYS[:2])
        with pytest.raises(ValueError, match="must be at least 0, and they are 5 and -1"):
            ZeroShotAttack(BALL, 5, -1)


class TestEvaluation:
    attack = ZeroShotAttack(LpBall("linf", 2 / 255), steps=3, targets=2)

    def run(self, metric: Any, text: TextModel, folders: LabelledFolders, attacks: Any = (), **settings: Any) -> Any:
        data = ZeroShotData("grounds", folders, read_prompts("scenes-grounds"), "query")
        run = RunSettings(batch_size=10, precision=settings.pop("precision", "float32"))
        return evaluate_zero_shot(metric, text, data, attacks, run, quiet=True, **settings)

    def test_the_shipped_clip_tells_grounds_and_loses_some_under_attack(
        self, metric: EncoderMetric, text: TextModel, grounds: Path, tmp_path: Path
    ) -> None:
        folders = read_classes(grounds)
        [record] = self.run(metric, text, folders, [self.attack], journal=tmp_path)
        outcomes = unpack(record)
        assert [row.key for row in outcomes] == [image.key for image in folders.images]
        assert record["clean"]["accuracy"] >= 85  # 12.5 by chance
        assert record["robust"]["accuracy"] < record["clean"]["accuracy"] - 20
        assert all(row.robust is not None and row.robust <= row.clean for row in outcomes)
        letters = record["stages"]["samples"]
        assert [letter == "r" for letter in letters] == [row.robust == 1 for row in outcomes]
        assert [letter != "w" for letter in letters] == [row.clean == 1 for row in outcomes]
        for row in outcomes:
            assert row.robust_margin is not None and (row.margin >= 0) == (row.clean == 1)
            assert row.robust_margin <= row.margin and (row.robust_margin > 0) == (row.robust == 1)
        assert record["largest_violation"] < 1e-6
        threat, settings = record["threat"], record["settings"]
        assert (threat["attack"], threat["steps"], threat["targets"]) == ("apgd-ce+apgd-t", 3, 2)
        assert (settings["text"], settings["prompts"]) == (text.source, "scenes-grounds")
        assert settings["logit_scale"] == pytest.approx(text.scale, abs=1e-4)
        data, attacked = result_name(record).split("__")[1:]
        assert data == "grounds-query-scenes-grounds" and attacked.startswith("apgd-ce+apgd-t-linf-2_255-3steps")

        # The accuracy is that of CLIP's recipe on the same images, and the journal holds every block.
        images = torch.stack([metric.preprocess(image.path) for image in folders.images])
        templates = read_prompts("scenes-grounds").templates
        classes = class_embeddings(text, folders.names, templates, quiet=True)
        right = (metric.embed(images) @ classes.T).argmax(1) == torch.tensor([i.label for i in folders.images])
        assert [bool(row.clean) for row in outcomes] == right.tolist()
        blind = copy.copy(metric)
        blind.preprocess = None  # type: ignore[assignment, method-assign]
        [again] = self.run(blind, text, folders, [self.attack], journal=tmp_path)
        assert again["samples"] == record["samples"] and again["stages"] == record["stages"]

    def test_three_classes_have_a_warning_instead_of_targets(
        self, metric: EncoderMetric, text: TextModel, grounds: Path
    ) -> None:
        some = read_classes(grounds, per_class=1)
        three = LabelledFolders(some.names[:3], some.images[:3])
        untargeted = ZeroShotAttack(self.attack.ball, 3, targets=0)
        [record, asked] = self.run(metric, text, three, [self.attack, untargeted])
        assert record["threat"]["attack"] == asked["threat"]["attack"] == "apgd-ce"
        assert record["warnings"] == ["APGD-T was left out: its loss needs 4 classes, and there are 3."]
        assert asked["warnings"] == [] and record["samples"] == asked["samples"]
        assert "t" not in record["stages"]["samples"]

    def test_without_an_attack_only_clean_accuracy_is_there(
        self, metric: EncoderMetric, text: TextModel, grounds: Path
    ) -> None:
        [record] = self.run(metric, text, read_classes(grounds))
        assert record["robust"] is None and record["threat"]["attack"] == "none"
        assert record["clean"]["samples"] == 8 * PER_CLASS
        right = round(record["clean"]["accuracy"] * 8 * PER_CLASS / 100)
        assert sorted(record["stages"]["samples"]) == ["r"] * right + ["w"] * (8 * PER_CLASS - right)

    def test_bfloat16_attacks_are_confirmed_in_float32(
        self, metric: EncoderMetric, text: TextModel, grounds: Path
    ) -> None:
        attack = ZeroShotAttack(LpBall("linf", 4 / 255), steps=2, targets=1)
        [record] = self.run(metric, text, read_classes(grounds, per_class=1), [attack], precision="bfloat16")
        rows = unpack(record)
        assert any(row.clean and not row.robust for row in rows)
        assert all(row.robust_margin is not None and row.robust_margin <= 0 for row in rows if not row.robust)

    def test_an_unreadable_image_is_left_out_and_named(
        self, metric: EncoderMetric, text: TextModel, grounds: Path, tmp_path: Path
    ) -> None:
        folders = read_classes(grounds, per_class=1)
        for image in folders.images:
            (tmp_path / image.key).parent.mkdir()
            (tmp_path / image.key).write_bytes(image.path.read_bytes()[: 300 if image.label == 0 else None])
        [record] = self.run(metric, text, read_classes(tmp_path))
        assert record["clean"]["samples"] == 7
        [problem] = record["data"]["unreadable"]
        assert folders.images[0].key in problem
        for image in folders.images:
            (tmp_path / image.key).write_bytes(b"")
        with pytest.raises(ValueError, match="none of the 8 samples of grounds could be read"):
            self.run(metric, text, read_classes(tmp_path), [self.attack])

    def test_any_function_to_embeddings_can_be_classified(
        self, metric: EncoderMetric, text: TextModel, grounds: Path
    ) -> None:
        function = EmbeddingMetric(metric.metric.encoder, 64, name="tiny-clean as a function")
        folders = read_classes(grounds, per_class=1)
        [record], [expected] = (self.run(judged, text, folders) for judged in (function, metric))
        assert unpack(record) == unpack(expected)

    def test_a_metric_of_distances_is_refused(self, text: TextModel, grounds: Path) -> None:
        pairwise = DistanceMetric(lambda x, y: (x - y).flatten(1).norm(dim=1), 64, name="pixels")
        with pytest.raises(ValueError, match="pixels gives distances and no embeddings: zero-shot classification"):
            self.run(pairwise, text, read_classes(grounds))
