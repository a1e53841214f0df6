"""BatchNorms folded into convolutions: the same numbers, and nothing stale."""

import copy
import io

import pytest
import torch
from torch import nn

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder, timm_architecture
from rclip_metric.encoder.folding import FoldedTower, folded
from rclip_metric.images import Preprocessing
from rclip_metric.train.finetuning.adversarial.inner import attacked_copy, refresh

from support.images import noise

SIZE = 48


def make(model: str = "tf_efficientnet_lite0", size: int = SIZE) -> Encoder:
    """A seeded encoder whose BatchNorms have weights and statistics of their own, as trained ones do."""
    torch.manual_seed(0)
    encoder = Encoder(timm_architecture(model, image_size=size), Preprocessing("squash", size, size)).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(std=0.2)
                module.get_buffer("running_mean").normal_(std=0.2)
                module.get_buffer("running_var").uniform_(0.7, 1.3)
    return encoder


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return make().requires_grad_(False)


def images(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return noise(count, 3, size, size, seed=1)


def plain(encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    other = copy.deepcopy(encoder)
    other.folding = False
    return other(pixels)


def near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max())


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050", "regnetx_002"])
def test_embeddings_are_those_of_the_tower_itself(model):
    encoder = make(model).requires_grad_(False)
    with torch.no_grad():
        assert near(encoder(images()), plain(encoder, images()), 2e-5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert isinstance(encoder._folded, FoldedTower) and len(encoder._folded.pairs) == norms > 10


def test_the_folded_weights_are_the_formula():
    """One convolution with a bias and its BatchNorm, against W' and b' as they are written down."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    norm = net[1]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    found = folded(net, 8)
    assert found is not None and found.pairs == [("0", "1")]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    weights = found._weights(net)
    assert torch.allclose(weights["0.weight"], net[0].weight * gain[:, None, None, None], atol=1e-6)
    assert torch.allclose(weights["0.bias"], norm.bias + (net[0].bias - norm.running_mean) * gain, atol=1e-6)


class _Twice(nn.Module):
    """A convolution whose output goes to its BatchNorm and past it: folding would change what goes past."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.get_buffer("running_var").uniform_(2, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.convolution(pixels)
        return (self.norm(features) + features).mean((2, 3))


def test_what_would_not_compute_the_same_is_left_alone():
    assert folded(_Twice().eval(), 8) is None
    assert folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval(), 8) is None
    shared = nn.Conv2d(3, 3, 1)
    assert folded(nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3)).eval(), 8) is None


def test_gradients_reach_pixels_and_the_weights_of_the_tower():
    encoder, pixels = make("resnet18").double(), images().double().requires_grad_()
    other = copy.deepcopy(encoder)
    other.folding = False
    for one in (encoder, other):
        one.tower(one.tower.trunk.conv1.weight.new_zeros(1, 3, SIZE, SIZE))
    parameters = [list(one.parameters()) for one in (encoder, other)]
    got = torch.autograd.grad(encoder(pixels).square().sum(), [pixels, *parameters[0]])
    wanted = torch.autograd.grad(other(pixels).square().sum(), [pixels, *parameters[1]])
    assert encoder._folded and not other._folded
    for one, two in zip(got, wanted, strict=True):
        assert near(one, two, 1e-6) or two.abs().max() < 1e-9


def test_changed_weights_and_statistics_are_seen(lite):
    encoder = copy.deepcopy(lite)
    with torch.no_grad():
        before = encoder(images())
        next(encoder.parameters()).mul_(1.5)
        assert near(encoder(images()), plain(encoder, images()), 2e-5) and not near(encoder(images()), before, 1e-3)
        next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(1)
        assert near(encoder(images()), plain(encoder, images()), 2e-5)
        encoder.load_state_dict(lite.state_dict())
        assert near(encoder(images()), before, 1e-6)
        encoder.load_state_dict(make("tf_efficientnet_lite0").state_dict(), assign=True)
        assert near(encoder(images()), plain(encoder, images()), 2e-5)


def test_an_update_of_shared_weights_is_seen_by_the_attacked_copy():
    encoder = make().requires_grad_(True)
    twin = attacked_copy(encoder, bfloat16=False)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.01)
    with torch.no_grad():
        before = twin(images())
    encoder(images()).sum().backward()
    optimizer.step()
    refresh(twin, encoder)
    with torch.no_grad():
        assert near(twin(images()), plain(encoder, images()), 2e-5) and not near(twin(images()), before, 1e-3)


def test_train_mode_checkpointing_and_the_switch_use_the_tower_itself():
    encoder = make()
    encoder.folding = False
    encoder(images())
    assert encoder._folded is None
    encoder.folding = True
    encoder.train()
    encoder(images())
    assert encoder._folded is None
    encoder.eval()
    encoder.checkpointing = True
    encoder(images())
    assert encoder._folded is None
    encoder.requires_grad_(False)
    encoder(images())
    assert encoder._folded


def test_it_is_made_anew_after_moves_and_copies_and_is_never_saved(lite):
    encoder = copy.deepcopy(lite)
    with torch.inference_mode():
        encoder(images())
    keys = list(encoder.state_dict())
    assert encoder._folded and keys == list(lite.state_dict()) and not any("twin" in key for key in keys)
    pixels = images().requires_grad_()
    assert torch.autograd.grad(encoder(pixels).sum(), pixels)[0].abs().sum() > 0  # though it was made in inference mode
    buffer = io.BytesIO()
    torch.save(encoder, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False)._folded is None and copy.deepcopy(encoder)._folded is None
    assert encoder.double()._folded is None
    with torch.no_grad():
        assert near(encoder(images()), lite(images()), 1e-5)


def test_a_metric_scores_with_it_in_float32_and_bfloat16(lite):
    metric = RobustPerceptualDistance(lite)
    x, y = images(2), images(4)[2:]
    score = metric(x, y)
    assert metric.encoder._folded and not metric.encoder.training
    other = copy.deepcopy(lite)
    other.folding = False
    assert torch.allclose(score, RobustPerceptualDistance(other)(x, y), atol=2e-5)
    assert torch.allclose(metric.to(torch.bfloat16)(x, y), score, atol=0.02)
