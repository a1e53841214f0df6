"""Retrieval: rankings against plain loops, optima that are formulas, records that do not depend on how they came."""

import json
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.cli.main import main
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.retrieval import LANDMARKS
from rclip_metric.train.evaluation import AttackSettings, RunSettings, Session, evaluate, load_results
from rclip_metric.train.evaluation.ranking import chance
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.retrieval_table import retrieval_table
from rclip_metric.train.evaluation.tasks import retrieval_data
from rclip_metric.train.metrics import BASELINES
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric
from rclip_metric.train.metrics.paper import _TABLE_IX, LANDMARK_SETS, reported_retrieval
from rclip_metric.train.runs.distributed import Team
from rclip_metric.weights import get_spec, model_names

from support.images import save_noise

SIDE = 8


class Float64(EmbeddingMetric):
    """Embeddings in float64: the rounding of a batch's size is nowhere near what a ranking tells apart."""

    def _call(self, *images):
        return self.function(*images)


def angle(images):
    """Unit vectors at an angle of the mean value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([mean.cos(), mean.sin()], 1)


def euclidean(x, y):
    return (x - y).flatten(1).norm(dim=1)


BRIGHTNESS = EmbeddingMetric(angle, SIDE, name="brightness")
PIXELS = DistanceMetric(euclidean, SIDE, name="l2")


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 12))
        tower = torch.nn.Sequential(*layers).requires_grad_(False).double()
    return Float64(lambda images: tower(4 * images.double() - 2), SIDE, name="network")


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory):
    """14 images and 7 queries in noise; one query has nothing easy, one nothing hard, one neither."""
    folder = tmp_path_factory.mktemp("roxford")
    rng = np.random.default_rng(0)
    truths = []
    for number in range(7):
        rows = rng.permutation(14).tolist()
        truths.append({"easy": rows[:2], "hard": rows[2:5], "junk": rows[5:7], "bbx": [1.2, 0.4, 9.0, 10.0]})
        save_noise(folder / "jpg" / f"q{number}.jpg", 100 + number, (12, 12))
    truths[1] |= {"easy": []}
    truths[2] |= {"hard": []}
    truths[3] |= {"easy": [], "hard": []}
    for number in range(14):
        save_noise(folder / "jpg" / f"image{number}.jpg", number, (12, 12))
    names = {"imlist": [f"image{n}" for n in range(14)], "qimlist": [f"q{n}" for n in range(7)]}
    arrays = [{key: np.array(rows) for key, rows in truth.items()} for truth in truths]
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**names, "gnd": arrays}, 2))
    return f"roxford5k:{folder}"


@pytest.fixture
def classes(tmp_path):
    """Five classes of four pictures each, alike within a class."""
    return f"classes:{write_classes(tmp_path / 'pets')}"


def write_classes(folder, sizes=(4, 4, 4, 4, 4), noise=40):
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        kind = rng.integers(60, 196, (SIDE, SIDE, 3))
        for image in range(size):
            path = folder / f"c{number}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = kind + rng.integers(-noise, noise + 1, kind.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def levels(folder, **values):
    """Gray pictures by name, at mean values in [0, 1] as near as 8 bits come."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        Image.new("RGB", (SIDE, SIDE), (round(255 * value),) * 3).save(folder / f"{name}.png")


def table(folder, *lines):
    (folder / "pairs.csv").write_text("\n".join(["query,image,kind", *lines]) + "\n")
    return f"pairs:{folder / 'pairs.csv'}"


def judged(metric, data, losses=("embedding",), eps=8 / 255, steps=10, attack="apgd", **settings):
    others = {key: settings.pop(key) for key in ("journal", "team") if key in settings}
    attacks = [AttackSettings(LpBall("linf", eps), attack, steps, loss=loss) for loss in losses]
    run = RunSettings(**{"batch_size": 3, "chunk_size": 4, **settings})
    return evaluate(metric, data, attacks, run, quiet=True, **others)


def plain(similarities, query, difficulty):
    """Average precision and precision at 1, 5 and 10 of one query, step by step."""
    positives = {"E": query.easy, "M": query.easy + query.hard, "H": query.hard}[difficulty]
    junk = set(query.easy + query.hard + query.junk) - set(positives)
    if not positives:
        return None, None
    order = sorted(range(len(similarities)), key=lambda row: (-similarities[row], row))
    hits = [row in positives for row in order if row not in junk]
    places = [place for place, hit in enumerate(hits) if hit]
    area = sum(((j / r if r else 1.0) + (j + 1) / (r + 1)) / 2 for j, r in enumerate(places)) / len(places)
    cuts = [min(k, places[-1] + 1) for k in (1, 5, 10)]
    return area, [sum(hits[:cut]) / cut for cut in cuts]


def similarity_of(metric, query, path):
    one, other = (metric.preprocess(image)[None] for image in (query.image(), path))
    if isinstance(metric, EmbeddingMetric):
        return float(torch.cosine_similarity(metric._call(one).double(), metric._call(other).double()))
    return -float(metric.function(one, other))


@pytest.mark.parametrize("kind", ["embeddings", "distances"])
def test_clean_numbers_are_their_definition(kind, network, landmarks):
    metric, data = (network if kind == "embeddings" else PIXELS), retrieval_data(landmarks)
    [record] = evaluate(metric, data, (), RunSettings(batch_size=2, chunk_size=3), quiet=True)
    found = record["retrieval"]
    assert found["difficulties"] == ["E", "M", "H"] and found["robust"] is None and record["robust"] is None
    assert [query.key for query in data.samples] == found["queries"] == ["q0", "q1", "q2", "q4", "q5", "q6"]
    for name in "EMH":
        expected = []
        for query in data.samples:
            similarities = [similarity_of(metric, query, path) for path in data.data.images]
            expected.append(plain(similarities, query, name))
        aps = [ap for ap, _ in expected]
        assert found["average_precision"]["clean"][name] == pytest.approx(aps, abs=1e-6)
        known = [ap for ap in aps if ap is not None]
        part = found["clean"][name]
        assert part["map"]["accuracy"] == pytest.approx(100 * np.mean(known), abs=1e-3)
        assert part["map"]["samples"] == len(known) == {"E": 5, "M": 6, "H": 5}[name]
        assert part["map"]["interval_95"][0] < part["map"]["accuracy"] < part["map"]["interval_95"][1]
        shares = np.mean([shares for _, shares in expected if shares], 0)
        assert [part["precision_at"][k]["accuracy"] for k in ("1", "5", "10")] == pytest.approx(100 * shares, abs=1e-3)
        sizes = {"E": (9, 2), "M": (12, 5), "H": (10, 3)}  # without junk, positives; q1 and q2 have fewer
        assert found["chance"][name] == pytest.approx(100 * chance(*sizes[name]), abs=12)
    assert record["clean"]["accuracy"] == found["clean"]["M"]["map"]["accuracy"]
    assert record["data"]["without_positives"] == ["q3"] and "1 queries were left out" in record["warnings"][0]


def test_chance_is_what_random_rankings_reach(classes):
    data = retrieval_data(classes)
    rng = np.random.default_rng(0)
    noise = EmbeddingMetric(lambda images: torch.tensor(rng.normal(size=(len(images), 3))), SIDE, name="noise")
    found = [evaluate(noise, data, (), RunSettings(batch_size=20), quiet=True)[0] for _ in range(30)]
    mean = np.mean([record["clean"]["accuracy"] for record in found])
    assert found[0]["retrieval"]["chance"] == {"M": round(100 * chance(19, 3), 4)}
    assert mean == pytest.approx(100 * chance(19, 3), abs=2.5)


def test_an_attack_reaches_the_formulas_optimum(tmp_path):
    """Angles are mean values: eps 0.1 takes a query as far as that, up or down, onto what does not belong to it."""
    levels(tmp_path, query=0.5, found=0.51, up=0.6, down=0.4, far=0.9)
    data = retrieval_data(table(tmp_path, "query.png,found.png,", ",up.png,other", ",down.png,other", ",far.png,other"))
    record, knowing = judged(BRIGHTNESS, data, ("embedding", "neighbours"), eps=0.1, steps=20)
    for one in (record, knowing):
        assert one["retrieval"]["average_precision"]["clean"]["M"] == [1.0]
        assert one["retrieval"]["average_precision"]["robust"]["M"] == [0.25]  # second: (0 + 1/2) / 2
        assert one["largest_violation"] <= np.spacing(np.float32(0.1)) and one["warnings"] == []
        [row] = unpack(one)
        # Beside the nearest other image: cos(0) - cos(what is left), to the 8 bits of a picture.
        assert row.robust_margin == pytest.approx(math.cos(0.1) - 1, abs=2e-3) and row.margin > 0
    assert record["threat"]["loss"] == "embedding" and knowing["threat"]["loss"] == "neighbours"


def test_who_knows_the_database_goes_where_it_hurts(tmp_path):
    """Only below is there anything to be taken for: an attack that does not know goes up as often as down."""
    levels(tmp_path, found=0.5, down=0.4, **{f"q{number}": 0.5 for number in range(8)})
    lines = [f"q{number}.png,found.png," for number in range(8)]
    data = retrieval_data(table(tmp_path, *lines, ",down.png,other"))
    blind, knowing = judged(BRIGHTNESS, data, ("embedding", "neighbours"), eps=0.1)
    assert blind["retrieval"]["average_precision"]["clean"]["M"] == [1.0] * 8
    assert set(blind["retrieval"]["average_precision"]["robust"]["M"]) == {1.0, 0.25}
    assert knowing["retrieval"]["average_precision"]["robust"]["M"] == [0.25] * 8
    assert "8 queries are in the database under another name" in blind["warnings"][0]  # they are the same file


def test_equal_similarities_come_in_the_order_of_rows(classes):
    same = EmbeddingMetric(lambda images: torch.ones(len(images), 3), SIDE, name="same")
    flat = DistanceMetric(lambda x, y: 0 * euclidean(x, y), SIDE, name="flat")
    data = retrieval_data(classes)
    for metric in (same, flat):
        [record] = evaluate(metric, data, (), quiet=True)
        expected = [plain([0.0] * 20, query, "M")[0] for query in data.samples]
        assert record["retrieval"]["average_precision"]["clean"]["M"] == pytest.approx(expected, abs=1e-6)
        assert record["clean"]["ties"] == 20


@pytest.mark.parametrize("loss", ["embedding", "neighbours"])
def test_blocks_chunks_and_order_change_nothing(loss, network, classes, landmarks):
    for place in (classes, landmarks):
        data = retrieval_data(place)
        [whole] = judged(network, data, (loss,), batch_size=64, chunk_size=64)
        assert whole["robust"]["accuracy"] < whole["clean"]["accuracy"]
        for size, chunk in ((1, 1), (2, 5), (7, 3)):
            [record] = judged(network, data, (loss,), batch_size=size, chunk_size=chunk)
            assert record["retrieval"] == whole["retrieval"]
    [other] = judged(network, data, (loss,), seed=1)
    assert [row.robust_margin for row in unpack(other)] != [row.robust_margin for row in unpack(whole)]


def test_other_attacks_and_metrics_without_embeddings(classes):
    data = retrieval_data(classes)
    [clean] = evaluate(PIXELS, data, (), quiet=True)
    found = {}
    for attack in ("apgd", "square", "noise"):
        [record] = judged(PIXELS, data, ("neighbours",), eps=0.2, steps=20, attack=attack)
        assert record["retrieval"]["clean"] == clean["retrieval"]["clean"]
        found[attack] = record["robust"]["accuracy"]
        assert record["largest_violation"] <= 1e-6
    assert found["apgd"] < found["noise"] <= clean["clean"]["accuracy"]
    assert found["apgd"] < clean["clean"]["accuracy"] - 20


def test_half_precision_attacks_are_judged_in_full(classes, network):
    data = retrieval_data(classes)
    [full] = judged(network, data, steps=5)
    [half] = judged(network, data, steps=5, precision="bfloat16")
    assert half["retrieval"]["clean"] == full["retrieval"]["clean"]
    assert half["robust"]["accuracy"] == pytest.approx(full["robust"]["accuracy"], abs=15)


def test_a_box_is_what_is_compared_and_attacked(tmp_path):
    """The query shows its positive in its box, and something else around it."""
    folder = tmp_path / "jpg"
    levels(folder, inside=0.2, outside=0.8)
    whole = Image.new("RGB", (3 * SIDE, SIDE), (204, 204, 204))
    whole.paste(Image.open(folder / "inside.png"), (SIDE, 0))
    whole.save(folder / "query.png")
    for path in folder.glob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    truth = {"easy": [0], "hard": [], "junk": []}
    for box, ap in (([SIDE + 0.3, -0.2, 2 * SIDE - 0.4, SIDE], 1.0), ([0, 0, SIDE, SIDE], 0.25), (None, 0.25)):
        record = {"imlist": ["inside", "outside"], "qimlist": ["query"], "gnd": [{**truth, "bbx": box}]}
        (tmp_path / "gnd_rparis6k.json").write_text(json.dumps(record))
        [found] = judged(BRIGHTNESS, retrieval_data(f"rparis6k:{tmp_path}"), eps=1e-4, steps=1)
        assert found["retrieval"]["average_precision"] == {"clean": {"M": [ap]}, "robust": {"M": [ap]}}


def test_what_cannot_be_read_is_left_out_and_named(tmp_path, network):
    folder = write_classes(tmp_path / "pets", (3, 3, 2))
    for broken in ("c0/1", "c2/0"):
        (folder / f"{broken}.png").write_bytes(b"none")
    data = retrieval_data(f"classes:{folder}")
    reference = retrieval_data(f"classes:{write_classes(tmp_path / 'again', (3, 3, 2))}")
    for metric in (network, PIXELS):
        for size in (1, 2, 9):
            [record] = judged(metric, data, batch_size=size, steps=2)
            keys = record["retrieval"]["queries"]
            assert keys == ["c0/0.png", "c1/0.png", "c1/1.png", "c0/2.png", "c1/2.png"]
            said = record["data"]["unreadable"]
            assert len(said) == 3 and "none can be read" in next(one for one in said if "c2/1.png" in one)
            assert len(record["data"]["unreadable_images"]) == 2
            assert any("2 of 8 images of the database could not be read" in one for one in record["warnings"])
            for key, ap in zip(keys, record["retrieval"]["average_precision"]["clean"]["M"], strict=True):
                query = next(one for one in reference.samples if one.key == key)
                similarities = [similarity_of(metric, query, path) for path in reference.data.images]
                gone = {reference.data.names.index(f"{name}.png") for name in ("c0/1", "c2/0")}
                left = type(query)(key, query.path, tuple(set(query.easy) - gone), (), (*query.junk, *gone))
                assert ap == pytest.approx(plain(similarities, left, "M")[0], abs=1e-6)
    for path in folder.glob("c?/*.png"):
        path.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"none of the 8 samples of pets could be read"):
        judged(network, data)


def test_k_may_be_larger_than_the_database(tmp_path, network):
    data = retrieval_data(f"classes:{write_classes(tmp_path, (2, 2), noise=5)}")
    [record] = evaluate(network, data, (), quiet=True)
    assert [record["retrieval"]["clean"]["M"]["precision_at"][k]["accuracy"] for k in ("1", "5", "10")] == [100] * 3


def test_a_query_that_is_in_the_database_is_told(tmp_path, network):
    for part, sizes in (("query", (2, 2)), ("database", (3, 3))):
        write_classes(tmp_path / part, sizes)
    [record] = evaluate(network, retrieval_data(f"classes:{tmp_path}"), (), quiet=True)
    assert record["warnings"][0].startswith("2 queries are in the database under another name")
    [itself] = evaluate(network, retrieval_data(f"classes:{tmp_path / 'query'}"), (), quiet=True)
    assert itself["warnings"] == []  # where it is itself it leaves the ranking


def test_numbers_that_are_none_are_refused_and_masking_is_told(classes):
    data = retrieval_data(classes)
    nan = EmbeddingMetric(lambda images: images.flatten(1) * torch.nan, SIDE, name="nan")
    with pytest.raises(ValueError, match="nan's embedding is NaN for"):
        evaluate(nan, data, (), quiet=True)
    far = DistanceMetric(lambda x, y: euclidean(x, y) * torch.nan, SIDE, name="far")
    with pytest.raises(ValueError, match=r"far's similarity is NaN for c0/0\.png"):
        evaluate(far, data, (), quiet=True)
    rounded = DistanceMetric(lambda x, y: euclidean((x * 8).round(), (y * 8).round()), SIDE, name="rounded")
    [record] = judged(rounded, data, eps=0.02)
    assert sum(record["masking"].values()) == 20
    assert any("20 of 20 samples met" in sentence for sentence in record["warnings"])


def test_an_infinite_similarity_is_a_large_margin(tmp_path):
    def ratio(x, y):
        return 10 * (x - y).square().mean((1, 2, 3)).log10()

    levels(tmp_path, one=0.5, two=0.5, three=0.7)
    psnr = DistanceMetric(ratio, SIDE, name="psnr")
    [record] = evaluate(psnr, retrieval_data(table(tmp_path, "one.png,two.png,", ",three.png,other")), (), quiet=True)
    assert record["clean"]["accuracy"] == 100 and unpack(record)[0].margin == 1e6


class Counted(EmbeddingMetric):
    """Counts the images it is shown, and stops the program at one of them."""

    def __init__(self, function, stop=None):
        super().__init__(function, SIDE, name="network")
        self.seen, self.stop = 0, stop

    def _call(self, *images):
        self.seen += len(images[0])
        if self.stop is not None and self.seen > self.stop:
            raise KeyboardInterrupt
        return self.function(*images)


def test_an_interrupted_run_goes_on(network, classes, tmp_path):
    data, attacks = retrieval_data(classes), [AttackSettings(LpBall("linf", 8 / 255), steps=4, loss="embedding")]
    run, session = RunSettings(batch_size=6, chunk_size=3), Session(tmp_path / "out", quiet=True)
    whole = Counted(network.function)
    [expected] = evaluate(whole, data, attacks, run, quiet=True)
    database, each = 20, (whole.seen - 20) / 20
    assert each == 1 + 1 + 5 + 1 + 1  # ranked, fixed, attacked, judged, ranked again
    for stop in (8, 15, 20 + 6 * 9 + 20):  # in the second block of the database, in its third, in the second of queries
        first = Counted(network.function, stop)
        with pytest.raises(KeyboardInterrupt):
            session.records(data, first, attacks, run)
        assert not list(session.out.glob("*.json")) and list(session.out.glob(".journal/*/*.jsonl"))
    again = Counted(network.function)
    [record] = session.records(data, again, attacks, run)
    assert again.seen == 14 * each and database == 20  # nothing of the database, nothing of the first block
    assert record["retrieval"] == expected["retrieval"] and record["passes"] == expected["passes"]
    assert load_results([session.out])[0] == record and not (session.out / ".journal").exists()
    unused = Counted(network.function, 0)
    assert session.records(data, unused, attacks, run) == [record]


def test_the_database_is_embedded_once(network, classes):
    counted = Counted(network.function)
    judged(counted, retrieval_data(classes), ("embedding", "neighbours"), steps=4)
    # Of a query: ranked; fixed, attacked at five points, judged, ranked again; the same without fixing.
    assert counted.seen == 20 + 20 * (1 + (1 + 5 + 1 + 1) + (5 + 1 + 1))


def test_two_processes_share_the_database(network, classes, tmp_path):
    class Half(Team):
        def gather(self, value):
            return [value]

    data = retrieval_data(classes)
    one = Counted(network.function)
    with pytest.raises(KeyError):  # of seven blocks the second process does three
        judged(one, data, journal=tmp_path, team=Half(1, 2))
    assert one.seen == 9
    alone, other = Counted(network.function), Counted(network.function)
    [expected] = judged(alone, data)
    [record] = judged(other, data, journal=tmp_path)
    assert record["retrieval"] == expected["retrieval"] and other.seen == alone.seen - 9


def test_torchrun_gives_the_numbers_of_one_process(classes, tmp_path, forks):
    words = ["-m", "rclip_metric", "eval", "retrieval", "--data", classes, "--model", "tiny-clean", "--steps", "3",
             "--batch-size", "4", "--device", "cpu", "--quiet", "--adaptive"]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert forks.run([*words[2:], "--out", tmp_path / "one"]) == 0, forks.errors
    command = [sys.executable, *torchrun, *words, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for printed in (forks.output, done.stdout):
        assert printed.count("| model | attack |") == 1  # one process prints
    found = {name: load_results([tmp_path / name]) for name in ("one", "two")}
    assert [record["processes"] for record in found["two"]] == [2, 2]
    for one, two in zip(found["one"], found["two"], strict=True):
        assert one["retrieval"] == two["retrieval"] and one["samples"] == two["samples"]
        assert one["passes"] == two["passes"]


def command(data, *words):
    return ["eval", "retrieval", "--data", data, "--quiet", "--device", "cpu", *words]


def test_the_command_prints_writes_and_finds_its_records(classes, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    words = command(classes, "--model", "tiny", "l2", "--steps", "2", "--limit", "5", *out)
    assert main(words) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("| model | attack | mAP | P@1 | P@5 | P@10 | mAP, attacked | P@1, attacked |")
    assert lines[2].startswith("| tiny @ sha256:") and " | linf 4/255, apgd 2 | " in lines[2]
    assert lines[-1].startswith("pets classes: 5 queries, 20 images in the database; mAP of a random order: ")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert names[-1] == "tiny__pets-classes-first5__apgd-linf-4_255-2steps.json"
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}
    assert main(words) == 0 and capsys.readouterr().out == printed.out
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names} == written
    assert retrieval_table(load_results([tmp_path / "out"])).count("\n| ") == 2
    lines = [line.split(" | ") for line in printed.out.splitlines() if line.startswith(("| tiny", "| l2"))]
    assert main(["eval", "table", str(tmp_path / "out")]) == 0  # in the order of the files
    shown = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" | ") for line in shown if line.startswith(("| tiny", "| l2"))) == sorted(lines)
    assert main(["eval", "table", str(tmp_path / "out"), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("pets") == 2
    assert main([*words, "--seed", "1", "--attack", "none"]) == 0
    assert "attacked" not in capsys.readouterr().out
    assert main(command(classes, "--check")) == 0 and "all 20 images can be read" in capsys.readouterr().out
    assert main(command(classes, "--preset", "paper")) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == "embedding"


def test_the_command_names_what_was_left_out_and_keeps_the_rest(tmp_path, capsys):
    folder = write_classes(tmp_path / "pets", (3, 1, 2))
    words = command(f"classes:{folder}", "--model", "l2", "--attack", "none", "--out", str(tmp_path / "out"))
    for times in (1, 2):
        assert main(words) == 2
        printed = capsys.readouterr()
        assert "| l2" in printed.out and len(list((tmp_path / "out").glob("*.json"))) == 1, times
        assert "1 queries were left out, to which nothing belongs; the first: c1/0.png" in printed.err
    (folder / "c0" / "0.png").write_bytes(b"none")
    assert main([*words, "--overwrite"]) == 2
    assert "2 images could not be read and were left out; the first: query c0/0.png" in capsys.readouterr().err
    assert main(command(f"classes:{folder}", "--check")) == 2
    assert "1 of 6 images cannot be read" in capsys.readouterr().err
    for data, said in (
        (f"classes:{folder}/c0", "holds no class folders"),
        (f"{folder}", "data must be roxford5k:PLACE"),
        (f"roxford5k:{folder}", "has no gnd_roxford5k.pkl"),
    ):
        assert main(command(data, "--model", "tiny")) == 2
        assert said in capsys.readouterr().err
    assert main(command(f"classes:{folder}", "--model", "tiny", "--published")) == 2
    assert "the paper has no numbers for such a set" in capsys.readouterr().err


def test_a_ground_truth_is_converted_by_command(landmarks, tmp_path, capsys):
    source = landmarks.partition(":")[2] + "/gnd_roxford5k.pkl"
    assert main(["train", "landmarks", source, "--out", str(tmp_path / "gnd.json")]) == 0
    assert "14 images, 7 queries" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "gnd.json").read_text())["gnd"]) == 7

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps(Payload()))
    assert main(["train", "landmarks", str(evil), "--out", str(tmp_path / "evil.json")]) == 2
    told = capsys.readouterr().err
    assert "wants to import" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "evil.json").exists()
    for source, said in (("nowhere.pkl", "cannot be read: No such file"), (str(tmp_path), "is no file with JSON")):
        assert main(["train", "landmarks", source, "--out", str(tmp_path / "x.json")]) == 2
        assert said in capsys.readouterr().err


def test_the_papers_numbers_stand_beside_the_published_sets_alone(landmarks):
    with pytest.raises(ValueError, match="has 14 images, and the published set roxford5k has 4,993"):
        retrieval_data(landmarks, published=True)
    assert retrieval_data(landmarks).published is None
    threat = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100, "restarts": 1, "loss": "embedding"}
    spec = get_spec("r-clip-f")
    model = {"name": "r-clip-f", "revision": spec.revision, "resize": "published"}
    record = {"model": model, "data": {"published": "roxford5k", "unreadable": []}, "threat": threat, "settings": {}}
    assert reported_retrieval(record) == {"medium": 42.2, "hard": 13.0, "medium_linf": 33.4, "hard_linf": 10.1}
    for change in (
        {"data": {"published": None, "unreadable": []}},
        {"data": {"published": "roxford5k", "unreadable": ["one"]}},
        {"settings": {"limit": 5}},
        {"model": {**model, "revision": "another"}},
        {"model": {**model, "resize": "squash"}},
    ):
        assert reported_retrieval({**record, **change}) == {}
    for change in ({"eps": 2 / 255}, {"steps": 50}, {"loss": "neighbours"}, {"attack": "square"}):
        assert reported_retrieval({**record, "threat": {**threat, **change}}) == {"medium": 42.2, "hard": 13.0}
    assert set(LANDMARKS) == set(LANDMARK_SETS)


def test_table_ix_is_of_known_metrics_and_orders_as_it_must():
    assert set(_TABLE_IX) <= {*BASELINES, *model_names()} and "r-clip-f" not in _TABLE_IX
    for rows in _TABLE_IX.values():
        for medium, hard, medium_linf, hard_linf in rows:
            assert 0 < hard_linf <= hard < 100 and hard_linf < medium_linf < 100
            assert medium is None or (hard < medium and medium_linf <= medium)
