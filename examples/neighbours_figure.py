"""Draw the example of `rclip-metric eval neighbours` that is in results/neighbours: scenes, which anybody may publish.

    python examples/neighbours_figure.py [OUT]        # default: results/neighbours; a minute on two cores

Four hundred scenes are drawn, three others are the queries, and `tiny`, the encoder that it was made robust from, and
the distance of pixels look for them. The picture is stored in 256 colours, which is a fifth of its size.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from rclip_metric.cli.main import main
from rclip_metric.train.data.scenes import ScenesConfig, write_scenes

MODELS = ("tiny", "tiny-clean", "l2")
SETTINGS = {"--count": 3, "--seed": 4, "-k": 3, "--eps": "4/255", "--device": "cpu"}


def draw(out: Path, *, pool: int = 50, steps: int = 50) -> int:
    """Write the results and neighbours.png into a folder, of so many images of each class; the exit code."""
    with tempfile.TemporaryDirectory() as place:
        scenes = Path(place, "scenes")
        write_scenes(scenes, ScenesConfig(images=1, triplets=(0, 0, 1), pool=pool, queries=20), quiet=True)
        words = ["eval", "neighbours", "--database", scenes / "classes" / "pool", "--model", *MODELS]
        words += ["--queries", scenes / "classes" / "query", "--out", Path(place, "out"), "--quiet"]
        words += [word for setting in {**SETTINGS, "--steps": steps}.items() for word in setting]
        code = main([str(word) for word in words])
        if code == 0:
            out.mkdir(parents=True, exist_ok=True)
            for result in Path(place, "out").glob("*.json"):
                shutil.copy(result, out / result.name)
            with Image.open(Path(place, "out", "neighbours.png")) as figure:
                whole, method = figure.convert("RGB"), Image.Quantize.MAXCOVERAGE
            few = whole.quantize(256, method, kmeans=3, dither=Image.Dither.NONE)
            few.save(out / "neighbours.png", optimize=True)
        return code


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "results" / "neighbours"
    sys.exit(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
