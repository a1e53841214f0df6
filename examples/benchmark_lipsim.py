"""What LipSim costs as published and as built here, and which ways to run its convolutions were tried.

    python examples/benchmark_lipsim.py
    python examples/benchmark_lipsim.py --batch-sizes 1 --repeats 9 --out results/

Weights are random (seeded) and the same for all; nothing is downloaded. Contestants take turns within one run, and the
figures are medians: only their ratios mean anything on another machine. Where others compute as well, threads that spin
while they wait hurt whoever has many short steps, which is ours: set OMP_WAIT_POLICY=PASSIVE there.

    whole network   forward, and forward + backward to the pixels: the published formulas (the constraint anew in every
                    pass; weights frozen), the same with the constraint folded into the weights, and ours
    convolutions    forward through the 20 layers, constraint folded in, each variant one step from another
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns, timed
from rclip_metric.train.metrics.lipsim import sll
from rclip_metric.train.metrics.lipsim.architecture import POOL, LipSimArchitecture
from rclip_metric.train.metrics.lipsim.model import LipSim
from rclip_metric.train.metrics.lipsim.published import folded, random_tensors

TOY = LipSimArchitecture(32, 9, 3, 3, 2, 16, 20)
State = Mapping[str, Tensor]


def images(count: int, size: int) -> Tensor:
    """(count, 3, S, S) in [0, 1]: smooth noise, a little like photographs."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def padded(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


# The whole network


def published(state: State, sizes: LipSimArchitecture, x: Tensor) -> Tensor:
    """The published formulas, the constraint in every pass."""
    x = padded(x, sizes.channels)
    for layer in range(sizes.depth):
        kernel, bias, q = (state[f"base.1.{layer}.{part}"] for part in ("kernel", "bias", "q"))
        gram = F.conv2d(kernel, kernel, padding=2).abs()
        t = 1 / ((-q).exp().view(-1, 1, 1, 1) * gram * q.exp().view(-1, 1, 1, 1)).sum((1, 2, 3))
        inner = t.view(1, -1, 1, 1) * F.relu(F.conv2d(x, kernel, padding=1) + bias)
        x = x - 2 * F.conv_transpose2d(inner, kernel, padding=1)
    x = F.avg_pool2d(F.avg_pool2d(x, 4, divisor_override=4), 4, divisor_override=4).flatten(1)
    for layer in range(1, sizes.linear_depth + 1):
        weight, bias, q = (state[f"base.2.{layer}.{part}"] for part in ("weight", "bias", "q"))
        t = 1 / ((-q).exp()[:, None] * (weight @ weight.t()) * q.exp()).abs().sum(1)
        x = x - 2 * F.linear(t * F.relu(F.linear(x, weight) + bias), weight.t())
    return x[:, : sizes.embedding]


def plain(tensors: State, sizes: LipSimArchitecture, x: Tensor) -> Tensor:
    """The constraint folded in, and nothing else done."""
    x = F.avg_pool2d(plain_convolutions(tensors, x), POOL, divisor_override=POOL).flatten(1)
    for weight, bias in zip(tensors["weights"], tensors["weight_biases"], strict=True):
        x = x - F.linear(F.relu(F.linear(x, weight, bias)), weight.t())
    return x[:, : sizes.embedding]


# The convolutions, (N, 3, H, W) -> (N, C, H, W)


def plain_convolutions(tensors: State, x: Tensor) -> Tensor:
    x = padded(x, tensors["kernels"].shape[2])
    for kernel, bias in zip(tensors["kernels"], tensors["kernel_biases"], strict=True):
        x = x - F.conv_transpose2d(F.relu(F.conv2d(x, kernel, bias, padding=1)), kernel, padding=1)
    return x


def channels_last(tensors: State, x: Tensor) -> Tensor:
    last = torch.channels_last
    x = padded(x, tensors["kernels"].shape[2]).contiguous(memory_format=last)
    for kernel, bias in zip(tensors["kernels"], tensors["kernel_biases"], strict=True):
        back = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=last)
        x.sub_(F.conv2d(F.conv2d(x, kernel.contiguous(memory_format=last), bias, padding=1).relu_(), back, padding=1))
    return x


def one_at_a_time(convolutions: Callable[[State, Tensor], Tensor]) -> Callable[[State, Tensor], Tensor]:
    return lambda tensors, x: torch.cat([convolutions(tensors, image) for image in x.split(1)])


def products(tensors: State, x: Tensor) -> Tensor:
    """One 1 x 1 product to 9 taps, moved and summed up; 9 moved copies, and one product of them back."""
    x = padded(x, tensors["kernels"].shape[2]).contiguous()
    (_, channels, height, width), inner = x.shape, tensors["kernels"].shape[1]
    hidden = x.new_zeros(inner, height + 2, width + 2)
    moved = x.new_empty(9, inner, height, width)
    for kernel, bias in zip(tensors["kernels"], tensors["kernel_biases"], strict=True):
        taps = kernel.permute(2, 3, 0, 1).reshape(9 * inner, channels)
        back = kernel.flip(2, 3).permute(1, 2, 3, 0).reshape(channels, 9 * inner)
        for image in x.flatten(2):
            spread = (taps @ image).view(3, 3, inner, height, width)
            total = x.new_zeros(inner, height + 2, width + 2)
            for i in range(3):
                for j in range(3):
                    total[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] += spread[i, j]
            hidden[:, 1:-1, 1:-1] = (total[:, 1:-1, 1:-1] + bias.view(-1, 1, 1)).relu_()
            for place in range(9):
                i, j = divmod(place, 3)
                moved[place] = hidden[:, i : i + height, j : j + width]
            image.addmm_(back, moved.flatten(0, 1).flatten(1), alpha=-1)
    return x


def unfolded(tensors: State, x: Tensor) -> Tensor:
    """A convolution to the few channels, `unfold`, and one product back."""
    x = padded(x, tensors["kernels"].shape[2]).contiguous()
    for kernel, bias in zip(tensors["kernels"], tensors["kernel_biases"], strict=True):
        back = kernel.flip(2, 3).transpose(0, 1).flatten(1)
        for image in x.split(1):
            few = F.conv2d(image, kernel, bias, padding=1).relu_()
            image.flatten(2)[0].addmm_(back, F.unfold(few, 3, padding=1)[0], alpha=-1)
    return x


def ours(tensors: State, x: Tensor) -> Tensor:
    """As built, without the pooling."""
    return sll.convolutions(x, tensors["kernels"], tensors["kernel_biases"], 1)


def whole_lanes_off(tensors: State, x: Tensor) -> Tensor:
    """As built, but with 45 and 5 channels instead of 48 and 8."""
    lanes, sll._LANES = sll._LANES, 1
    try:
        return ours(tensors, x)
    finally:
        sll._LANES = lanes


VARIANTS: dict[str, Callable[[State, Tensor], Tensor]] = {
    "plain": plain_convolutions,
    "plain, one image at a time": one_at_a_time(plain_convolutions),
    "products": products,
    "unfold and product": unfolded,
    "channels last": channels_last,
    "channels last, one image at a time": one_at_a_time(channels_last),
    "ours, channels not padded": whole_lanes_off,
    "ours": ours,
}


# Measuring


def without_graph(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.inference_mode():
            return run(x)

    return forward


def with_gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(run(leaf).square().sum(), leaf)[0]

    return step


def compare(runs: Mapping[str, Callable[[], Tensor]], count: int, repeats: int) -> dict[str, Any]:
    """Images per second, how many times faster than the first, and the relative difference from its result."""
    results = {name: run() for name, run in runs.items()}
    first = next(iter(results))
    expected = results[first]
    difference = {name: ((value - expected).norm() / expected.norm()).item() for name, value in results.items()}
    del results, expected
    turns = take_turns(runs, repeats)
    return {
        name: {
            "images per second": count / statistics.median(turns.times[name].wall),
            "times faster": turns.ratio(first, name, "wall"),
            "times faster, processor": turns.ratio(first, name),
            "relative difference": difference[name],
        }
        for name in runs
    }


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    print(f"{title:<50} images/s  times faster  processor  difference")
    for name, row in rows.items():
        speed, factor, processor, difference = row.values()
        print(f"  {name:<48} {speed:>8.3f}  {factor:>12.2f}  {processor:>9.2f}  {difference:>10.1e}")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8], metavar="N")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this .json, or to one in this folder")
    parser.add_argument("--toy", action="store_true", help="a network of a few thousand parameters, to try it out")
    arguments = parser.parse_args(argv)

    sizes = TOY if arguments.toy else LipSimArchitecture()
    state = random_tensors(sizes)
    folding, _, tensors = timed(lambda: folded(sizes, state))
    network = LipSim(sizes, tensors)
    settings = {"batch sizes": arguments.batch_sizes, "repeats": arguments.repeats, "image size": sizes.image_size}
    report = Report("benchmark_lipsim", arguments.out, settings | {"toy": arguments.toy})
    report.add("folding seconds", folding)
    print(f"folding the constraint into the weights, once: {folding:.2f} s")
    for count in arguments.batch_sizes:
        x = images(count, sizes.image_size)
        whole: dict[str, Callable[[Tensor], Tensor]] = {
            "published": lambda x: published(state, sizes, x),
            "constraint folded in": lambda x: plain(tensors, sizes, x),
            "ours": network,
        }
        parts = {
            "forward": {name: without_graph(run, x) for name, run in whole.items()},
            "forward and backward": {name: with_gradient(run, x) for name, run in whole.items()},
            "convolutions, forward": {name: without_graph(partial(run, tensors), x) for name, run in VARIANTS.items()},
        }
        for part, runs in parts.items():
            title = f"{part}, batch {count}"
            report.add(title, compare(runs, count, arguments.repeats))
            table(title, report.record["results"][title])
    return report.record


if __name__ == "__main__":
    main()
