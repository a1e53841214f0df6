"""The distance as an ONNX file, for onnxruntime on a server, in a browser or on a phone (extra "onnx")."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rclip_metric.errors import MissingPackageError, StorageError, first_line
from rclip_metric.files import written_whole
from rclip_metric.metric import RobustPerceptualDistance

Output = Literal["distance", "embedding"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


class _Embedding(nn.Module):
    def __init__(self, metric: RobustPerceptualDistance) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, x: Tensor) -> Tensor:
        return self.metric.embed(x)


def export_onnx(metric: RobustPerceptualDistance, path: str | os.PathLike[str], output: Output = "distance") -> Path:
    """Write an ONNX file that computes the distance, or the embedding, of images of the encoder's own size.

    The batch may have any size when it runs; height and width are those that the encoder sees. Images of another size
    are resized beforehand (bicubic, antialiased, as `metric.preprocess` does), values are not checked, and the file has
    no gradients.

    Args:
        metric: In float32 on the CPU; its `squared` and `value_range` are part of the file.
        path: The file to write; one file with its weights, below 2 GB.
        output: "distance": inputs x and y (N, 3, S, S), output distance (N,). "embedding": input x, output embedding
            (N, D) of unit length; distances are sqrt(1 - <u, v>).

    Returns:
        The path.

    Raises:
        MissingPackageError: onnx and onnxscript are not installed: they are an extra.
        StorageError: The file cannot be written.
        ValueError: The encoder cannot be exported, is not in float32 or not on the CPU; or `output` is unknown.

    Example:
        >>> export_onnx(RobustPerceptualDistance("tiny"), "tiny.onnx", "everything")
        Traceback (most recent call last):
            ...
        ValueError: output must be distance or embedding, got 'everything'
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be distance or embedding, got {output!r}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f'an ONNX file needs {error.name}, which is in an extra: pip install "rclip-metric[onnx]"'
        ) from error
    encoder = metric.encoder
    dtype = next(encoder.parameters(), encoder.mean).dtype
    if metric.device.type != "cpu" or dtype != torch.float32:
        raise ValueError(f"the metric is {dtype} on {metric.device}, expected float32 on the CPU")
    side = encoder.image_size
    inputs = ("x", "y") if output == "distance" else ("x",)
    batch = torch.export.Dim("batch")
    low, high = metric.value_range
    examples = tuple(torch.full((2, 3, side, side), low + (high - low) * shade) for shade in (0.4, 0.6))[: len(inputs)]
    module: nn.Module = metric if output == "distance" else _Embedding(metric)
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    try:
        # It prints, and warns of what it does itself.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                examples,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes={name: {0: batch} for name in inputs},
                **settings,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{encoder.name} cannot be exported to ONNX: {first_line(cause)}") from error
    assert program is not None
    path = Path(path)
    try:
        with written_whole(path) as partial:
            program.save(partial)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or first_line(error)}.") from error
    return path
