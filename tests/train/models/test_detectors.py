"""Heads of LAION's detector: converted without TensorFlow, and against the same network in numpy."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from rclip_metric.detectors import LaionHead, load_detector, load_head
from rclip_metric.errors import CheckpointError
from rclip_metric.train.commands.train import detector as command
from rclip_metric.train.commands.train.main import main
from rclip_metric.train.models import detectors
from rclip_metric.train.models.detectors import convert_laion
from rclip_metric.train.models.saved_model import masked_crc, read_saved_model
from rclip_metric.weights import tensors_digest

from support import saved_models
from support.programs import run_command

DIM, COLUMNS = 128, (3, 20, 127)
INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"


def layer(kind: str, **config: object) -> dict[str, object]:
    return {"class_name": kind, "config": config}


def ranks(thousandths: np.ndarray) -> dict[str, int]:
    return {f"{value / 1000:.6f}": rank for rank, value in enumerate(thousandths, start=1)}


@dataclass
class Written:
    """A detector as AutoKeras writes it, in the making."""

    widths: tuple[int, ...] = (16, 24, 1)
    columns: tuple[int, ...] = COLUMNS
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tables: list[dict[str, int]] = field(default_factory=list)
    layers: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        sizes = (DIM, *self.widths)
        self.arrays = {
            "layer_with_weights-1/mean": generator.normal(0, 0.02, DIM).astype(np.float32),
            "layer_with_weights-1/variance": generator.uniform(1e-4, 1e-3, DIM).astype(np.float32),
            "layer_with_weights-1/count": np.array(7, dtype=np.int64),
            "keras_api/metrics/0/total": np.array(7, dtype=np.float32),
        }
        self.arrays["layer_with_weights-1/variance"][5] = 0  # Keras divides by 1e-7
        self.arrays["layer_with_weights-1/mean"][list(self.columns)] = 40
        self.arrays["layer_with_weights-1/variance"][list(self.columns)] = 900
        for place, (inputs, outputs) in enumerate(pairwise(sizes)):
            kernel = generator.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)
            if not place:
                kernel[5] *= 1e-6
            self.arrays[f"layer_with_weights-{place + 2}/kernel"] = kernel
            self.arrays[f"layer_with_weights-{place + 2}/bias"] = generator.normal(0, 0.1, outputs).astype(np.float32)
        self.tables = [ranks(generator.permutation(np.arange(-99, 99))) for _ in self.columns]
        encoding = ["int" if column in self.columns else "none" for column in range(DIM)]
        self.layers = [
            layer("InputLayer"),
            layer("Custom>MultiCategoryEncoding", encoding=encoding),
            layer("Normalization"),
        ]
        for _ in self.widths:
            self.layers += [
                layer("Dense", activation="linear"),
                layer("ReLU", max_value=None, negative_slope=0.0, threshold=0.0),
            ]
        self.layers[-1:] = [layer("Dropout", rate=0.5), layer("Activation", activation="sigmoid")]

    def bundle(self, **form: int) -> tuple[bytes, bytes]:
        texts = {f"layer_with_weights-0/encoding_layers/{column}/token_counts/.ATTRIBUTES/table-keys": (0,)
                 for column in self.columns}  # fmt: skip
        arrays = {f"{name}{saved_models.VALUE}": array for name, array in self.arrays.items()}
        arrays |= {name.replace("keys", "values"): np.zeros(0, np.int64) for name in texts}
        return saved_models.bundle(arrays, {**texts, "_CHECKPOINTABLE_OBJECT_GRAPH": ()}, **form)

    def write(self, folder: Path, **form: int) -> Path:
        graph = saved_models.saved_graph(self.tables)
        return saved_models.write(folder, *self.bundle(**form), graph, saved_models.keras_layers(self.layers))

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        x = embeddings.astype(np.float64)
        for column, table in zip(self.columns, self.tables, strict=True):
            x[:, column] = [table.get(f"{value:f}", 0) for value in embeddings[:, column].tolist()]
        scale = np.maximum(np.sqrt(self.arrays["layer_with_weights-1/variance"].astype(np.float64)), 1e-7)
        x = (x - self.arrays["layer_with_weights-1/mean"]) / scale
        for place in range(len(self.widths)):
            x = np.maximum(x, 0) if place else x
            x = (
                x @ self.arrays[f"layer_with_weights-{place + 2}/kernel"]
                + self.arrays[f"layer_with_weights-{place + 2}/bias"]
            )
        return 1 / (1 + np.exp(-x[:, 0]))


def unit_embeddings(count: int = 64) -> np.ndarray:
    """Unit vectors, half of them with the decimals that the tables know in the columns that are looked up."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(count, DIM))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[::2, list(COLUMNS)] = x[::2, list(COLUMNS)].round(3)
    return x.astype(np.float32)


@pytest.mark.parametrize("form", [{}, {"per_block": 1}, {"per_block": 100, "interval": 16}, {"interval": 1}])
@pytest.mark.parametrize("packed", [False, True])
def test_a_head_is_the_network_that_was_published(tmp_path: Path, form, packed):
    written = Written()
    folder = written.write(tmp_path / "model", **form)
    tensors, origin = convert_laion(saved_models.zipped(folder) if packed else folder)
    assert origin.name == "model" and origin.base is None and origin.license is None
    assert len(origin.sources) == (1 if packed else 3)
    embeddings = unit_embeddings()
    expected = written.probabilities(embeddings)
    found = LaionHead(tensors)(torch.from_numpy(embeddings)).sigmoid().numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert expected.std() > 0.05
    for column in COLUMNS:  # the tables matter, and only where the six decimals are in them
        tensors[f"lookup.{column}.values"] = torch.zeros_like(tensors[f"lookup.{column}.values"])
    without = LaionHead(tensors)(torch.from_numpy(embeddings)).sigmoid().numpy()
    assert np.abs(without - expected)[::2].min() > 1e-4 and np.abs(without - expected)[1::2].max() < 1e-6


def test_the_gradient_leaves_out_what_is_looked_up(tmp_path: Path):
    head = LaionHead(convert_laion(Written().write(tmp_path / "model"))[0]).double()
    embeddings = torch.from_numpy(unit_embeddings(4)).double().requires_grad_()
    [gradient] = torch.autograd.grad(head(embeddings).sum(), embeddings)
    smooth = [column for column in range(DIM) if column not in COLUMNS]
    assert (gradient[:, list(COLUMNS)] == 0).all() and gradient.isfinite().all()
    way = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    way[:, list(COLUMNS)] = 0
    with torch.no_grad():
        slope = (head(embeddings + 1e-8 * way) - head(embeddings - 1e-8 * way)) / 2e-8
    assert torch.allclose(slope, (gradient * way).sum(1), rtol=1e-5) and gradient[:, smooth].abs().max() > 0.1


def test_the_command_writes_a_file_that_the_detector_is_loaded_from(tmp_path: Path, capsys):
    written = Written()
    source, out = saved_models.zipped(written.write(tmp_path / "model")), tmp_path / "out" / "head.safetensors"
    run_command(command, "convert-detector", source, out, "--base", "tiny", "--name", "mine")
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{out}: mine @ sha256:[0-9a-f]{{12}}, takes embeddings of tiny\n", said)
    detector = load_detector(str(out))
    described = detector.describe()
    assert described["name"] == "mine" and described["base"]["name"] == "tiny"
    assert said.split("sha256:")[1][:12] == described["weights"].removeprefix("sha256:")[:12] == load_head(out)[2][:12]
    (tmp_path / "cut.zip").write_bytes(source.read_bytes()[:-100])
    for arguments, problem in (
        ((source, tmp_path / "head.bin"), "a head is written to a .safetensors file, got "),
        ((tmp_path / "cut.zip", out), "cut.zip is neither a folder nor a whole zip file"),
    ):
        before = out.read_bytes()
        assert main(["train", "convert-detector", *map(str, arguments)]) == 2
        assert problem in capsys.readouterr().err and out.read_bytes() == before


def test_the_published_heads_are_told_by_their_tensors(tmp_path: Path, monkeypatch):
    folder = Written().write(tmp_path / "model")
    tensors, _ = convert_laion(folder)
    monkeypatch.setitem(detectors.PUBLISHED, tensors_digest(tensors), ("laion-vit-l-14", "clip-vit-l-14"))
    for source in (folder, saved_models.zipped(folder)):
        _, origin = convert_laion(source)
        assert (origin.name, origin.base, origin.license) == ("laion-vit-l-14", "clip-vit-l-14", "MIT")
    _, origin = convert_laion(folder, name="mine", base="tiny")
    assert (origin.name, origin.base) == ("mine", "tiny")


def test_no_table_and_no_list_of_layers(tmp_path: Path):
    written = Written(columns=())
    graph = saved_models.saved_graph([])
    folder = saved_models.write(tmp_path / "model", *written.bundle(), graph)
    embeddings = unit_embeddings()
    head = LaionHead(convert_laion(folder)[0])
    found = head(torch.from_numpy(embeddings)).sigmoid().numpy()
    assert np.abs(found - written.probabilities(embeddings)).max() < 1e-6


def test_an_empty_table_is_a_column_of_zeros(tmp_path: Path):
    written = Written()
    written.tables = [{}, *written.tables[1:]]
    embeddings = unit_embeddings()
    head = LaionHead(convert_laion(written.write(tmp_path / "model"))[0])
    found = head(torch.from_numpy(embeddings)).sigmoid().numpy()
    assert np.abs(found - written.probabilities(embeddings)).max() < 1e-6


def test_the_checksum_is_the_one_of_tensorflow():
    for length in (0, 1, 9, 1000):
        data = np.random.default_rng(length).bytes(length)
        assert masked_crc(data) == masked_crc32c(data)


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def flipped(place: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

    return flip


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed(INDEX, lambda data: data[:-1]), "does not end as a table of TensorFlow does"),
        (changed(INDEX, lambda data: b""), "does not end as a table of TensorFlow does"),
        (changed(INDEX, lambda data: data[100:]), "is damaged"),
        (changed(INDEX, flipped(0.1)), "checksum is another"),
        (changed(INDEX, flipped(0.5)), "checksum is another"),
        (changed(DATA, lambda data: data[:-400]), "is cut off: variables/variables.data-00000-of-00001 has"),
        (changed(DATA, flipped(0.5)), "checksum is another"),
        (changed("saved_model.pb", lambda data: data[:-7]), "is damaged or cut off"),
        (changed("saved_model.pb", lambda data: b""), "holds 0 graphs"),
        (changed("keras_metadata.pb", lambda data: data[:-7]), "is damaged or cut off"),
        (lambda folder: (folder / DATA).unlink(), f"it has no {DATA}"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path: Path, damage, said):
    folder = Written().write(tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError, match=re.escape(said)) as raised:
        convert_laion(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [INDEX, "saved_model.pb", "keras_metadata.pb"])
def test_no_flipped_bit_and_no_cut_passes_for_another_error(tmp_path: Path, name):
    """Whatever is changed, either nothing that is read changes or the refusal is ours."""
    folder = Written(widths=(2, 1)).write(tmp_path / "model")
    path = folder / name
    data = path.read_bytes()
    whole, _ = convert_laion(folder)
    refused = 0
    places = np.random.default_rng(0).integers(0, len(data), 60)
    for kept in [flipped(place / len(data))(data) for place in places] + [data[:place] for place in places]:
        path.write_bytes(kept)
        try:
            tensors, _ = convert_laion(folder)
        except CheckpointError:
            refused += 1
        else:
            assert name != INDEX or all(torch.equal(tensors[key], whole[key]) for key in whole)
    assert refused > 60


def test_what_the_checksums_would_let_pass_is_refused(tmp_path: Path):
    def refused(said: str, index: bytes, data: bytes) -> None:
        folder = saved_models.write(tmp_path / said.replace(" ", "-"), index, data, saved_models.saved_graph([]))
        with pytest.raises(CheckpointError, match=said):
            read_saved_model(folder)

    name = f"layer_with_weights-1/mean{saved_models.VALUE}".encode()
    header = saved_models.number(1, 1)
    shape, checksum = (
        saved_models.content(2, saved_models.shape([2])),
        b"\x35" + masked_crc32c(bytes(8)).to_bytes(4, "little"),
    )
    entry = saved_models.number(1, 1) + shape + saved_models.number(5, 8) + checksum
    index, data = saved_models.bundle({"a": np.zeros(2, np.float32)}, kind=1)
    refused("is compressed", index, data)
    for said, value in {
        "takes 12 bytes": saved_models.number(1, 1) + shape + saved_models.number(5, 12) + checksum,
        "is cut off": entry + saved_models.number(4, 1 << 62),
        "in another data file": entry + saved_models.number(3, 1),
        "or in slices": entry + saved_models.content(7, b""),
        "unknown kind": entry + b"\x3b",
        "does not end": b"\xff" * 11,
    }.items():
        refused(said, saved_models.table({b"": header, name: value}), bytes(8))
    refused("of several data files", saved_models.table({b"": saved_models.number(1, 2), name: entry}), bytes(8))
    refused("no text", saved_models.table({b"": header, b"\xff": entry}), bytes(8))


@pytest.mark.parametrize("member", ["../out", "/etc/out", "a/../../out", "C:\\out", "a\\..\\out"])
def test_a_zip_that_leads_out_is_refused(tmp_path: Path, member):
    path = saved_models.zipped(Written().write(tmp_path / "model"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, b"")
    with pytest.raises(CheckpointError, match=r"model.zip is refused: its member .* leads out of the folder"):
        convert_laion(path)


def test_zips_that_are_too_large_broken_or_of_something_else(tmp_path: Path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"m/{INDEX}", "w") as file:
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match=f"has {65 << 20} bytes, and at most {64 << 20} are read"):
        convert_laion(path)
    whole = saved_models.zipped(Written().write(tmp_path / "model"))
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="neither a folder nor a whole zip file"):
        convert_laion(tmp_path / "cut.zip")
    (tmp_path / "flipped.zip").write_bytes(flipped(0.4)(whole.read_bytes()))
    with pytest.raises(CheckpointError, match="neither a folder nor a whole zip file"):
        convert_laion(tmp_path / "flipped.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(CheckpointError, match=r"other.zip holds 0 SavedModels of TensorFlow, expected one"):
        convert_laion(tmp_path / "other.zip")


def test_other_models_are_refused(tmp_path: Path):
    def refused(said: str, change: Callable[[Written], object]) -> None:
        written = Written()
        change(written)
        folder = written.write(tmp_path / str(len(list(tmp_path.iterdir()))))
        with pytest.raises(CheckpointError, match=said):
            convert_laion(folder)

    refused("it holds layer-9/gamma", lambda w: w.arrays.update({"layer-9/gamma": np.zeros(2, np.float32)}))
    refused("expected a normalisation and dense layers", lambda w: w.arrays.pop("layer_with_weights-1/mean"))
    refused("expected a normalisation and dense layers", lambda w: w.arrays.pop("layer_with_weights-3/bias"))
    kernel, bias = np.zeros((DIM, 9), np.float32), np.zeros(9, np.float32)
    fewer = {"layer_with_weights-2/kernel": kernel, "layer_with_weights-2/bias": bias}
    refused(r"dense.1.weight of shape \(24, 16\)", lambda w: w.arrays.update(fewer))
    refused("looks up 3 columns in 2 tables", lambda w: w.tables.pop())
    refused("looks up 'red', expected numbers with six decimals", lambda w: w.tables[0].update(red=3))
    refused(
        "its layers are .* tanh, expected", lambda w: w.layers.__setitem__(-1, layer("Activation", activation="tanh"))
    )
    refused("ReLU with bounds", lambda w: w.layers.__setitem__(4, layer("ReLU", max_value=6.0)))
    refused("NaN or infinite", lambda w: w.arrays["layer_with_weights-2/bias"].__setitem__(0, np.nan))
    encoding = layer("Custom>MultiCategoryEncoding", encoding=["int"] * 4)
    refused(
        "columns looked up: 0, 1, 2, 3, .* expected columns looked up: 3, 20, 127",
        lambda w: w.layers.__setitem__(1, encoding),
    )
