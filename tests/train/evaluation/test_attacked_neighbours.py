"""Nearest neighbours, clean and attacked: against brute force, and in pictures."""

import json
import math
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import ImageIndex, RobustPerceptualDistance
from rclip_metric.cli.main import main
from rclip_metric.errors import ImageIndexError
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.images import NamedImage
from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.neighbour_pictures import Pictures, write_figure, write_page
from rclip_metric.train.evaluation.run import evaluate
from rclip_metric.train.evaluation.searched import Folder, Indexed
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.evaluation.tasks.neighbours import Neighbours, choose_queries, overlap_at_k
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric
from rclip_metric.train.runs.seeds import sample_seed

SIDE, K, STEPS = 16, 4, 6
BALL = LpBall("linf", 16 / 255)
WEIGHTS = torch.randn(3 * SIDE**2, 8, generator=torch.Generator().manual_seed(0)) / 16


def embed(images):
    """Eight numbers that are easily moved."""
    return torch.sin(4 * images.flatten(1) @ WEIGHTS)


def euclidean(x, y):
    return (x - y).flatten(1).norm(dim=1)


def projection(function=embed):
    return EmbeddingMetric(function, SIDE, name="projection")


PIXELS = DistanceMetric(euclidean, SIDE, name="l2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images in two folders; of the first, a copy of other bytes and the same pixels."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(30):
        path = root / ("even" if index % 2 == 0 else "odd") / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(60, 196, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    Image.open(root / "even" / "00.png").save(root / "odd" / "copy.bmp")
    return root


def queries_of(folder):
    """One of the database, of which there is a copy, and one that is not in it."""
    other = folder.parent / f"{folder.name}-query.png"
    if not other.exists():
        pixels = np.random.default_rng(9).integers(60, 196, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(other)
    return [NamedImage("even/00.png", folder / "even" / "00.png"), NamedImage("new.png", other)]


def task_of(folder, **other):
    return Neighbours(queries_of(folder), Folder(folder), **{"ball": BALL, "k": K, "steps": STEPS} | other)


def names(row, when):
    return [found["image"] for found in row[when]]


def attacked_images(metric, task, run):
    """Attack as eq. 6 has it, here: each query alone, on the similarity to itself."""
    points = []
    for query in task.queries:
        clean = metric.preprocess(query.path)[None]
        kept = metric.fix(clean)[:, None]
        loss = lambda x, i, kept=kept: -metric.similarities(x, kept[i])[:, 0]  # noqa: E731
        points.append(apgd(loss, clean, task.ball, task.steps, seeds=[sample_seed(run.seed, query.key)]).images)
    return torch.cat(points)


def brute_force(similarity, point, database, left_out):
    """All similarities by numpy, sorted."""
    values = [(similarity(point, image), name) for name, image in database.items() if name not in left_out]
    return [name for _, name in sorted(values, key=lambda pair: -pair[0])]


def by_numpy(metric):
    weights = WEIGHTS.double().numpy()

    def unit(image):
        vector = np.sin(4 * image.double().numpy().reshape(-1) @ weights)
        return vector / np.linalg.norm(vector)

    if metric is PIXELS:
        return lambda x, y: -np.linalg.norm((x - y).double().numpy())
    return lambda x, y: float(unit(x) @ unit(y))


@pytest.mark.parametrize("metric", [projection(), PIXELS], ids=["embeddings", "distances"])
def test_neighbours_are_those_of_brute_force_clean_and_attacked(folder, metric):
    task, run = task_of(folder), RunSettings(batch_size=7, chunk_size=5)
    [record] = evaluate(metric, task, run=run, quiet=True)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.*"))}
    database = {name: metric.preprocess(path) for name, path in files.items()}
    similarity, moved = by_numpy(metric), attacked_images(metric, task, run)
    assert len(database) == record["data"]["database"]["images"] == 31
    for row, query, point in zip(record["neighbours"], task.queries, moved, strict=True):
        own = ["even/00.png", "odd/copy.bmp"] if query.key == "even/00.png" else []
        assert row["query"] == query.key and row["left_out"] == own
        clean = metric.preprocess(query.path)
        assert names(row, "clean") == brute_force(similarity, clean, database, own)[:K]
        assert names(row, "attacked") == brute_force(similarity, point, database, own)[:K]
        expected = [similarity(point, database[name]) for name in names(row, "attacked")]
        assert [found["similarity"] for found in row["attacked"]] == pytest.approx(expected, abs=5e-6)
        assert row["similarity_to_itself"] == pytest.approx(similarity(point, clean), abs=5e-6)
        assert row["overlap"] == len(set(names(row, "clean")) & set(names(row, "attacked"))) / K
    mean = np.mean([row["overlap"] for row in record["neighbours"]])
    assert record["overlap"]["mean"] == pytest.approx(100 * mean)
    assert record["threat"] | {"eps": 0} == {
        "attack": "apgd", "norm": "linf", "eps": 0, "eps_text": "16/255", "steps": STEPS, "restarts": 1,
        "loss": "dissimilarity",
    }  # fmt: skip
    assert 0 <= record["largest_violation"] < 1e-7 and not record["warnings"]
    assert str(folder) not in json.dumps(record)


def test_the_attack_of_a_fragile_metric_changes_its_neighbours_and_none_leaves_all(folder):
    [attacked] = evaluate(projection(), task_of(folder), quiet=True)
    assert attacked["overlap"]["mean"] < 60
    [still] = evaluate(projection(), task_of(folder, ball=LpBall("linf", 1e-6)), quiet=True)
    assert still["overlap"] == {"k": K, "mean": 100.0, "interval_95": [100.0, 100.0], "queries": 2}


@pytest.mark.parametrize(
    ("clean", "attacked", "k", "share"),
    [("abcde", "abcde", 5, 1.0), ("abcde", "edcba", 5, 1.0), ("abcd", "axyz", 4, 0.25), ("a", "b", 1, 0.0)],
)
def test_overlap(clean, attacked, k, share):
    assert overlap_at_k(set(clean), set(attacked), k) == share


def test_a_link_to_the_query_is_the_query(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    link = tmp_path / "another-name.png"
    link.symlink_to(tmp_path / "images" / "odd" / "01.png")
    task = Neighbours([NamedImage("linked", link)], Folder(tmp_path / "images"), BALL, K, STEPS)
    assert task.database.holds(link)
    [record] = evaluate(projection(), task, quiet=True)
    assert record["neighbours"][0]["left_out"] == ["odd/01.png"]


def test_sizes_of_blocks_are_no_matter_and_the_seed_is(folder):
    found = [
        evaluate(projection(), task_of(folder), run=RunSettings(**run), quiet=True)[0]["neighbours"]
        for run in ({}, {"batch_size": 1, "chunk_size": 1}, {"seed": 1})
    ]
    assert [names(row, "attacked") for row in found[0]] == [names(row, "attacked") for row in found[1]]
    assert [row["similarity_to_itself"] for row in found[0]] != [row["similarity_to_itself"] for row in found[2]]


def test_an_interrupted_run_goes_on_in_the_middle_of_the_database(folder, tmp_path):
    task, run, seen = task_of(folder), RunSettings(batch_size=5, chunk_size=5), []
    path = tmp_path / "one.json"

    class Stops(Exception):
        pass

    def counted(limit):
        def function(images):
            if not images.requires_grad:
                seen.append(len(images))
                if len(seen) > limit:
                    raise Stops
            return embed(images)

        return projection(function)

    whole = Session(quiet=True).single(tmp_path / "whole.json", task, counted(math.inf), run)
    calls = len(seen)
    seen.clear()
    with pytest.raises(Stops):
        Session(quiet=True).single(path, task, counted(calls - 3), run)
    assert not path.exists() and list((tmp_path / ".journal").rglob("*.jsonl"))
    seen.clear()
    record = Session(quiet=True).single(path, task, counted(math.inf), run)
    assert record["neighbours"] == whole["neighbours"] and record["overlap"] == whole["overlap"]
    assert len(seen) == 1 + 3  # the points once more, and the three blocks that were not there
    assert not (tmp_path / ".journal").exists()
    seen.clear()
    assert Session(quiet=True).single(path, task, counted(math.inf), run) == record and not seen


def test_another_image_in_the_database_makes_another_result(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    task = Neighbours(queries_of(folder), Folder(tmp_path / "images"), BALL, K, STEPS)
    path = tmp_path / "one.json"
    Session(quiet=True).single(path, task, PIXELS, RunSettings())
    shutil.copy(tmp_path / "images" / "odd" / "03.png", tmp_path / "images" / "odd" / "01.png")
    with pytest.raises(ValueError, match="holds a result of other data or settings"):
        Session(quiet=True).single(path, task, PIXELS, RunSettings())


def test_images_that_cannot_be_read_are_named_and_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "odd" / "03.png").write_bytes(b"no image")
    broken = NamedImage("broken.png", tmp_path / "broken.png")
    broken.path.write_bytes(b"neither")
    task = Neighbours([*queries_of(folder), broken], Folder(tmp_path / "images"), BALL, K, STEPS)
    [record] = evaluate(projection(), task, run=RunSettings(batch_size=1), quiet=True)
    assert [row["query"] for row in record["neighbours"]] == ["even/00.png", "new.png"]
    [lost], [query] = record["data"]["database"]["unreadable"], record["data"]["unreadable"]
    assert "odd/03.png" in lost and "broken.png" in query
    assert [sentence.split(" could")[0] for sentence in record["warnings"]] == ["1 of 3 queries", "1 of 31 images"]
    alone = Neighbours([broken], Folder(tmp_path / "images"), BALL, K, STEPS)
    with pytest.raises(ValueError, match="none of the 1 queries could be read"):
        evaluate(projection(), alone, quiet=True)


def test_an_index_gives_the_neighbours_of_its_folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(12):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "photos" / f"{index:02d}.png")
    for number in range(9):  # more copies of the query than an index is asked for beyond k
        Image.open(tmp_path / "photos" / "00.png").save(tmp_path / "photos" / f"copy{number}.bmp")
    tiny = RobustPerceptualDistance("tiny")
    ImageIndex.build(tmp_path / "photos", tiny, path=tmp_path / "photos.index")
    metric, queries = EncoderMetric(tiny), choose_queries([tmp_path / "photos" / f"0{n}.png" for n in range(2)])
    databases = [Folder(tmp_path / "photos"), Indexed(tmp_path / "photos.index", metric)]
    found = [evaluate(metric, Neighbours(queries, one, BALL, 3, STEPS), quiet=True)[0] for one in databases]
    assert [record["data"]["name"] for record in found] == ["photos", "photos.index"]
    for one, other in zip(*(record["neighbours"] for record in found), strict=True):
        assert sorted(one.pop("left_out")) == sorted(other.pop("left_out"))
        for when in ("clean", "attacked"):
            assert names(one, when) == names(other, when)
            values = [[hit["similarity"] for hit in row.pop(when)] for row in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=5e-6)
        assert one == other
    assert len(found[0]["neighbours"]) == 2 and databases[1].picture("00.png") == tmp_path / "photos" / "00.png"
    with pytest.raises(ImageIndexError, match="tiny-clean"):
        Indexed(tmp_path / "photos.index", EncoderMetric(RobustPerceptualDistance("tiny-clean")))
    with pytest.raises(ImageIndexError, match=r"holds embeddings of tiny@.*, and this is l2@"):
        Indexed(tmp_path / "photos.index", PIXELS)


def test_what_does_not_fit_is_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"k is 31, and .* has 30 images beside the query: ask for fewer"):
        task_of(folder, k=31)
    with pytest.raises(ValueError, match=r"k is 30, and .* has 29 images that can be read beside even/00.png"):
        evaluate(PIXELS, task_of(folder, k=30), quiet=True)  # one more is the query's copy
    with pytest.raises(ValueError, match="k of at least 1"):
        task_of(folder, k=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there are no images in"):
        Folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"there are no images in .*: pass a folder of queries"):
        choose_queries([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"there is no .*nowhere\.png"):
        choose_queries([tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match=r"40 queries of .* were asked for, and there are 31"):
        choose_queries([folder], count=40)
    with pytest.raises(ValueError, match="one folder or files"):
        choose_queries([folder, folder / "even" / "00.png"])
    other = DistanceMetric(lambda x, y: -torch.log(euclidean(x, y) * 0), SIDE, name="log")
    with pytest.raises(ValueError, match="log's similarity"):
        evaluate(other, task_of(folder), quiet=True)


def test_queries_are_drawn_by_seed(folder):
    drawn = [[query.key for query in choose_queries([folder], 5, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 5
    assert len(choose_queries([folder])) == 4
    files = [folder / "even" / "00.png", folder / "odd" / "01.png", folder / "even" / "00.png"]
    assert [query.key for query in choose_queries(files)] == [file.as_posix() for file in files[:1]] + ["01.png"]
    part = Folder.at(folder, 7, seed=3)
    assert len(part) == 7 and part.name == f"{folder.name}-7" and part.names != Folder.at(folder, 7, seed=4).names


@pytest.fixture(scope="module")
def records(folder):
    return [evaluate(metric, task_of(folder), quiet=True)[0] for metric in (projection(), PIXELS)]


def pictures(folder):
    return Pictures({query.key: query.path for query in queries_of(folder)}.__getitem__, Folder(folder).picture)


def test_the_figure_shows_every_picture_and_is_the_same_every_time(folder, records, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("one.png", "two.png"):
        write_figure(records, pictures(folder), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    shown = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    assert shown.shape[1] > 1000 and shown.std() > 20
    from rclip_metric.train.evaluation.results.neighbour_pictures import figure

    drawn = figure(records, pictures(folder))
    assert sum(len(axes.images) for axes in drawn.axes) == len(drawn.axes) == 2 * (1 + 2 * 2 * K)
    words = [text.get_text() for text in drawn.texts]
    stay = [f"{record['overlap']['mean']:.0f} % stay" for record in records]
    assert words[:5] == ["Query", "projection", stay[0], "l2", stay[1]]
    assert words.count("Clean") == words.count("Adv.") == 2
    boxes = [text.get_window_extent() for text in drawn.texts]
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.x1 and box.y0 >= 0 for box in boxes)
    framed = sum(axes.spines["top"].get_linewidth() > 1 for axes in drawn.axes)
    assert framed == K * sum(row["overlap"] for record in records for row in record["neighbours"])
    with pytest.raises(ValueError, match="different queries"):
        write_figure([records[0], {**records[1], "neighbours": []}], pictures(folder), tmp_path / "no.png")


def test_the_page_holds_every_query_and_loads_nothing(folder, records, tmp_path):
    page = tmp_path / "neighbours.html"
    lost = Pictures(pictures(folder).query, lambda name: None if name == names(records[1]["neighbours"][0], "clean")[0]
                    else folder / name)  # fmt: skip
    write_page(records, lost, page)
    text = page.read_text(encoding="utf-8")
    assert all(f">{query.key}</h2>" in text and f'alt="query {query.key}"' in text for query in queries_of(folder))
    for record in records:
        assert f"{record['model']['name']} <small>" in text
        assert all(name in text for row in record["neighbours"] for name in names(row, "attacked"))
    tags = re.findall(r"<img [^>]*>", text)
    assert tags and all('src="data:image/jpeg;base64,' in tag and 'alt="' in tag for tag in tags)
    assert text.count("not there") >= 1 and len(tags) < 2 * (1 + 2 * 2 * K)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|https?://|url\(|@import", text)
    assert "light-dark(" in text and 'class="theme"' in text
    assert "16/255, APGD, 6 iterations" in text and str(folder) not in text


def test_names_are_written_out_and_not_taken_for_markup(folder, records, tmp_path):
    evil = json.loads(json.dumps(records).replace("even/02.png", "<b>$x$<script>.png").replace("projection", "<i>$y"))
    write_page(evil, Pictures(pictures(folder).query, lambda name: None), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<i>$y" not in text and "&lt;i&gt;$y" in text and "<script>.png" not in text
    write_figure(evil, Pictures(pictures(folder).query, lambda name: None), tmp_path / "figure.png")


def command(folder, out, *more):
    words = ["eval", "neighbours", "--database", folder, "--queries", folder, "--count", 2, "--model", "tiny", "l2"]
    words += ["-k", 2, "--steps", 2, "--device", "cpu", "--quiet", "--out", out, *more]
    return main([str(word) for word in words])


def test_the_command_writes_results_figure_and_page_and_finds_them_again(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert command(folder, out) == 0
    printed = capsys.readouterr().out
    assert "| tiny | " in printed and "| l2 | " in printed and "overlap, %" in printed
    stem = f"{folder.name}-2-neighbours__apgd-linf-4_255-2steps.json"
    results = [f"l2__{stem}", f"tiny__{stem}"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*results, "neighbours.html", "neighbours.png"])
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert command(folder, out) == 0
    assert all((out / name).stat().st_mtime_ns == before[name][0] for name in results)
    assert all((out / name).read_bytes() == before[name][1] for name in ("neighbours.html", "neighbours.png"))
    assert command(folder, out, "--seed", 1) == 2
    assert "holds a result of other data or settings" in capsys.readouterr().err


def test_the_command_names_what_is_wrong_and_keeps_what_is_done(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    queries = tmp_path / "queries"
    queries.mkdir()
    shutil.copy(folder / "odd" / "01.png", queries / "good.png")
    (queries / "bad.png").write_bytes(b"no image")
    assert command(folder, tmp_path / "out", "--queries", queries) == 2
    told = capsys.readouterr().err
    assert "1 queries could not be read and were left out; the first: query bad.png" in told and "Traceback" not in told
    assert 'alt="query good.png"' in (tmp_path / "out" / "neighbours.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "neighbours.png").exists()

    for words, sentence in (
        (["-k", 99], "k is 99, and "),
        (["--count", 99], "99 queries of "),
        (["--sample", 99], "99 images of "),
        (["--database", tmp_path / "nowhere"], "nowhere"),
    ):
        assert command(folder, tmp_path / "none", *words) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and not (tmp_path / "none").exists()
    assert main(["eval", "neighbours", "--model", "tiny"]) == 2
    assert "eval neighbours needs --database" in capsys.readouterr().err

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command(folder, tmp_path / "none") == 2
    assert 'pip install "rclip-metric[plot]"' in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_index_is_for_the_model_that_made_it(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    ImageIndex.build(tmp_path / "photos", RobustPerceptualDistance("tiny"), path=tmp_path / "index")
    words = ["eval", "neighbours", "--database", tmp_path / "index", "--queries", tmp_path / "photos" / "0.png"]
    words += ["-k", "2", "--steps", "1", "--quiet", "--device", "cpu", "--out", tmp_path / "out", "--model"]
    assert main([*map(str, words), "tiny"]) == 0
    [row] = json.loads(next((tmp_path / "out").glob("tiny__*.json")).read_text())["neighbours"]
    assert row["left_out"] == ["0.png"] and "0.png" not in names(row, "clean") + names(row, "attacked")
    os.remove(tmp_path / "photos" / next(name for name in names(row, "clean")))
    capsys.readouterr()
    assert main([*map(str, words), "tiny"]) == 0
    assert "not there" in (tmp_path / "out" / "neighbours.html").read_text(encoding="utf-8")
    assert main([*map(str, words), "tiny-clean"]) == 2
    assert "tiny-clean" in capsys.readouterr().err


def test_points_survive_the_journal_bit_by_bit(folder):
    task, on = task_of(folder), Evaluation(projection(), run=RunSettings(), quiet=True)
    attacked, _ = task.blocks(on)
    from rclip_metric.train.evaluation.tasks.neighbours import _packed, _unpacked

    moved = attacked_images(on.metric, task, on.run)
    held = torch.stack([_unpacked(text) for text in attacked[0]["points"]])
    assert held.shape == moved.shape and torch.allclose(held, moved, atol=1e-6)
    odd = torch.rand(3, 5, 7)
    assert torch.equal(_unpacked(_packed(odd)), odd)
