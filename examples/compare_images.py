"""Compare two images: how far apart are they to a robust eye?

    python examples/compare_images.py A.png B.png
    python examples/compare_images.py A.png B.png --model r-clip-f

The default model, tiny, ships with the package and needs no network; the numbers that people publish are those of
r-clip-f, which is downloaded once.
"""

import argparse
from collections.abc import Sequence

import torch

from rclip_metric import RobustPerceptualDistance


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Print and return distance and similarity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="an image file")
    parser.add_argument("b", help="another one; it may have another size")
    parser.add_argument("--model", default="tiny", help="name, path or Hub id (default: %(default)s)")
    parser.add_argument("--resize", choices=["published", "squash"], default="published")
    arguments = parser.parse_args(argv)

    metric = RobustPerceptualDistance(arguments.model, resize=arguments.resize)
    # Pillow's resize and crop, as behind the published numbers; tensors of any size may also go straight in.
    a, b = (metric.preprocess(path).unsqueeze(0) for path in (arguments.a, arguments.b))  # (1, 3, S, S)
    with torch.no_grad():
        distance = metric(a, b).item()
        similarity = metric.similarity(a, b).item()

    # A number without its model, revision and preprocessing is not a result.
    print(metric)
    print(f"distance    {distance:.4f}   in [0, {metric.score_range[1]:.4f}], 0 = the same, lower is more alike")
    print(f"similarity  {similarity:.4f}   in [-1, 1], 1 = the same")
    return distance, similarity


if __name__ == "__main__":
    main()
