"""A result is taken for what it says only where weights, images and its own bytes are those that it was made of."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from rclip_metric import RobustPerceptualDistance
from rclip_metric.errors import CheckpointError
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.commands.evaluate.main import main
from rclip_metric.train.data.contents import contents_digest, file_digests, tree_digest
from rclip_metric.train.evaluation import session as session_module
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.blocks import fingerprint, run_blocks
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.session import Mark, Session
from rclip_metric.train.evaluation.tasks import nights_data
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.runs import tensor_file

from support.scenes import small_scenes

REPOSITORY = Path(__file__).resolve().parents[3]
ATTACK = AttackSettings(LpBall("linf", 1 / 255), steps=1)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return small_scenes(tmp_path / "scenes", (0, 0, 6)) / "nights"


def judged(folder: Path, out: Path, metric: Any = "l2") -> list[dict[str, Any]]:
    built = load_metric(str(metric), image_size=16) if isinstance(metric, str | Path) else metric
    return Session(out, quiet=True).records(nights_data(folder), built, [ATTACK], RunSettings())


def noisy() -> RobustPerceptualDistance:
    metric, generator = RobustPerceptualDistance("tiny"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in metric.encoder.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return metric


def test_changed_weights_do_not_find_the_results_of_others(scenes, tmp_path):
    noisy().save_pretrained(tmp_path / "mod")
    [own] = judged(scenes, tmp_path / "out", "tiny")
    for other in (tmp_path / "mod", EncoderMetric(noisy())):  # from a file, and changed in memory
        [found] = judged(scenes, tmp_path / "out", other)
        [fresh] = judged(scenes, tmp_path / "fresh", other)
        assert found["samples"] == fresh["samples"] != own["samples"]
        assert found["model"]["name"] in ("tiny in mod", "tiny, changed") and own["model"]["name"] == "tiny"
        assert found["model"]["revision"] == f"tensors:{found['model']['weights'][:12]}"


def test_replaced_images_do_not_find_the_results_of_others(scenes, tmp_path):
    [before] = judged(scenes, tmp_path / "out")
    shutil.copytree(scenes.parent, tmp_path / "elsewhere")
    elsewhere = tmp_path / "elsewhere" / "nights"
    assert judged(elsewhere, tmp_path / "out") == [before]  # the same images
    for path in (scenes / "ref").rglob("*.png"):
        os.utime(path)
    assert judged(scenes, tmp_path / "out") == [before]
    for path in (scenes / "ref").rglob("*.png"):
        times = path.stat()
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=r"holds a result of other data or settings: choose another --out, or"):
        judged(scenes, tmp_path / "out")
    [fresh] = judged(scenes, tmp_path / "fresh")
    assert fresh["data"]["content"] != before["data"]["content"] and fresh["samples"] != before["samples"]


def test_what_a_file_holds_is_computed_once(tmp_path, monkeypatch):
    computed = []
    monkeypatch.setattr("rclip_metric.train.data.contents.file_digest", lambda path: computed.append(path) or "0")
    paths = [tmp_path / "a" / "1.png", tmp_path / "2.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
    assert set(file_digests([*paths, tmp_path / "3.png"]).values()) == {"0", "missing"}
    file_digests(paths)
    assert sorted(computed) == sorted(paths)
    monkeypatch.setenv("RCLIP_METRIC_ALWAYS_VERIFY", "1")
    file_digests(paths)
    assert len(computed) == 4


def test_the_digest_of_a_tree_tells_names_sizes_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr("rclip_metric.train.data.contents.BUDGET", 4)
    paths = [tmp_path / f"{n}.png" for n in range(8)]
    for path in paths:
        path.write_bytes(b"1")
    found = {tree_digest(tmp_path, [*map(str, paths)])}
    paths[2].write_bytes(b"2")  # of eight bytes, every other one is read
    found.add(tree_digest(tmp_path, [*map(str, paths)]))
    paths[3].write_bytes(b"22")
    found.add(tree_digest(tmp_path, [*map(str, paths)]))
    paths[3] = paths[3].rename(tmp_path / "3.jpg")
    found.add(tree_digest(tmp_path, [*map(str, paths)]))
    assert len(found) == 4
    assert contents_digest(paths[:2]) == contents_digest(reversed(paths[:2])) != contents_digest(paths[:1])


def edit(path: Path, change: Any, seal: bool) -> None:
    record = json.loads(path.read_text())
    change(record)
    if not seal:
        del record["checksum"]
    path.write_text(json.dumps(record))


def better(record: dict[str, Any]) -> None:
    record["robust"]["accuracy"] = 99.9


def narrower(record: dict[str, Any]) -> None:
    record["clean"]["interval_95"] = [60.0, 61.0]


def in_a_part(record: dict[str, Any]) -> None:
    next(iter(record["splits"].values()))["clean"]["accuracy"] = 12.5


@pytest.mark.parametrize("seal", [True, False], ids=["checksum", "none"])
@pytest.mark.parametrize("change", [better, narrower, in_a_part])
def test_an_edited_result_is_damaged(change, seal, scenes, tmp_path, capsys):
    judged(scenes, tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.json")
    edit(path, change, seal)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: .*remove it, or add --overwrite"):
        judged(scenes, tmp_path / "out")
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load_results([tmp_path / "out"])
    assert main(["eval", "table", str(tmp_path / "out")]) == 2 and "is damaged" in capsys.readouterr().err


def test_an_accuracy_edited_with_its_checksum_is_still_not_that_of_the_outcomes(scenes, tmp_path):
    judged(scenes, tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    better(record)
    session_module.write_sealed(path, record)
    with pytest.raises(ValueError, match=r"says robust accuracy 99.9, and its outcomes give \d"):
        load_results([path])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 1}'])
def test_what_is_no_result_is_said_to_be_damaged_or_another(text, scenes, tmp_path):
    judged(scenes, tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.json")
    path.write_text(text)
    with pytest.raises(
        ValueError, match="is damaged: it cannot be read as JSON" if len(text) < 2 else "holds a result of"
    ):
        judged(scenes, tmp_path / "out")


def test_a_result_of_an_earlier_version_is_found(scenes, tmp_path, capsys):
    """It has neither checksum nor content, and its fingerprint is of what was fingerprinted then."""
    [made] = judged(scenes, tmp_path / "out", "tiny")
    [path] = (tmp_path / "out").glob("*.json")
    metric, task = load_metric("tiny"), nights_data(scenes)
    settings = session_module.Evaluation(metric, [ATTACK], RunSettings()).settings("2afc", task.settings())
    del settings["model"]["weights"]

    def age(record):
        del record["data"]["content"], record["model"]["weights"]
        record["settings"]["fingerprint"] = session_module.fingerprint(settings)

    edit(path, age, seal=False)
    [found] = Session(tmp_path / "out").records(task, metric, [ATTACK], RunSettings())
    assert found["samples"] == made["samples"] and "content" not in found["data"]
    assert "1 of 1 results do not say what their images held" in capsys.readouterr().err


def test_the_results_in_the_repository_are_read():
    # Beside records of accuracy there are results of another kind, as `eval neighbours` and `eval inversion` make them.
    files = [path for path in (REPOSITORY / "results").rglob("*__*.json") if ".journal" not in path.parts]
    folders = {path.parent for path in files if b'"schema"' in path.read_bytes()[:200]}
    assert sum(len(load_results([folder])) for folder in folders) >= 200


def test_a_damaged_line_of_a_journal_is_said_and_done_again(tmp_path):
    def evaluate(block: int) -> dict[str, int]:
        if block == 2:
            raise RuntimeError("stop")
        return {"right": block}

    def run(work: Any) -> list[Any]:
        return run_blocks([0, 1, 2], work, settings={"a": 1}, journal=tmp_path, quiet=True)

    with pytest.raises(RuntimeError):
        run(evaluate)
    [journal] = tmp_path.iterdir()
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], lines[1].replace('"right": 1', '"right": 7')]) + "\n")
    done: list[int] = []
    with pytest.warns(RuntimeWarning, match="has a damaged line, of block 1, which is evaluated again"):
        assert run(lambda block: done.append(block) or {"right": block}) == [{"right": n} for n in range(3)]
    assert done == [1, 2]


def test_settings_changed_in_a_state_are_damage(tmp_path):
    path = tmp_path / "state.safetensors"
    tensor_file.write(path, {"a": torch.ones(2)}, {"step": "100"})
    path.write_bytes(path.read_bytes().replace(b'"step":"100"', b'"step":"900"'))
    with pytest.raises(CheckpointError, match="is damaged: its bytes are not those that were written"):
        tensor_file.read(path)


def test_what_a_metric_calls_weights_itself_was_part_of_its_results_before():
    """MS-SSIM's factors of its scales are no digest."""
    settings = {"model": load_metric("ms-ssim", image_size=176).describe(), "seed": 0}
    assert settings["model"]["weights"] == [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    assert Mark.of({**settings, "content": "a"}).before == fingerprint(settings)
