"""NaN, infinity and numbers past float32 come out as NaN, in value and gradient, and never as a decision."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rclip_metric import Encoder, RobustPerceptualDistance, score
from rclip_metric.distance import distance_between, normalize
from rclip_metric.encoder import Architecture, TimmArchitecture
from rclip_metric.errors import CheckpointError
from rclip_metric.metric import TwoAFC
from rclip_metric.retrieval import FileEmbeddings, Summary
from rclip_metric.torchmetric import RobustPerceptualDistanceMetric
from rclip_metric.train.attacks import LpBall, odd_one_out_choice
from rclip_metric.train.attacks.classifier import attack_classes, misclassified
from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, Prompts
from rclip_metric.train.data.things import Things
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.attack import DEFAULTS, AttackSettings, attack_block
from rclip_metric.train.evaluation.certificates.lipschitz import Certificate, certify
from rclip_metric.train.evaluation.run import evaluate
from rclip_metric.train.evaluation.tasks import OddOneOutData, SelfDistance, TwoAfcData, ZeroShot, ZeroShotData
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric
from rclip_metric.train.models.text import TextModel
from rclip_metric.train.models.text_weights import load_text

from support.encoders import CONVNEXT, VIT, small_encoder
from support.images import noise, save_noise

NAN, INF = math.nan, math.inf
LITE = TimmArchitecture(model="tf_efficientnet_lite0", image_size=32, features=1280, projection=16)
ARCHITECTURES: dict[str, Architecture] = {"convnext": CONVNEXT, "vit": VIT, "lite": LITE}
VALUES = (NAN, INF, -INF, 1e30, -1e30, 1e12)


def built(kind: str) -> Encoder:
    return small_encoder(ARCHITECTURES[kind], name=f"random-{kind}", spread=True)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return built(request.param)


def pairs(encoder: Encoder, larger: int = 0, values: Sequence[float] = VALUES) -> tuple[Tensor, Tensor]:
    """A good image, then for each value one with it in the middle and one of nothing else; and as many good ones."""
    side, count = encoder.image_size + larger, 1 + 2 * len(values)
    x, y = noise(count, 3, side, side, seed=1), noise(count, 3, side, side, seed=2)
    for place, value in enumerate(values):
        x[1 + 2 * place, 1, side // 2, side // 2], x[2 + 2 * place] = value, value
    return x, y


def is_no_choice(judged: TwoAFC) -> bool:
    """Whether all but the first of the triplets, which is a good one, are decided neither way."""
    return bool(judged.choice[0] >= 0 and (judged.choice[1:] == -1).all() and not judged.tie.any())


@pytest.mark.parametrize("larger", [0, 9], ids=["own size", "resized"])
def test_an_unchecked_bad_pixel_makes_every_number_of_its_image_nan(encoder: Encoder, larger: int) -> None:
    metric = RobustPerceptualDistance(encoder, check_range=False)
    x, y = pairs(encoder, larger)
    embedded = metric.embed(x)
    afcs = metric.two_afc(x, y, y.flip(0)), metric.two_afc(y, x, y.flip(0)), metric.two_afc(y, y.flip(0), x)
    found = {
        "distance": metric(x, y),
        "swapped": metric(y, x),
        "to itself": metric(x, x),
        "similarity": metric.similarity(x, y),
        "embed": embedded,
        "distance_to, image": metric.distance_to(metric.embed(y), x),
        "distance_to, embedding": metric.distance_to(embedded, y),
        "left": afcs[1].left_similarity,
        "right": afcs[2].right_similarity,
    }
    for name, numbers in found.items():
        assert numbers[0].isfinite().all() and numbers[1:].isnan().all(), name
    assert all(map(is_no_choice, afcs))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("larger", [0, 9], ids=["own size", "resized"])
def test_and_its_gradient_while_the_others_stay_finite(encoder: Encoder, larger: int, squared: bool) -> None:
    metric = RobustPerceptualDistance(encoder, check_range=False, squared=squared)
    x, y = pairs(encoder, larger, values=(NAN, 1e30))
    moved = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(metric(moved, y).sum(), moved)
    assert gradient[0].isfinite().all() and gradient[0].abs().max() > 0
    assert gradient[1:].isnan().all()
    same = x[:1].clone().requires_grad_()
    assert torch.autograd.grad(metric(same, x[:1]).sum(), same)[0].abs().max() == 0  # the guarantee at zero distance


def test_and_under_compile_where_nothing_is_checked() -> None:
    torch.compiler.reset()
    encoder = built("vit")
    metric = RobustPerceptualDistance(encoder)
    x, y = pairs(encoder)
    moved = x.clone().requires_grad_()
    judged = torch.compile(metric.two_afc, backend="aot_eager", fullgraph=True)(y, moved, y.flip(0))
    [gradient] = torch.autograd.grad(judged.left_similarity.sum(), moved)
    assert is_no_choice(judged) and judged.left_similarity.isnan().tolist() == [False] + 2 * len(VALUES) * [True]
    assert gradient[0].isfinite().all() and gradient[1:].isnan().all()
    torch.compiler.reset()


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0)])
def test_a_large_value_counts_in_the_range_that_was_named(value_range: tuple[float, float]) -> None:
    low, high = value_range
    metric = RobustPerceptualDistance(built("vit"), check_range=False, value_range=value_range)
    x, y = (noise(2, 3, 32, 32, seed=seed) * (high - low) + low for seed in (1, 2))
    x[1, 0, 0, 0] = 1e12
    assert metric(x, y).isnan().tolist() == [False, True]
    x[1, 0, 0, 0] = 3 * high  # outside, and computed with: this is what an unchecked range is for
    assert metric(x, y).isfinite().all()


def damaged(encoder: Encoder, name: str, value: float = NAN) -> Encoder:
    """The encoder with one value replaced: of a kernel the middle one, which is never laid on padding alone."""
    copied = copy.deepcopy(encoder)
    tensor = copied.state_dict()[name]
    tensor.view(len(tensor), -1)[0, tensor[0].numel() // 2] = value
    return copied


def test_a_nan_in_any_weight_makes_every_number_nan(encoder: Encoder) -> None:
    side = encoder.image_size
    x, y = noise(2, 3, side, side, seed=1), noise(2, 3, side, side, seed=2)
    names = [name for name, tensor in encoder.state_dict().items() if tensor.is_floating_point()]
    for name in names[:: len(names) // 6] + names[-1:]:
        metric = RobustPerceptualDistance(damaged(encoder, name))
        for found in (metric(x, y), metric(x, x), metric.similarity(x, y), metric.embed(x)):
            assert found.isnan().all(), name
        judged = metric.two_afc(x, y, x)  # right is the reference itself
        assert judged.choice.tolist() == [-1, -1] and not judged.tie.any(), name


def test_a_nan_weight_makes_the_gradient_nan(encoder: Encoder) -> None:
    side = encoder.image_size
    first = next(name for name, tensor in encoder.state_dict().items() if tensor.ndim == 4)
    for name in (first, "tower.projection.weight"):
        metric = RobustPerceptualDistance(damaged(encoder, name))
        x = noise(2, 3, side, side, seed=1).requires_grad_()
        [gradient] = torch.autograd.grad(metric(x, noise(2, 3, side, side, seed=2)).sum(), x)
        assert gradient.isnan().flatten(1).any(1).all(), name


BAD_ROWS = {"NaN": [NAN, 1.0], "all NaN": [NAN, NAN], "inf": [INF, 1.0], "1e30": [1e30, 1e30], "-1e30": [1.0, -1e30]}


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_the_head_makes_nan_of_what_float32_cannot_square(row: list[float], squared: bool) -> None:
    raw = torch.tensor([row, [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = normalize(raw)
    assert unit[0].isnan().all() and torch.equal(unit[1:].detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    for other in (torch.tensor([1.0, 0.0]), unit.detach().flip(1)):
        found = distance_between(normalize(raw), other, squared)
        [gradient] = torch.autograd.grad(found.sum(), raw)
        assert found.isnan().tolist() == [True, False, False]
        assert gradient[0].isnan().all() and gradient[1:].isfinite().all()


def test_scores_of_files_say_so(tmp_path: Path) -> None:
    files = [save_noise(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    broken = damaged(built("vit"), "tower.projection.weight")
    assert math.isnan(score(files[0], files[1], broken)) and math.isnan(score(files[0], files[0], broken))
    metric = RobustPerceptualDistance(broken)
    with (
        FileEmbeddings(metric, files, batch_size=2, on_skip=print) as embeddings,
        pytest.raises(CheckpointError, match="not finite"),
    ):
        embeddings[files[0]]
    with pytest.raises(ValueError, match=r"distance of a\.png and b\.png is NaN"):
        Summary().add(NAN, "a.png", "b.png")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_nan_stays_in_a_torchmetrics_mean(reduction: Any) -> None:
    encoder = built("vit")
    metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction, check_range=False)
    x, y = pairs(encoder, values=[1e30])
    metric.update(x[:1], y[:1])
    metric.update(x[1:], y[1:])
    metric.update(y[:1], y[:1])
    found = metric.compute()
    assert found.isnan().tolist() == ([False, True, True, False] if reduction == "none" else True)


# Decisions


def test_no_choice_is_made_of_a_nan() -> None:
    similarities = torch.tensor([[0.9, 0.1, 0.2], [NAN, 0.1, 0.2], [0.9, 0.1, NAN], [NAN, NAN, NAN]])
    assert odd_one_out_choice(similarities).tolist() == [2, -1, -1, -1]
    for label in range(3):
        assert not misclassified(similarities, torch.full((4,), label))[1:].any()


def test_a_nan_radius_proves_nothing() -> None:
    found = certify(torch.zeros(2, 3, 4, 4), torch.tensor([NAN, 1.0]), Certificate(LpBall("l2", 0.5)), 0.0)
    assert found.fooled.tolist() == [True, False]


def failing_at(bright: float) -> DistanceMetric:
    """Distances of pixels that are NaN as soon as one image is brighter than so much on average."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        found = (x - y).abs().mean((1, 2, 3))
        return torch.where(x.mean((1, 2, 3)) > bright, NAN, found)

    return DistanceMetric(distance, 8, name="fails where it is bright")


OPTIONS = torch.tensor([0.3, 0.9]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 8, 8)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("attack", ["apgd", "square", "noise"])
def test_no_attack_succeeds_by_a_nan(attack: Any, label: int) -> None:
    """The decision is for left everywhere in the ball, and NaN where the image is a little brighter."""
    images = torch.full((1, 3, 8, 8), 0.5)
    rule, settings = decision(torch.tensor([label])), AttackSettings(LpBall("linf", 0.05), attack, steps=8)
    found = attack_block(failing_at(0.52), images, lambda m: OPTIONS, rule, settings, DEFAULTS, ["one"])
    assert bool(found.fooled) == (label == 1) and found.margin.isfinite().all()
    with pytest.raises(ValueError, match=rf"margin under {attack} is NaN for one: the weights are damaged"):
        attack_block(failing_at(0.0), images, lambda m: OPTIONS, rule, settings, DEFAULTS, ["one"])


def test_nor_does_the_attack_on_a_classifier() -> None:
    def colour(images: Tensor) -> Tensor:
        return normalize(torch.where(images.mean((1, 2, 3)) > 0.3, NAN, 1.0)[:, None] * images.mean((2, 3)))

    images = torch.tensor([0.50, 0.10, 0.10]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    found = attack_classes(colour, torch.eye(3), images, torch.tensor([0]), LpBall("linf", 0.15), 10, seeds=[0])
    assert found.stages == [None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for level in (40, 80, 120, 200):
        Image.new("RGB", (64, 64), (level, level, level)).save(folder / f"{level}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def text() -> TextModel:
    return load_text("tiny-clean")


def tasks(files: list[Path], text: TextModel) -> dict[str, Any]:
    afc = TwoAfcData("mine", "test", [TripletFiles("1", files[0], files[1], files[2], share=0.0, split="test")])
    odd = OddOneOutData("mine", Things(tuple(files), torch.tensor([[0, 1, 3]]), torch.tensor([2])))
    images = tuple(LabelledImage(path.name, path, label=0) for path in files)
    folders, prompts = LabelledFolders(("red", "blue"), images), Prompts("mine", ("a photo of a {}",), None)
    return {
        "2afc": afc,
        "odd-one-out": odd,
        "zero-shot": ZeroShot(ZeroShotData("mine", folders, prompts), text),
        "direct": SelfDistance(afc, LpBall("linf", 4 / 255), images=2, steps=1),
    }


BROKEN: dict[str, Callable[[], Any]] = {
    "encoder": lambda: EncoderMetric(
        RobustPerceptualDistance(damaged(RobustPerceptualDistance("tiny-clean").encoder, "tower.projection.weight"))
    ),
    "embedding": lambda: EmbeddingMetric(lambda x: x.mean((2, 3)) * 1e30, 64, name="too long"),
    "distance": lambda: failing_at(0.0),
}


@pytest.mark.parametrize(
    ("task", "kind", "attacked"),
    [
        *product(["2afc", "odd-one-out"], BROKEN, [False, True]),
        *product(["zero-shot"], ["encoder"], [False]),
        *product(["direct"], ["encoder", "distance"], [False]),
    ],
)
def test_an_evaluation_of_a_metric_that_gives_nan_stops_and_says_where(
    task: str, kind: str, attacked: bool, files: list[Path], text: TextModel
) -> None:
    attacks = [AttackSettings(LpBall("linf", 4 / 255), steps=1)] if attacked else []
    with pytest.raises(ValueError, match=r"similarity is NaN for \S+: the weights are damaged|are not finite"):
        evaluate(BROKEN[kind](), tasks(files, text)[task], attacks, quiet=True)
