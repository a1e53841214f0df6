"""Random crops and flips of the training stream, and input sizes that change during a run."""

import json

import pytest
import torch
from PIL import Image

import rclip_metric.train.finetuning.adversarial.loop as loop
from rclip_metric.encoder import ConvNeXtArchitecture, Encoder
from rclip_metric.images import Preprocessing, load_image
from rclip_metric.train.data import augmentation
from rclip_metric.train.data.augmentation import Augmentation
from rclip_metric.train.data.stream import open_stream
from rclip_metric.train.finetuning.adversarial import FinetuneConfig, RunConfig, Stage, finetune

SMALL = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), projection=16)


def ramp(width=200, height=100):
    """Red tells the column and green the row, so that a crop can be read off its corners."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    return image


def corners(image):
    first, last = image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))
    return first[0], first[1], last[0], last[1]


def test_crops_stay_inside_and_have_the_areas_and_shapes_that_are_promised():
    vary = Augmentation(scale=0.4, flip=False, seed=0)
    areas, ratios, lefts = [], [], []
    for step in range(400):
        crop = vary(ramp(), step, key=7)
        left, top, right, bottom = corners(crop)
        assert (right - left + 1, bottom - top + 1) == crop.size  # a part of the image, neither scaled nor mirrored
        areas.append(crop.width * crop.height / 20_000)
        ratios.append(crop.width / crop.height / 2)
        lefts.append(left)
    # Before cutting at the border the share is uniform in [0.4, 1]: its mean is 0.7, and cutting only lowers it.
    assert 0.38 < min(areas) < 0.45 and 0.6 < sum(areas) / 400 < 0.7 and max(areas) <= 1
    assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35
    assert min(lefts) == 0 and max(lefts) > 40


def test_half_of_the_images_are_mirrored():
    flips = [corners(Augmentation(1.0, True, seed=0)(ramp(), step, key=3)) for step in range(300)]
    assert set(flips) == {(0, 0, 199, 99), (199, 0, 0, 99)}
    assert abs(flips.count((199, 0, 0, 99)) - 150) < 45  # five standard deviations


def test_a_draw_belongs_to_seed_step_and_image():
    def draw(seed=0, step=0, key=0):
        return corners(Augmentation(0.3, True, seed)(ramp(), step, key))

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(step=1), draw(key=1)}) == 4


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{number:02d}.png")
    return root


def test_the_stream_varies_images_alike_for_any_number_of_workers_and_processes(tree):
    def preprocess(image):
        return load_image(image if not isinstance(image, Image.Image) else image.resize((16, 16)))

    def read(**settings):
        return list(
            open_stream(
                tree, preprocess, batch_size=6, seed=1, stop=4, augmentation=Augmentation(0.5, True, 1), **settings
            )
        )

    whole = read()
    assert not torch.equal(whole[0].images[0], preprocess(tree / f"{whole[0].keys[0]:02d}.png"))
    for workers in (0, 2):
        shares = [read(rank=rank, world=2, workers=workers) for rank in (0, 1)]
        for step, batch in enumerate(whole):
            for rank, share in enumerate(shares):
                assert share[step].keys == batch.keys[rank::2]
                assert torch.equal(share[step].images, batch.images[rank::2])
    late = read(start=2)
    assert all(torch.equal(one.images, two.images) for one, two in zip(whole[2:], late, strict=True))


def test_damage_is_of_four_kinds_and_every_strength(monkeypatch):
    told = []
    for name in ("Noise", "Blur", "Jpeg", "Light"):
        change = getattr(augmentation, name)

        def tell(*values, name=name, change=change, **more):
            told.append((name, values[0]))
            return change(*values, **more)

        monkeypatch.setattr(augmentation, name, tell)
    vary = Augmentation(1.0, False, seed=0, damage=0.5)
    image = ramp(300, 240)
    found = [vary(image, step, key=1) for step in range(800)]
    assert abs(len(told) - 400) < 71  # five standard deviations of 800 draws
    for picture in found:
        assert picture is image or picture.size == (280, 224)
    bounds = {"Noise": (0, 0.2), "Blur": (0, 0.02), "Jpeg": (2, 80), "Light": (-1, 1)}
    for name, (low, high) in bounds.items():
        values = [value for kind, value in told if kind == name]
        assert 60 < len(values) < 140 and low <= min(values) and max(values) <= high
        assert min(values) < low + 0.1 * (high - low) and max(values) > high - 0.1 * (high - low)
    gray = Image.new("RGB", (64, 64), (128, 128, 128))
    again = [vary(gray, step, key=1) for step in range(800)]
    assert all(one.tobytes() == vary(gray, step, key=1).tobytes() for step, one in enumerate(again[:40]))


def test_a_mixture_is_a_weighted_mean_with_uniform_weights():
    vary = Augmentation(1.0, False, seed=0, mixup=0.75)
    ones, zeros = torch.ones(3, 2, 2), torch.zeros(3, 2, 2)
    weights = [vary.mixed(ones, lambda: zeros, step, key=5) for step in range(2000)]
    assert all(torch.equal(image, torch.full_like(image, float(image[0, 0, 0]))) for image in weights)
    values = torch.stack(weights)[:, 0, 0, 0]
    mixed = values[values < 1]
    assert abs(len(mixed) - 1500) < 97  # five standard deviations of 2000 draws
    assert abs(float(mixed.mean()) - 0.5) < 0.038 and float(mixed.min()) < 0.01 and float(mixed.max()) > 0.99
    never = Augmentation(1.0, True, seed=0)
    assert never.mixed(ones, lambda: pytest.fail("the other image was read"), 0, 0) is ones


def test_an_image_is_mixed_with_the_next_of_the_whole_batch(tree):
    """With nothing but mixtures each image is one of its batch and the next, at the weight that its own draw says."""
    vary = Augmentation(1.0, False, seed=3, mixup=1.0)

    def read(**settings):
        return list(open_stream(tree, load_image, batch_size=5, seed=1, stop=3, augmentation=vary, **settings))

    whole = read()
    for step, batch in enumerate(whole):
        plain = [load_image(tree / f"{key:02d}.png") for key in batch.keys]
        for place, key in enumerate(batch.keys):
            other = plain[(place + 1) % len(plain)]
            expected = vary.mixed(plain[place], lambda other=other: other, step, key)
            assert torch.equal(batch.images[place], expected)
    for rank in (0, 1):
        for batch, share in zip(whole, read(rank=rank, world=2), strict=True):
            assert share.keys == batch.keys[rank::2] and torch.equal(share.images, batch.images[rank::2])


def test_an_image_stays_whole_where_its_partner_cannot_be_read(tree, tmp_path):
    for path in sorted(tree.iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "99.png").write_bytes(b"no image")
    vary = Augmentation(1.0, False, seed=3, mixup=1.0)
    (batch,) = open_stream(tmp_path, load_image, batch_size=4, seed=0, stop=1, augmentation=vary)
    assert batch.broken == [str(tmp_path / "99.png")]
    whole = [load_image(tmp_path / f"{key:02d}.png") for key in batch.keys]
    assert sum(torch.equal(image, own) for image, own in zip(batch.images, whole, strict=True)) == 1


def test_stages_share_out_the_steps():
    config = FinetuneConfig(steps=10, sizes=(32, 48), size_steps=5)
    assert config.stages(64) == [Stage(32, 0, 2), Stage(48, 2, 5), Stage(64, 5, 10)]
    assert FinetuneConfig(steps=10).stages(64) == [Stage(64, 0, 10)]
    assert FinetuneConfig(steps=4, sizes=(32,), size_steps=4).stages(64) == [Stage(32, 0, 4)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": (32.0,)}, "size_steps"),
        ({"size_steps": 3}, "size_steps"),
        ({"sizes": (32.5,), "size_steps": 3}, "32.5"),
        ({"sizes": (32.0,), "size_steps": 11}, "at most steps"),
        ({"crop_scale": 0.0}, "crop_scale"),
        ({"mixup": 1.5}, "mixup"),
        ({"damage": -0.1}, "damage"),
        ({"mixup": 0.5, "loss": "tecoa"}, "has no class"),
    ],
)
def test_settings_that_cannot_be_meant(wrong, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(steps=10, **wrong)


def test_preprocessing_of_another_size_keeps_the_share_that_is_cropped():
    assert Preprocessing("crop", 256, 224).at(112) == Preprocessing("crop", 128, 112)
    assert Preprocessing("squash", 224, 224).at(64) == Preprocessing("squash", 64, 64)


def test_a_run_goes_through_its_sizes_and_resumes_among_them(tree, tmp_path, monkeypatch):
    torch.manual_seed(0)
    original = Encoder(SMALL, Preprocessing("squash", 64, 64), name="small")
    config = FinetuneConfig(
        steps=6, warmup_steps=0, batch_size=6, inner_steps=1, learning_rate=1e-3, crop_scale=0.5, flip=True,
        sizes=(32.0, 48.0), size_steps=4,
    )  # fmt: skip
    run = RunConfig(save_every=3, log_every=1, precision="float32", validation_images=4, validate_every=2)
    seen = []
    forward = Encoder._embed

    def watched(self, images):
        seen.append(images.shape[-1])
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "_embed", watched)
        whole = finetune(original, tree, tmp_path / "whole", config, run, quiet=True)
    assert list(dict.fromkeys(seen)) == [32, 48, 64]
    assert whole.preprocessing == original.preprocessing
    saved = loop.save_state

    def crash(out, done, *args, **more):
        saved(out, done, *args, **more)
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_state", crash)
        finetune(original, tree, tmp_path / "cut", config, run, quiet=True)
    again = finetune(original, tree, tmp_path / "cut", config, run, validation=tree, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [4, 6]
