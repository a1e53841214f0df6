"""One pass for small batches, and decisions of half precision that are those of float32."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rclip_metric import Encoder, RobustPerceptualDistance, score_all
from rclip_metric.cli.main import main
from rclip_metric.retrieval import ImageIndex, search_again
from rclip_metric.second_look import crowded, slack_of, undecided

from support.encoders import CONVNEXT, VIT, small_encoder
from support.images import noise

MODELS = ["tiny", "tiny-clean", "r-lite-f", "vit", "convnext"]


def made(model: str) -> RobustPerceptualDistance:
    if model in ("vit", "convnext"):
        return RobustPerceptualDistance(
            small_encoder(VIT if model == "vit" else CONVNEXT, spread=True, layer_scale=0.5)
        )
    return RobustPerceptualDistance(model)


@pytest.fixture(scope="module", params=MODELS)
def metric(request: pytest.FixtureRequest) -> RobustPerceptualDistance:
    return made(request.param)


def passes(metric: RobustPerceptualDistance) -> list[int]:
    """The sizes of the batches that the encoder is given from now on."""
    sizes: list[int] = []
    metric.encoder.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    return sizes


def separately(metric: RobustPerceptualDistance, x: Tensor, y: Tensor) -> Tensor:
    """The formula, from two passes, in float64."""
    u, v = (F.normalize(metric.encoder(images).double(), dim=1) for images in (x, y))
    return ((u - v).square().sum(1) / 2).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 8, 33])
def test_one_pass_gives_what_two_give_and_identical_images_are_at_distance_zero(metric, count, dtype):
    metric = copy.deepcopy(metric).to(dtype)
    side = metric.encoder.image_size
    x, y = noise(count, 3, side, side, seed=1), noise(count, 3, side, side, seed=2)
    sizes = passes(metric)
    with torch.inference_mode():
        found = metric(x, y)
        joined = 2 * count <= (metric.encoder.chunk_size or 0)
        assert sizes == ([2 * count] if joined else [count, count])
        if joined:
            # A number that bfloat16 rounds the other way is 2^-9 away, where kernels of two sizes differ at all.
            atol = 1e-6 if dtype == torch.float32 else 2e-3
            torch.testing.assert_close(found.double(), separately(metric, x, y), atol=atol, rtol=1e-5)
            assert torch.equal(metric(y, x), found)
        assert metric(x, x.clone()).tolist() == [0.0] * count
        afc = metric.two_afc(y, x, x.clone())
        assert afc.tie.all() and afc.choice.tolist() == [0] * count


def test_images_of_two_sizes_are_resized_before_they_are_joined():
    metric = made("vit")
    x, y = noise(2, 3, 50, 40, seed=1), noise(1, 3, 32, 32, seed=2)
    sizes = passes(metric)
    found = metric(x, y)
    assert sizes == [3]
    torch.testing.assert_close(found.double(), separately(metric, x, y), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="32"):
        RobustPerceptualDistance(metric.encoder, resize=None)(x, y)


def test_an_image_that_requires_grad_goes_alone():
    metric = made("convnext")
    x, y, z = (noise(2, 3, 64, 64, seed=seed) for seed in (1, 2, 3))
    sizes = passes(metric)
    metric(x.requires_grad_(), y).sum().backward()
    assert sizes == [2, 2] and x.grad is not None and x.grad.abs().sum() > 0
    sizes.clear()
    metric.two_afc(x, y, z)
    assert sizes == [4, 2]  # what is fixed during an attack is one pass without a graph
    sizes.clear()
    with torch.no_grad():
        metric.two_afc(x, y, z)
    assert sizes == [6]


# The second look


def test_what_is_close():
    assert slack_of("tiny", torch.float32) == 0.0
    assert slack_of("tiny", torch.bfloat16) == 8 * slack_of("tiny", torch.float16) == 0.0018
    assert slack_of("somebody's", torch.bfloat16) == torch.finfo(torch.bfloat16).eps
    assert undecided(torch.tensor([-0.1, 0.01, torch.nan, 0.02]), 0.02).tolist() == [False, True, True, False]
    assert crowded(torch.tensor([0.1, 0.3, 0.31, 0.5]), 0.02).tolist() == [False, True, True, False]
    assert crowded(torch.tensor([0.1]), 0.02).tolist() == [False]


def blobs(count: int, seed: int) -> Tensor:
    """Images (count, 3, 64, 64) that a model tells apart."""
    return F.interpolate(noise(count, 3, 4, 4, seed=seed), (64, 64), mode="bilinear")


def blends(x: Tensor, y: Tensor, *shares: float) -> Tensor:
    return torch.cat([torch.lerp(x, y, share) for share in shares])


def close_triplets() -> tuple[Tensor, Tensor, Tensor]:
    """Eight triplets that bfloat16 cannot decide, and eight that it can."""
    x, y = blobs(8, seed=1), blobs(8, seed=2)
    return blends(x, y, 0.0, 0.0), blends(x, y, 0.3, 0.3), blends(x, y, 0.301, 0.6)


def test_close_decisions_of_bfloat16_are_those_of_float32():
    exact, half = RobustPerceptualDistance("tiny"), RobustPerceptualDistance("tiny").to(torch.bfloat16)
    rough = RobustPerceptualDistance("tiny", second_look=False).to(torch.bfloat16)
    triplets = close_triplets()
    right, plain, found = (one.two_afc(*triplets) for one in (exact, rough, half))
    apart = ((1 - plain.left_similarity).sqrt() - (1 - plain.right_similarity).sqrt()).abs()
    close = apart < half.slack
    assert 4 <= close.sum() < 12 and not torch.equal(plain.left_similarity, right.left_similarity)
    for field in ("left_similarity", "right_similarity"):
        one, plainly, exactly = (getattr(judged, field) for judged in (found, plain, right))
        torch.testing.assert_close(one[close], exactly[close], atol=1e-6, rtol=0)
        assert torch.equal(one[~close], plainly[~close])
    assert torch.equal(found.choice[close], right.choice[close])
    alone = half.two_afc(*(images[close][:1] for images in triplets))  # a batch of one, and one reference for all
    assert torch.equal(alone.choice, right.choice[close][:1])
    several = half.two_afc(triplets[0][:1], triplets[1], triplets[2])
    assert torch.equal(several.choice, exact.two_afc(triplets[0][:1], triplets[1], triplets[2]).choice)
    differentiated = half.two_afc(triplets[0].requires_grad_(), *triplets[1:])
    torch.testing.assert_close(differentiated.left_similarity, plain.left_similarity, atol=2e-3, rtol=0)
    assert not torch.equal(differentiated.left_similarity[close], found.left_similarity[close])


def weights_of(encoder: Encoder) -> list[Tensor]:
    return list(encoder.state_dict().values())


def test_the_float32_copy_has_the_weights_before_they_were_rounded():
    for given in ("tiny", small_encoder(CONVNEXT, spread=True)):
        expected = weights_of(RobustPerceptualDistance(given).encoder)
        half = RobustPerceptualDistance(given).to(torch.bfloat16)
        for twin in (half, copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
            assert twin._in_float32 is None  # not before it is asked for
            found = twin.in_float32()
            assert found is twin.in_float32() and found is not twin and found.in_float32() is found
            assert all(map(torch.equal, weights_of(found.encoder), expected))
        assert half.to(torch.float32)._in_float32 is None and half.in_float32() is half


def test_weights_that_were_changed_in_half_precision_are_widened():
    half = RobustPerceptualDistance("tiny", save_backbone=True).to(torch.bfloat16)
    half.load_state_dict({name: value.roll(1) for name, value in half.state_dict().items()})
    found = weights_of(half.in_float32().encoder)
    assert all(torch.equal(wide, now.float()) for wide, now in zip(found, weights_of(half.encoder), strict=True))
    unkept = RobustPerceptualDistance(small_encoder(CONVNEXT, spread=True), second_look=False).to(torch.bfloat16)
    for wide, now in zip(weights_of(unkept.in_float32().encoder), weights_of(unkept.encoder), strict=True):
        assert torch.equal(wide, now.float())


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and candidates of which many are closer to each other than bfloat16 can tell."""
    folder = tmp_path_factory.mktemp("gallery")
    x, y = blobs(1, seed=1), blobs(1, seed=2)
    pictures = {"reference": x[0], "far": y[0]}
    pictures |= {f"{number}": picture for number, picture in enumerate(blends(x, y, *torch.arange(0.3, 0.306, 0.0005)))}
    for name, picture in pictures.items():
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    return folder


def ranked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[str], str]:
    assert main([*map(str, arguments), "--model", "tiny", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out.splitlines()[0])
    hits = record["ranking"] if "ranking" in record else record["hits"]
    return [Path(hit.get("candidate") or hit["path"]).name for hit in hits], captured.err


def test_rank_and_search_in_bfloat16_have_the_order_of_float32(gallery, capsys):
    reference = gallery / "reference.png"
    for command in (["rank", reference, gallery], ["search", gallery, reference, "-k", 5]):
        expected, _ = ranked(capsys, *command)
        plain, said = ranked(capsys, *command, "--dtype", "bfloat16", "--no-second-look")
        assert plain != expected and "in float32" not in said
        found, said = ranked(capsys, *command, "--dtype", "bfloat16")
        assert found == expected and "images again in float32" in said


def test_a_file_that_has_gone_or_is_another_image_keeps_its_distance(gallery, tmp_path):
    files = {number: tmp_path / f"{number}.png" for number in (0, 1, 2, 3)}
    for number, file in files.items():
        file.write_bytes((gallery / f"{number}.png").read_bytes())
    half = RobustPerceptualDistance("tiny").to(torch.bfloat16)
    index = ImageIndex.build(tmp_path, half)
    unit = index.unit_embeddings(gallery / "reference.png")[0][0]
    hits = index.search(unit, k=4)
    files[0].unlink()
    files[1].write_bytes((gallery / "far.png").read_bytes())
    found, looked = search_again(index, gallery / "reference.png", unit, hits, batch_size=4, on_skip=pytest.fail)
    before = dict(zip(hits.ids, hits.distances.tolist(), strict=True))
    after = dict(zip(found.ids, found.distances.tolist(), strict=True))
    assert looked == 2 and before.keys() == after.keys()
    assert all((after[f"{number}.png"] == before[f"{number}.png"]) == (number < 2) for number in files)
    assert found.distances.tolist() == sorted(after.values())


Rows = dict[tuple[str, str], float]


def scored(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Rows, str]:
    assert main(["score", *map(str, arguments), "--model", "tiny", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    names = [record["header"].get("images", []) for record in rows if "header" in record]
    assert len(names) <= 1
    return {(Path(row["a"]).name, Path(row["b"]).name): row["distance"] for row in rows if "a" in row}, captured.err


def contested(full: Rows, half: Rows) -> float:
    """A limit that one pair is below in one precision, and above in the other, of images that differ."""
    pair = max((pair for pair in full if full[pair] > 0.05), key=lambda pair: abs(half[pair] - full[pair]))
    assert half[pair] != full[pair]
    return (half[pair] + full[pair]) / 2


@pytest.mark.parametrize("squared", [False, True])
def test_score_in_bfloat16_finds_the_pairs_below_a_limit_that_float32_finds(gallery, capsys, squared):
    options = ["--all-pairs", gallery, *(["--squared"] if squared else [])]
    full, _ = scored(capsys, *options)
    half, said = scored(capsys, *options, "--dtype", "bfloat16")
    assert "in float32" not in said  # nothing is decided
    limit = contested(full, half)
    expected = {pair for pair, distance in full.items() if distance < limit}
    asked = [*options, "--below", limit, "--dtype", "bfloat16"]
    plain, _ = scored(capsys, *asked, "--no-second-look")
    assert plain.keys() != expected
    found, said = scored(capsys, *asked)
    assert found.keys() == expected and "images again in float32" in said
    slack = RobustPerceptualDistance("tiny").to(torch.bfloat16).slack
    for pair, distance in found.items():
        apart, edge = (value**0.5 if squared else value for value in (half[pair], limit))
        close = abs(apart - edge) < slack
        assert distance == pytest.approx(full[pair] if close else half[pair], rel=1e-4, abs=1e-7)


def test_score_in_bfloat16_finds_the_nearest_that_float32_finds(gallery, capsys):
    options = ["--all-pairs", gallery, "--top", 3]
    expected, _ = scored(capsys, *options)
    plain, _ = scored(capsys, *options, "--dtype", "bfloat16", "--no-second-look")
    found, said = scored(capsys, *options, "--dtype", "bfloat16")
    assert list(found) == list(expected) != list(plain) and "images again in float32" in said
    half = RobustPerceptualDistance("tiny").to(torch.bfloat16)
    rows = list(score_all(gallery, half, top=3))
    assert [(row.a, row.b) for row in rows] == list(expected)
    limit = contested(expected, {pair: distance * 0.999 for pair, distance in expected.items()})
    both = [(row.a, row.b) for row in score_all(gallery, half, top=3, below=limit)]
    assert both == [pair for pair, distance in expected.items() if distance < limit]


def test_score_of_two_folders_in_bfloat16_decides_like_float32(gallery, tmp_path, capsys):
    reference = (gallery / "reference.png").read_bytes()
    for file in gallery.iterdir():
        (tmp_path / file.name).write_bytes(reference)
    full, _ = scored(capsys, gallery, tmp_path)
    half, _ = scored(capsys, gallery, tmp_path, "--dtype", "bfloat16")
    limit = contested(full, half)
    expected = [pair for pair, distance in full.items() if distance < limit]
    asked = [gallery, tmp_path, "--below", limit, "--dtype", "bfloat16", "--batch-size", "4"]
    plain, _ = scored(capsys, *asked, "--no-second-look")
    found, said = scored(capsys, *asked)
    assert list(found) == expected != list(plain) and "pairs again in float32" in said
