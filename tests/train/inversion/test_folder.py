"""The folder of an inversion and the two commands: what they write, what they take up, what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rclip_metric.cli.main import main
from rclip_metric.distance import normalize
from rclip_metric.errors import CheckpointError
from rclip_metric.images import load_image
from rclip_metric.train.inversion import (
    EmbeddingTarget,
    How,
    ImageTarget,
    InversionSettings,
    TextTarget,
    high_frequency,
    read_targets,
    reconstruct,
    total_variation,
)
from rclip_metric.train.inversion.sheet import Cell, contact_sheet
from rclip_metric.train.metrics import load_metric
from rclip_metric.weights import file_digest, save_encoder

from support.encoders import VIT, small_encoder
from support.images import save_noise

FEW = InversionSettings(steps=3)
QUIET = How(quiet=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two saved encoders: "one" and "two"."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        save_encoder(small_encoder(VIT, name=name, seed=seed, spread=True), folder / name)
    return [str(folder / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def metrics(models):
    return [load_metric(model) for model in models]


@pytest.fixture
def image(tmp_path):
    return save_noise(tmp_path / "pictures" / "a.png", 0)


def target(path):
    return ImageTarget(path, file_digest(path))


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix == ".png" and "__" in path.name}


def test_what_is_written_is_what_is_said(tmp_path, metrics, image):
    out = tmp_path / "out"
    record = reconstruct(out, [target(image)], metrics, FEW, seeds=2, how=QUIET)
    assert json.loads((out / "inversion.json").read_text())["results"] == record["results"]
    assert record["settings"] == FEW.describe() and len(record["results"]) == 4
    names = {entry["digest"]: entry["name"] for entry in record["models"]}
    for result, (metric, seed) in zip(record["results"], [(m, s) for m in metrics for s in (0, 1)], strict=True):
        assert result["file"] == f"a__{names[result['model']]}__seed{seed}.png"
        assert result["sha256"] == file_digest(out / result["file"])
        pixels = load_image(out / result["file"])[None]
        assert pixels.shape == (1, 3, 32, 32)
        original = metric.fix(metric.preprocess(image)[None])
        cosine = (metric.fix(pixels) * original).sum().item()
        assert result["similarity_of_file"] == pytest.approx(cosine, abs=1e-5)
        assert result["similarity"] == pytest.approx(cosine, abs=0.01)  # 256 levels
        assert result["total_variation"] == pytest.approx(total_variation(pixels).item(), abs=1e-5)
        assert result["high_frequency"] == pytest.approx(high_frequency(pixels).item(), abs=1e-5)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == contact_sheet([""] * 3, [[None] * 3] * 2).size  # original and two models; two seeds
        assert sheet.getextrema() != contact_sheet([""] * 3, [[None] * 3] * 2).getextrema()


def test_it_goes_on_where_it_stopped(tmp_path, metrics, image):
    out = tmp_path / "out"
    reconstruct(out, [target(image)], metrics[:1], FEW, seeds=1, how=QUIET)
    before = times(out)
    reconstruct(out, [target(image)], metrics[:1], FEW, seeds=1, how=QUIET)
    assert times(out) == before and len(before) == 1
    another = save_noise(tmp_path / "others" / "a.png", 1)  # another image of that name
    record = reconstruct(out, [target(image), target(another)], metrics, FEW, seeds=2, how=QUIET)
    after = times(out)
    assert len(after) == 8 and after.items() >= before.items()
    assert len({result["file"] for result in record["results"]}) == 8
    second = record["targets"][1]
    assert second["name"] == f"a-{file_digest(another)[:8]}"
    lost = out / record["results"][3]["file"]
    pixels = lost.read_bytes()
    lost.write_bytes(b"damaged")
    again = reconstruct(out, [target(image), target(another)], metrics, FEW, seeds=2, how=QUIET)
    assert lost.read_bytes() == pixels and sorted(map(str, again["results"])) == sorted(map(str, record["results"]))
    assert {name for name, when in times(out).items() if after[name] != when} == {lost.name}


def test_an_interrupted_run_keeps_what_it_had(tmp_path, metrics, image):
    out, calls = tmp_path / "out", []

    class Stopping:
        """The second metric, whose pass is interrupted."""

        def __getattr__(self, name):
            return getattr(metrics[1], name)

        def embed(self, images):
            calls.append(len(images))
            if len(calls) > 2:
                raise KeyboardInterrupt
            return metrics[1].embed(images)

    with pytest.raises(KeyboardInterrupt):
        reconstruct(out, [target(image)], [metrics[0], Stopping()], FEW, seeds=1, how=QUIET)
    before = times(out)
    assert len(before) == 1
    record = reconstruct(out, [target(image)], metrics, FEW, seeds=1, how=QUIET)
    assert times(out).items() >= before.items() and len(record["results"]) == 2


def test_other_settings_and_other_folders_are_refused(tmp_path, metrics, image):
    out = tmp_path / "out"
    reconstruct(out, [target(image)], metrics[:1], FEW, seeds=1, how=QUIET)
    for other in (
        InversionSettings(steps=4),
        InversionSettings("multi-view", 3),
        InversionSettings(steps=3, radius=50),
    ):
        with pytest.raises(ValueError, match="out holds inversions with other settings: choose another --out"):
            reconstruct(out, [target(image)], metrics[:1], other, seeds=1, how=QUIET)
    with pytest.raises(ValueError, match=r"holds other files and no inversion\.json"):
        reconstruct(image.parent, [target(image)], metrics[:1], FEW, seeds=1, how=QUIET)
    held = out / "inversion.json"
    held.write_text(held.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(ValueError, match="is damaged: its values are not those that were written"):
        reconstruct(out, [target(image)], metrics[:1], FEW, seeds=1, how=QUIET)
    with pytest.raises(ValueError, match="ssim has no embeddings to invert"):
        reconstruct(tmp_path / "new", [target(image)], [load_metric("ssim")], FEW, how=QUIET)
    with pytest.raises(ValueError, match="at least 1 seed, and has 0"):
        reconstruct(tmp_path / "new", [target(image)], metrics, FEW, seeds=0, how=QUIET)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["apgd", "multi-view"])
def test_pictures_of_the_way(tmp_path, metrics, image, method):
    settings = InversionSettings(method, 5, views=2)
    out = tmp_path / "out"
    reconstruct(out, [target(image)], metrics[:1], settings, seeds=3, how=How(chunk_size=2, every=2, quiet=True))
    steps = sorted(path.name.split("__")[2:] for path in out.glob("*step*.png"))
    assert steps == [[f"seed{seed}", f"step{step:05d}.png"] for seed in range(3) for step in (2, 4)]


def test_embeddings_of_files_give_the_images_of_the_file(tmp_path, metrics, image):
    metric = metrics[0]
    embedding = metric.fix(metric.preprocess(image)[None])
    np.save(tmp_path / "e.npy", 3 * embedding.numpy())
    save_file({"x": embedding[0], "y": torch.cat([embedding, -embedding])}, tmp_path / "e.safetensors")
    found = [*read_targets(str(tmp_path / "e.npy")), *read_targets(str(tmp_path / "e.safetensors"))]
    assert [each.name for each in found] == ["e", "e-x", "e-y-0", "e-y-1"]
    vectors = torch.cat([normalize(each.embedding(metric)) for each in found])
    assert torch.allclose(vectors, torch.cat([embedding] * 3 + [-embedding]), atol=1e-6)
    out = tmp_path / "out"
    record = reconstruct(out, [target(image), found[0]], [metric], FEW, seeds=1, how=QUIET)
    one, other = (load_image(out / result["file"]) for result in record["results"])
    assert (one - other).abs().max() < 0.03  # a few levels


def test_a_row_of_an_index(tmp_path, models, metrics, image):
    index = tmp_path / "index"
    assert main(["index", "build", str(image.parent), str(index), "--model", models[0], "--quiet"]) == 0
    [found] = read_targets(f"{index}:a.png")
    metric = metrics[0]
    assert torch.allclose(found.embedding(metric), metric.fix(metric.preprocess(image)[None]), atol=1e-5)
    with pytest.raises(ValueError, match="is an embedding of one, and two has other weights"):
        found.embedding(metrics[1])
    with pytest.raises(ValueError, match=r"has no image 'b\.png'"):
        read_targets(f"{index}:b.png")


def test_files_that_hold_no_embeddings_are_refused(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.arange(5))
    np.save(tmp_path / "three.npy", np.zeros((1, 2, 3), np.float32))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.safetensors").write_bytes(b"1234567890")
    for name, message in {
        "pickled.npy": "is no readable file of embeddings: .*allow_pickle=False",
        "whole.npy": r"must hold embeddings, floating-point \(D,\) or \(N, D\), and it is int64 \(5,\)",
        "three.npy": r"and it is float32 \(1, 2, 3\)",
        "cut.npy": "is no readable file of embeddings",
        "cut.safetensors": "is no readable file of embeddings",
        "missing.npy": "cannot read .*missing.npy: No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_targets(str(tmp_path / name))


def test_a_text_is_inverted_through_the_tower_of_the_model():
    metric = load_metric("tiny")
    wanted = TextTarget("large red plain circle centre middle").embedding(metric)
    from rclip_metric.train.inversion import grey, invert

    start = grey(64, [0])
    before = (metric.fix(start) * wanted).sum().item()
    found = invert(metric.embed, wanted, start=start, steps=15)
    assert found.similarities.item() > before + 0.1
    assert (metric.fix(found.images) * wanted).sum().item() == pytest.approx(found.similarities.item(), abs=1e-5)


def test_the_commands(tmp_path, models, image, capsys):
    out = tmp_path / "out"
    words = ["invert", str(image), "--model", *models, "--out", str(out), "--seeds", "2", "--steps", "2", "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("cosine") == 4 and str(out / "sheet.png") in said.out
    assert main([*words[:-1], "--steps", "3"]) == 2
    assert (
        capsys.readouterr().err == f"rclip-metric: {out} holds inversions with other settings: choose another --out\n"
    )
    imagined = tmp_path / "imagined"
    few = ["--out", str(imagined), "--seeds", "1", "--steps", "2", "--quiet"]
    assert main(["imagine", "a red circle", "a blue star", "--model", "tiny", *few]) == 0
    assert sorted(path.name for path in imagined.glob("a-*.png")) == [
        "a-blue-star__tiny__seed0.png",
        "a-red-circle__tiny__seed0.png",
    ]
    smooth = ["--method", "multi-view", "--views", "2", "--out", str(tmp_path / "smooth")]
    assert main([*words[:-1], *smooth, "--quiet"]) == 0
    assert json.loads((tmp_path / "smooth" / "inversion.json").read_text())["settings"]["views"] == 2


def test_the_commands_refuse_in_one_sentence(tmp_path, models, image, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    np.save(tmp_path / "short.npy", np.ones(5, np.float32))
    np.save(tmp_path / "nan.npy", np.full(16, np.nan, np.float32))
    out = tmp_path / "out"

    def refused(*words):
        assert main([*map(str, words), "--out", str(out), "--quiet", "--seeds", "1"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
        assert not out.exists()
        return said

    one = ["--model", models[0], "--steps", "2"]
    assert "the target embedding has 5 numbers, and those of this model have 16" in refused(
        "invert", tmp_path / "short.npy", *one
    )
    assert "holds NaN or infinity" in refused("invert", tmp_path / "nan.npy", *one)
    assert "steps must be at least 1, and it is 0" in refused("invert", image, "--model", models[0], "--steps", "0")
    assert "broken.png" in refused("invert", broken, *one)
    assert "nowhere.png" in refused("invert", "nowhere.png", *one)
    assert "ssim has no embeddings" in refused("invert", image, "--model", "ssim")
    assert "one cannot imagine a text: one has no text tower" in refused("imagine", "a red circle", *one)
    assert "the word 'above'" in refused("imagine", "a circle above a square", "--model", "tiny")
    with pytest.raises(CheckpointError, match="r-lite-f cannot imagine a text: r-lite-f has no text tower"):
        TextTarget("a cat").embedding(load_metric("r-lite-f"))


def test_a_sheet_has_its_cells_in_their_places():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    sheet = contact_sheet(["original", "one"], [[Cell(red, "x"), Cell(blue, "cosine 1")], [None, Cell(red, "y")]], 40)
    left, top, right, below = 8 + 20, 8 + 36 + 20, 8 + 48 + 20, 8 + 36 + 66 + 20
    assert sheet.getpixel((left, top)) == (255, 0, 0) and sheet.getpixel((right, top)) == (0, 0, 255)
    assert sheet.getpixel((left, below)) == (255, 255, 255) and sheet.getpixel((right, below)) == (255, 0, 0)
    words = contact_sheet(["text"], [[Cell(None, "a very long description of a picture that wraps " * 3)]])
    assert words.size == contact_sheet(["text"], [[Cell(None, "short")]]).size


def test_an_embedding_of_a_file_has_the_digest_of_its_values():
    one, other = (EmbeddingTarget("e", "e.npy", torch.full((4,), value)) for value in (1.0, 2.0))
    assert one.digest == EmbeddingTarget("other", "f.npy", torch.ones(4, dtype=torch.float64)).digest != other.digest
    assert Path(one.source).suffix == ".npy"
