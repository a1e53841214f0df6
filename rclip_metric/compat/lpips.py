"""What LPIPS's users call, with a robust model behind it: `import rclip_metric.compat.lpips as lpips`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rclip_metric.difference_map import difference_map
from rclip_metric.images import as_batch, open_image
from rclip_metric.metric import RobustPerceptualDistance

if TYPE_CHECKING:
    import numpy as np

    from rclip_metric.images import ImageSource

_NETS = ("alex", "vgg", "vgg16", "squeeze")
# What would make another network of LPIPS, and has no meaning for a frozen robust one: its only value.
_FIXED = {"pretrained": True, "lpips": True, "pnet_rand": False, "pnet_tune": False, "eval_mode": True}


class LPIPS(nn.Module):
    """A robust distance that is called as `lpips.LPIPS` is, of images in [-1, 1].

    Arguments keep their places and names. `net`, `version`, `use_dropout` and `verbose` are taken and change nothing:
    which model computes is said by `model`. As with LPIPS, lower is more alike and identical images have 0. Scores are
    on another scale: 1 - cos, from 0 to 2.

    Args:
        pretrained, lpips, pnet_rand, pnet_tune, eval_mode: Their defaults only.
        net: "alex", "vgg" or "squeeze".
        version: "0.1" or "0.0".
        spatial: Return a map of differences instead of one distance.
        use_dropout, verbose: Anything.
        model_path: None only; for weights of your own pass their path as `model`.
        model: As for `RobustPerceptualDistance`, the default being its default.
        settings: Further arguments of `RobustPerceptualDistance`. `squared` is True and `resize` is "squash" if left
            out, so that the loss is smooth at 0 and every pixel counts, as in LPIPS.

    Raises:
        ValueError: An argument asks for what a frozen robust model cannot be.
        WeightsError: The model cannot be had.

    Example:
        >>> import rclip_metric.compat.lpips as lpips
        >>> loss_fn = lpips.LPIPS(net="alex", model="tiny")
        >>> img0, img1 = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)  # in [-1, 1]
        >>> loss_fn(img0, img1).shape, loss_fn(img0, img0)
        (torch.Size([1, 1, 1, 1]), tensor([[[[0.]]]]))
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        model: Any = "r-clip-f",
        **settings: Any,
    ) -> None:
        """Load the robust model."""
        super().__init__()
        given = {"pretrained": pretrained, "lpips": lpips, "pnet_rand": pnet_rand, "pnet_tune": pnet_tune}
        for name, value in {**given, "eval_mode": eval_mode}.items():
            if value != _FIXED[name]:
                raise ValueError(f"{name}={value} is for LPIPS's own networks: a robust model is loaded and frozen")
        if net not in _NETS:
            raise ValueError(f"net must be one of {', '.join(_NETS)}, got {net!r}: a robust model is named by model=")
        if version not in ("0.1", "0.0"):
            raise ValueError(f'version must be "0.1" or "0.0", got {version!r}')
        if model_path is not None:
            raise ValueError("model_path is for LPIPS's own weights: pass the path of a robust model as model=")
        if "value_range" in settings:
            raise ValueError("value_range is (-1, 1) as in LPIPS: pass normalize=True with images in [0, 1]")
        self.spatial = spatial
        settings.setdefault("squared", True)
        settings.setdefault("resize", "squash")
        self.metric = RobustPerceptualDistance(model, **settings)
        self.training = False

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Tensor:
        """Compute the distance of each pair.

        Args:
            in0: (N, 3, H, W) or (1, 3, H, W) in [-1, 1], of any height and width; uint8 is 0 to 255.
            in1: Likewise; sizes may differ.
            retPerLayer: False only: the distance is of one embedding and no sum over layers.
            normalize: The images are in [0, 1].

        Returns:
            (N, 1, 1, 1), float32, in `metric.score_range`; with `spatial` (N, 1, H, W), the mean over levels of local
            features of 1 - cos, in [0, 2], over in0. Gradients reach the images that require them.

        Raises:
            ValueError: As `RobustPerceptualDistance.forward`; or `retPerLayer` is asked for.
        """
        if retPerLayer:
            raise ValueError("retPerLayer: a robust distance is of one embedding, no sum over layers; try spatial=True")
        if not normalize:
            metric = self.metric
            checks = metric.check_range, metric.out_of_range
            in0, in1 = (as_batch(images, (-1.0, 1.0), *checks) for images in (in0, in1))
        if not self.spatial:
            distance: Tensor = self.metric(in0, in1)
            return distance.view(-1, 1, 1, 1)
        x, y = self.metric._pair(in0, in1, None)
        count = max(len(x), len(y))
        x, y = x.expand(count, -1, -1, -1), y.expand(count, -1, -1, -1)
        return difference_map(self.metric.encoder, x, y)[:, None]

    def train(self, mode: bool = True) -> LPIPS:
        """Do nothing: the metric is always in eval mode."""
        return self


def load_image(path: ImageSource) -> np.ndarray[Any, Any]:
    """Read an image file as uint8 (H, W, 3) RGB, upright and on white.

    Raises:
        ImageError: It cannot be read.

    Example:
        >>> from PIL import Image
        >>> load_image(Image.new("RGB", (3, 2), "red"))[0, 0].tolist()
        [255, 0, 0]
    """
    import numpy as np

    return np.array(open_image(path))


def im2tensor(
    image: np.ndarray[Any, Any], imtype: Any = None, cent: float = 1.0, factor: float = 255.0 / 2.0
) -> Tensor:
    """Bring an array (H, W, 3) of 0 to 255 to a tensor (1, 3, H, W) in [-1, 1]: image / factor - cent.

    Example:
        >>> import numpy as np
        >>> im2tensor(np.full((4, 4, 3), 255, dtype=np.uint8))[0, :, 0, 0]
        tensor([1., 1., 1.])
    """
    return torch.from_numpy((image / factor - cent).transpose(2, 0, 1)[None].astype("float32"))


def tensor2im(
    image_tensor: Tensor, imtype: Any = "uint8", cent: float = 1.0, factor: float = 255.0 / 2.0
) -> np.ndarray[Any, Any]:
    """Bring the first image of a tensor (N, 3, H, W) in [-1, 1] to an array (H, W, 3): (image + cent) * factor.

    Example:
        >>> tensor2im(torch.ones(1, 3, 4, 4))[0, 0].tolist()
        [255, 255, 255]
    """
    image: np.ndarray[Any, Any] = image_tensor[0].detach().cpu().float().numpy().transpose(1, 2, 0)
    return ((image + cent) * factor).astype(imtype)
