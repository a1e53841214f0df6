"""A head on an encoder of ours, as a detector."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.detectors import HeadOrigin, LaionDetector, LaionHead, load_detector, load_head, load_laion, save_head
from rclip_metric.errors import CheckpointError, ImageError, ManifestError, StorageError, UnknownModelError
from rclip_metric.weights import tensors_digest

from support.encoders import small_encoder
from support.images import blotches, noise, save_noise


def random_head(width: int, columns: tuple[int, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {"mean": torch.randn(width, generator=generator) / 20, "variance": torch.full((width,), 1e-3)}
    for layer, (outputs, inputs) in enumerate(((16, width), (12, 16), (1, 12))):
        tensors[f"dense.{layer}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        tensors[f"dense.{layer}.bias"] = torch.randn(outputs, generator=generator) / 10
    for column in columns:
        tensors[f"lookup.{column}.keys"] = torch.arange(-500_000, 500_000, 7)
        ranks = torch.randperm(len(tensors[f"lookup.{column}.keys"]), generator=generator)
        tensors[f"lookup.{column}.values"] = ranks.float() / 1e6
    return tensors


def in_numpy(tensors: dict[str, Tensor], embeddings: Tensor) -> np.ndarray:
    x = embeddings.double().numpy()
    x = (x - tensors["mean"].double().numpy()) / np.sqrt(tensors["variance"].double().numpy())
    for layer in range(3):
        x = np.maximum(x, 0) if layer else x
        x = x @ tensors[f"dense.{layer}.weight"].double().numpy().T + tensors[f"dense.{layer}.bias"].double().numpy()
    return x[:, 0]


@pytest.fixture(scope="module")
def base() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(small_encoder(spread=True))


@pytest.fixture
def head(base, tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_head(random_head(base.encoder.embedding_dim), HeadOrigin("mine", license="MIT", sources={"a": 64 * "0"}), path)
    return path


def test_logits_are_the_head_of_the_embedding(base, head, tmp_path: Path):
    detector = load_laion(head, base)
    images = torch.cat([noise(2, 3, 50, 40), blotches(3, (50, 40))])
    embeddings = detector.embed(images)
    assert torch.equal(embeddings, base.embed(images)) and torch.allclose(embeddings.norm(dim=1), torch.ones(5))
    expected = in_numpy(random_head(embeddings.shape[1]), embeddings)
    logits = detector.logits(images)
    assert logits.shape == (5,) and logits.dtype == torch.float32 and not logits.requires_grad
    assert np.abs(torch.sigmoid(logits).numpy() - 1 / (1 + np.exp(-expected))).max() < 1e-6
    for size in (1, 2):
        apart = torch.cat([detector.logits(part) for part in images.split(size)])
        assert torch.allclose(apart, logits, atol=1e-4)
    path = save_noise(tmp_path / "a.png", 0)
    assert torch.equal(detector.preprocess(path), base.preprocess(path))


@pytest.mark.parametrize("columns", [(), (0, 3)])
def test_gradients_reach_the_images_and_nothing_else(base, columns):
    width = base.encoder.embedding_dim
    detector = LaionDetector(base, LaionHead(random_head(width, columns)), HeadOrigin("mine"), "")
    images = blotches(2, 40, grain=0.2).requires_grad_()
    detector.logits(images).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and (images.grad.abs().amax((1, 2, 3)) > 0).all()
    embeddings = base.embed(images.detach()).requires_grad_()
    detector.head(embeddings).sum().backward()
    assert embeddings.grad is not None
    assert [column for column in range(width) if not embeddings.grad[:, column].any()] == list(columns)
    assert not any(parameter.requires_grad for parameter in detector.parameters())


def test_what_a_detector_says_of_itself(base, head):
    described = load_laion(head, base, threshold=0.3).describe()
    assert described["name"] == "mine" and described["threshold"] == 0.3
    assert described["weights"] == f"sha256:{load_head(head)[2]}" != "sha256:"
    assert described["base"]["weights"] == tensors_digest(base.encoder.state_dict())


def test_a_detector_moves_and_is_copied_as_a_whole(base, head):
    detector = load_laion(head, base)
    images = noise(2, 3, 32, 32)
    copy = pickle.loads(pickle.dumps(detector))
    assert torch.equal(copy.logits(images), detector.logits(images)) and copy.describe() == detector.describe()
    assert detector.to("cpu").device == torch.device("cpu")


def test_the_base_is_the_files_own_or_the_given_one(tmp_path: Path):
    path = tmp_path / "head.safetensors"
    save_head(random_head(128), HeadOrigin("mine", base="tiny"), path)
    detector = load_detector(str(path), threshold=0.7)
    assert isinstance(detector, LaionDetector) and detector.describe()["base"]["name"] == "tiny"
    assert detector.threshold == 0.7
    other = load_detector(str(path), base="tiny-clean")
    assert other.describe()["base"]["name"] == "tiny-clean"
    with pytest.raises(ValueError, match="a base goes with a head on embeddings"):
        load_detector("opennsfw", base="tiny")


def test_a_base_of_another_size_is_refused(base, tmp_path: Path):
    path = tmp_path / "head.safetensors"
    save_head(random_head(768), HeadOrigin("mine"), path)
    with pytest.raises(
        CheckpointError, match=f"mine takes embeddings of size 768, and .* {base.encoder.embedding_dim}"
    ):
        load_laion(path, base)
    with pytest.raises(CheckpointError, match=r"head.safetensors does not say which model gives its embeddings"):
        load_laion(path)

    class Other:
        device = torch.device("cpu")

        def preprocess(self, image: object) -> Tensor:
            raise NotImplementedError

        def embed(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(CheckpointError, match="The head takes embeddings of size 768, and its base gives 3"):
        load_laion(path, Other()).logits(noise(1, 3, 8, 8))


def test_files_that_are_no_heads_or_damaged_are_refused(head, tmp_path: Path):
    data = bytearray(head.read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(data[:-10])
    data[-5] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cut.safetensors is not a readable safetensors file"):
        load_head(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"flipped.safetensors is damaged: its tensors are not those"):
        load_head(tmp_path / "flipped.safetensors")
    save_file(load_file(head), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"plain.safetensors is no detector's head"):
        load_head(tmp_path / "plain.safetensors")
    save_file(load_file(head), tmp_path / "odd.safetensors", {"rclip_metric_detector": '{"format": "other"}'})
    with pytest.raises(ManifestError, match=r"odd.safetensors"):
        load_head(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": None}, "missing mean"),
        ({"dense.1.bias": None}, "missing dense.1.bias"),
        ({"extra": torch.zeros(1)}, "unexpected extra"),
        (
            {"dense.2.weight": torch.zeros(2, 12)},
            r"dense.2.weight of shape \(2, 12\) and torch.float32, expected \(1, 12",
        ),
        ({"variance": torch.full((8,), -1.0)}, "a variance below zero"),
        ({"mean": torch.full((8,), torch.nan)}, "NaN or infinite"),
        ({"mean": torch.zeros(8, dtype=torch.float64)}, "expected .* torch.float32"),
        ({"lookup.3.keys": torch.tensor([5, 5])}, "for column 3 that is not sorted"),
        ({"lookup.3.keys": torch.tensor([5, 6, 7])}, "lookup.3.values of shape"),
        ({"lookup.3.values": None}, "missing lookup.3.values"),
    ],
)
def test_tensors_that_make_no_network_are_refused(tmp_path: Path, change, said):
    tensors = random_head(8) | {"lookup.3.keys": torch.tensor([5, 6]), "lookup.3.values": torch.ones(2)}
    tensors = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=said):
        save_head(tensors, HeadOrigin("mine"), tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="The head cannot be written to"):
        save_head(random_head(8), HeadOrigin("mine"), tmp_path / "file" / "head.safetensors")


def test_what_is_published_is_named_with_what_to_do():
    with pytest.raises(
        UnknownModelError, match=r"run rclip-metric train convert-detector clip_autokeras_binary_nsfw.zip"
    ):
        load_detector("laion-vit-l-14")
    with pytest.raises(CheckpointError, match=r"There is no file none.safetensors"):
        load_detector("none.safetensors")


def test_what_is_no_image_is_refused(base, head):
    with pytest.raises(ImageError, match="expected"):
        load_laion(head, base).logits(torch.full((1, 3, 8, 8), torch.nan))
