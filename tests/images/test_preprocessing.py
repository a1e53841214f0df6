"""Resizing: torchvision is the reference, on tensors for the one path, on Pillow images for the other."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from rclip_metric.images import (
    CLIP_MEAN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    preprocess_pil,
    resize_images,
)

CROP = Preprocessing("crop", 256, 224)
SMALL = Preprocessing("crop", 37, 32)
SQUASH = Preprocessing("squash", 32, 32)
BICUBIC = InterpolationMode.BICUBIC
LEVEL = 1 / 255
KERNEL = 1e-4  # torch's resize has float32 coordinates: off by up to 3e-5, by 2e-4 far along a long side

# (width, height): up, down, one axis each way, odd margins (rounded to even), thin, the encoder's own size.
# None so tall that Pillow itself, depending on its version, takes the rows first.
SIZES = [
    (300, 400),
    (640, 427),
    (100, 37),
    (256, 256),
    (257, 511),
    (224, 224),
    (91, 90),
    (20, 3),
    (11, 20),
    (1, 1),
]


def picture(width: int, height: int, seed: int = 0, blocks: int = 6) -> Image.Image:
    """Like a photograph to a resize filter: shading, texture at several scales, noise, and hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([0.3 + 0.4 * x, 0.5 + 0.3 * y - 0.2 * x, 0.6 - 0.4 * x * y], axis=-1)
    for waves in (3, 11, 37):
        phase = rng.uniform(0, 2 * math.pi, 3)
        direction = rng.uniform(-1, 1, 2)
        pixels += 0.08 * np.sin(2 * math.pi * waves * (direction[0] * x + direction[1] * y)[..., None] + phase)
    pixels += rng.normal(0, 0.04, pixels.shape)
    for _ in range(blocks):
        corner, side = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.4)
        inside = (abs(x - corner[0]) < side / 2) & (abs(y - corner[1]) < side / 2)
        pixels[inside] = rng.choice([0.0, 1.0], 3)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return ToTensor()(image)[None]


def muted(image: Image.Image) -> Tensor:
    """As a tensor in [0.25, 0.75], where no overshoot reaches the clamp."""
    return 0.25 + 0.5 * tensor(image)


def rows_last(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """torchvision's Resize and CenterCrop for images of any shape, columns first as Pillow always used to."""
    size = preprocessing.resize
    if image.width <= image.height:
        width, height = size, int(size * image.height / image.width)
    else:
        width, height = int(size * image.width / image.height), size
    image = TF.resize(TF.resize(image, [image.height, width], BICUBIC), [height, width], BICUBIC)
    return ToTensor()(TF.center_crop(image, [preprocessing.crop] * 2))


def plain(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """torchvision's resize and centre crop on tensors, in float64."""
    resized = TF.resize(images.double(), [preprocessing.resize], BICUBIC, antialias=True)
    return TF.center_crop(resized, [preprocessing.crop] * 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pil_path_is_torchvisions_resize_and_crop(size: tuple[int, int]) -> None:
    image = picture(*size)
    reference = Compose([Resize(256, BICUBIC), CenterCrop(224), ToTensor()])(image)
    assert torch.equal(preprocess_pil(image, CROP), reference)
    reference = Compose([Resize((image.height, 32), BICUBIC), Resize((32, 32), BICUBIC), ToTensor()])(image)
    assert torch.equal(preprocess_pil(image, SQUASH), reference)
    assert torch.equal(preprocess_pil(image, SMALL, resize="squash"), reference)


@pytest.mark.parametrize("size", [(200, 1000), (500, 1500), (100, 700), (1000, 200)], ids=str)
def test_pil_path_takes_columns_first_in_any_version_of_pillow(size: tuple[int, int]) -> None:
    image = picture(*size)
    assert torch.equal(preprocess_pil(image, CROP), rows_last(image, CROP))
    squashed = TF.resize(TF.resize(image, [size[1], 32], BICUBIC), [32, 32], BICUBIC)
    assert torch.equal(preprocess_pil(image, SQUASH), ToTensor()(squashed))


@pytest.mark.parametrize("size", [s for s in SIZES if s != (224, 224)], ids=str)
def test_tensor_path_is_torchvisions_resize_and_crop(size: tuple[int, int]) -> None:
    images = torch.cat([muted(picture(*size, seed=seed)) for seed in (0, 1)])
    result = resize_images(images, CROP)
    assert result.dtype == torch.float32
    assert result.shape == (2, 3, 224, 224)
    torch.testing.assert_close(result.double(), plain(images, CROP), atol=KERNEL, rtol=0)
    squashed = TF.resize(images.double(), [32, 32], BICUBIC, antialias=True)
    torch.testing.assert_close(resize_images(images, SQUASH).double(), squashed, atol=KERNEL, rtol=0)
    torch.testing.assert_close(resize_images(images, SMALL, "squash").double(), squashed, atol=KERNEL, rtol=0)


@pytest.mark.parametrize("resize", ["published", "squash"])
def test_tensor_and_pil_paths_agree_within_rounding(resize: str) -> None:
    """The tolerance that the module's docstring states, up- and downscaling."""
    largest, means = 0.0, []
    for width, height in [
        (16, 16),
        (60, 40),
        (150, 200),
        (225, 225),
        (300, 300),
        (300, 1000),
        (640, 960),
        (1024, 768),
    ]:
        image = picture(width, height, seed=width)
        for preprocessing in (CROP, Preprocessing("crop", 224, 224)):
            by_pillow = preprocess_pil(image, preprocessing, resize)  # type: ignore[arg-type]
            in_graph = resize_images(tensor(image), preprocessing, resize)[0]  # type: ignore[arg-type]
            difference = (by_pillow - in_graph).abs()
            largest = max(largest, difference.max().item())
            means.append(difference.mean().item())
    assert largest <= 1.2 * LEVEL
    assert max(means) <= 0.35 * LEVEL
    assert max(means) > 0.1 * LEVEL  # the Pillow path does round


def test_preprocessed_tensor_passes_bit_for_bit() -> None:
    """Also out of range: an attack's iterate is not the resize's to repair."""
    images = torch.randn(2, 3, 224, 224)
    for preprocessing in (CROP, Preprocessing("squash", 224, 224)):
        for resize in ("published", "squash", None):
            assert resize_images(images, preprocessing, resize) is images  # type: ignore[arg-type]


def test_pil_path_resizes_whatever_the_source_size() -> None:
    image = picture(224, 224)
    assert not torch.equal(preprocess_pil(image, CROP), tensor(image)[0])
    assert torch.equal(preprocess_pil(image, CROP, resize=None), tensor(image)[0])


def test_without_resize_another_size_raises() -> None:
    with pytest.raises(ValueError, match=r"224x224 \(height x width\), got 256x224"):
        resize_images(torch.rand(1, 3, 256, 224), CROP, None)
    with pytest.raises(ValueError, match=r"224x224 \(height x width\), got 10x20"):
        preprocess_pil(picture(20, 10), CROP, None)
    with pytest.raises(ValueError, match='"published", "squash" or None'):
        resize_images(torch.rand(1, 3, 256, 224), CROP, "crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode RGB, got L"):
        preprocess_pil(picture(20, 10).convert("L"), CROP)


@pytest.mark.parametrize(
    "size", [(600, 20), (20, 600), (1, 50), (9, 1), (400, 7), (7, 400), (700, 80), (90, 800), (3000, 260)]
)
def test_extreme_aspect_equals_resize_then_crop(size: tuple[int, int]) -> None:
    """The strip outside the crop is not computed; what is computed is the same."""
    image = picture(*size)
    images = muted(image)
    torch.testing.assert_close(resize_images(images, CROP).double(), plain(images, CROP), atol=KERNEL, rtol=0)
    reference = rows_last(image, CROP)
    torch.testing.assert_close(preprocess_pil(image, CROP), reference, atol=1.01 * LEVEL, rtol=0)
    torch.testing.assert_close(resize_images(tensor(image), CROP)[0], reference, atol=2.01 * LEVEL, rtol=0)


@pytest.mark.parametrize("size", [(200_000, 1), (1, 200_000)])
def test_extreme_aspect_is_cheap(size: tuple[int, int]) -> None:
    """Resized whole, this image would have 256 x 51,200,000 pixels: 157 GB."""
    images = torch.linspace(0, 1, 200_000).expand(1, 3, 1, -1).reshape(1, 3, size[1], size[0])
    start = time.process_time()
    result = resize_images(images, CROP)
    assert time.process_time() - start < 5
    torch.testing.assert_close(result, torch.full_like(result, 0.5), atol=1e-4, rtol=0)
    image = Image.fromarray(np.full((size[1], size[0], 3), 77, np.uint8))
    assert torch.equal(preprocess_pil(image, CROP), torch.full((3, 224, 224), 77 / 255))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 300), (33, 31), (90, 70)])
@pytest.mark.parametrize("resize", ["published", "squash"])
def test_gradient_is_that_of_the_linear_map(shape: tuple[int, int], resize: str) -> None:
    """A resize is linear away from the clamp: the slope along a direction is the resized direction."""
    generator = torch.Generator().manual_seed(0)
    images = (0.5 + 0.01 * torch.randn(2, 3, *shape, generator=generator)).requires_grad_()
    weights = torch.randn(2, 3, 32, 32, generator=generator)
    (resize_images(images, SMALL, resize) * weights).sum().backward()  # type: ignore[arg-type]
    assert images.grad is not None
    assert images.grad.isfinite().all()
    direction = 0.02 * torch.randn(2, 3, *shape, generator=generator)  # too small to reach the clamp
    grey = torch.full_like(direction, 0.5)
    moved = resize_images(grey + direction, SMALL, resize) - resize_images(grey, SMALL, resize)  # type: ignore[arg-type]
    torch.testing.assert_close((images.grad * direction).sum(), (moved * weights).sum(), atol=1e-3, rtol=1e-3)


def test_squash_gives_every_pixel_a_gradient_and_the_crop_does_not() -> None:
    preprocessing = Preprocessing("crop", 64, 56)
    images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    (cropped,) = torch.autograd.grad(resize_images(images, preprocessing).sum(), images)
    assert (cropped[..., 4:60, 4:60] == 1).all()
    assert cropped.sum() == 3 * 56 * 56
    (squashed,) = torch.autograd.grad(resize_images(images, preprocessing, "squash").sum(), images)
    assert (squashed > 0).all()


@pytest.mark.parametrize("side", [20, 50, 64])
def test_white_areas_keep_their_gradient(side: int) -> None:
    """Rounding puts half of a white area at 1 + 1e-7: a plain clamp would make it immovable."""
    gradients: list[Tensor] = []
    for value in (1.0, 0.0, 0.5):
        images = torch.full((1, 3, side, side), value, requires_grad=True)
        resized = resize_images(images, SMALL)
        assert (resized.min() >= 0) and (resized.max() <= 1)
        gradients += torch.autograd.grad(resized.sum(), images)
    assert torch.equal(gradients[0], gradients[2])
    assert torch.equal(gradients[1], gradients[2])


def test_overshoot_at_an_edge_is_clamped() -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    unclamped = TF.resize(images, [32, 32], BICUBIC, antialias=True)
    assert unclamped.max() > 1 + 4 * LEVEL
    for requires_grad in (False, True):
        result = resize_images(images.clone().requires_grad_(requires_grad), SQUASH)
        assert (result.min(), result.max()) == (0, 1)
        torch.testing.assert_close(result.detach(), unclamped.clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(48, 40), (5, 200), (200, 5)])
def test_autocast_and_half_images_resize_in_float32(shape: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = resize_images(images, SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize_images(images, SMALL), expected)
    assert torch.equal(resize_images(images.bfloat16(), SMALL), resize_images(images.bfloat16().float(), SMALL))


def test_preprocessing_survives_json_and_refuses_anything_else() -> None:
    preprocessing = Preprocessing("crop", 256, 224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    written = preprocessing.to_dict()
    assert Preprocessing.from_dict(json.loads(json.dumps(written))) == preprocessing
    assert Preprocessing.from_dict(written | {"mean": [0, 0, 0], "std": [1, 1, 1]}).std == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="Unknown preprocessing field antialias"):
        Preprocessing.from_dict(written | {"antialias": True})
    with pytest.raises(ValueError, match="Missing preprocessing field mean, std"):
        Preprocessing.from_dict({k: v for k, v in written.items() if k not in ("mean", "std")})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": "pad"}, "mode"),
        ({"resize": 223}, "resize"),
        ({"resize": 224.0}, "resize"),
        ({"crop": 0}, "crop"),
        ({"crop": True}, "crop"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"mean": CLIP_MEAN[:2]}, "mean"),
        ({"mean": list(CLIP_MEAN)}, "mean"),
        ({"std": (1.0, 1.0, math.nan)}, "std"),
        ({"std": (1.0, 1.0, 0.0)}, "std"),
        ({"mode": "squash"}, "resize"),
    ],
)
def test_wrong_preprocessing_names_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must"):
        replace(CROP, **change)  # type: ignore[arg-type]
