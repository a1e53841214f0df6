"""The arguments of `rclip-metric eval`, and what --norm and --eps mean together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.printing import Parser
from rclip_metric.train.attacks.norms import NORMS
from rclip_metric.train.metrics.paper import TWO_AFC_RADII
from rclip_metric.train.runs.config import count, positive, radius

if TYPE_CHECKING:
    from rclip_metric.train.attacks.threat import LpBall

_ABOUT = "How well a metric agrees with people, clean and under attack."
_EPILOG = """\
Any other metric: --model MODULE:FUNCTION calls the function with the device and expects an object as described in
train/metrics/base.py (EmbeddingMetric and DistanceMetric there wrap plain functions).

Several processes or machines: torchrun --nproc-per-node N -m rclip_metric eval ... gives the same numbers as one
process. With --out, an interrupted run goes on where it stopped when the same command is given again.

The paper's numbers stand beside a result on the paper's data alone. These are recognised by their number and by a
digest of ids and labels where it is known here; it is known of none yet, so --published has to say that they are it.
"""


def build_parser(run: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Build the parser; `eval` is the first word.

    Args:
        run: the function behind each task, which gets the parsed arguments.
    """
    parser = Parser(prog="rclip-metric")
    group = parser.add_subparsers(dest="group", required=True)
    commands = group.add_parser("eval", help="judge metrics", description=_ABOUT).add_subparsers(
        dest="task", required=True, metavar="TASK"
    )
    judged, people = _judged_options(), _set_options()

    def add(task: str, words: str, own: Callable[[argparse.ArgumentParser], None], *shared: Any, **layout: Any) -> None:
        task_parser = commands.add_parser(task, parents=shared, help=words, **layout)
        own(task_parser)
        task_parser.set_defaults(run=run[task])

    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EPILOG}
    attack, no_attack = _attack_options("apgd"), _attack_options("none")
    certify, noise_alone = _certify_options("smoothing", "lipschitz"), _certify_options("smoothing")
    sanity = "can the robust accuracy be trusted: the paper's checks, with a verdict"
    add("nights", "2AFC in the NIGHTS format", _nights_options, judged, people, attack, certify, **raw)
    add("bapps", "2AFC in the BAPPS format", _bapps_options, judged, people, attack, certify, **raw)
    add("jnd", "just noticeable differences: mAP on the other half of BAPPS", _jnd_options, judged, **raw)
    add("things", "odd-one-out in the THINGS format", _things_options, judged, people, no_attack, noise_alone, **raw)
    add("zeroshot", "zero-shot classification of a folder per class", _zeroshot_options, judged, _name_options(), **raw)
    add("cue-conflict", "shape or texture: the share of decisions for shape", _cue_conflict_options, judged, **raw)
    neighbours = "nearest neighbours of queries, clean and under attack: a figure and a page"
    add("neighbours", neighbours, _neighbours_options, _run_options(), **raw)
    add(
        "filter",
        "a content filter by examples: where queries land",
        _filter_options,
        judged,
        _name_options(),
        noise_alone,
        **raw,
    )
    add("retrieval", "mAP of retrieval, clean and under attack", _retrieval_options, judged, _name_options(), **raw)
    # With options of its own: a default that is set for shared ones is set for all that share them.
    add("inversion", "images from embeddings, judged by every metric", _inversion_options, _judged_options(), **raw)
    add("sanity", sanity, _sanity_options, judged, people, **raw)
    add("table", "results as a leaderboard and as plots", _table_options)
    return parser


def _nights_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test", help="train, val, test, test_imagenet or test_no_imagenet")
    parser.add_argument(
        "--attacked",
        type=positive,
        metavar="N",
        help="triplets that are attacked, at equal steps "
        "through the set, kind by kind (default: all); the clean accuracy is that of all",
    )


def _bapps_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=("majority", "lpips", "dreamsim", "majority-bicubic", "soft"),
        default="majority",
        help="majority: right is what most people chose, images straight to the model's size, bilinear (this paper); "
        "lpips: the share of people agreed with, images at 64 px, bilinear, a mean over splits; dreamsim: the same at "
        "224 px, bicubic, over triplets; majority-bicubic, soft: majority and lpips with bicubic resizing, as earlier "
        "versions had them. Default: %(default)s",
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: all six")
    parser.add_argument(
        "--attacked",
        type=positive,
        default=1000,
        metavar="N",
        help="triplets that are attacked, the first of each split (default: %(default)s)",
    )


def _jnd_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: traditional and cnn")
    parser.add_argument("--name", help="of the data set, for tables (default: the folder's)")


def _things_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, help="the tab-separated triplets (default: the one in --data)")
    parser.add_argument("--images", type=Path, help="folder, or list of one path per line (default: DATA/images)")


def _zeroshot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        default="imagenet",
        help="imagenet, imagenet-simple, imagenet-tecoa, simple, "
        "scenes, scenes-grounds, scenes-pairs, or a JSON file (default: %(default)s)",
    )
    parser.add_argument("--text", help="where the text tower comes from (default: what goes with the model)")
    parser.add_argument("--per-class", type=positive, help="only the first N images of each class")
    parser.add_argument("--attack", choices=("apgd", "none"), default="apgd", help="apgd: CE, then targeted DLR")
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", nargs="+", type=radius, help="default: 2/255 4/255")
    parser.add_argument("--steps", type=count, default=100, help="per APGD run (default: %(default)s)")
    parser.add_argument("--targets", type=positive, default=9, help="of APGD-T (default: %(default)s)")


def _cue_conflict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="CSV",
        help="a table with the columns class (like airplane1-bicycle2, shape first) and file, relative "
        "to the table's folder (default: the files are called so)",
    )
    parser.add_argument(
        "--draws", type=positive, default=10, metavar="N", help="pairs of options per reference (default: %(default)s)"
    )
    parser.add_argument("--name", help="of the data set, for tables (default: the folder's)")
    parser.add_argument(
        "--resample",
        choices=("samples", "images"),
        default="images",
        help="what the 95 %% interval is about: other draws, or other images as well (default: %(default)s)",
    )


def _neighbours_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", type=Path, metavar="DIR|INDEX", help="images to find: a folder, or an index")
    parser.add_argument("--sample", type=positive, metavar="N", help="only N images of the folder, at random by --seed")
    parser.add_argument("--queries", type=Path, nargs="+", metavar="DIR|FILE", help="a folder, or image files")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="of them, N at random by --seed (default: all files, 4 of a folder)"
    )
    parser.add_argument("-k", type=positive, default=5, metavar="K", help="neighbours (default: %(default)s)")
    parser.add_argument("--norm", choices=NORMS, default="linf", help="default: %(default)s")
    parser.add_argument("--eps", type=radius, default=4 / 255, help="default: 4/255, the paper's")
    parser.add_argument("--steps", type=count, default=50, help="of APGD (default: %(default)s, the figure's)")


def _filter_options(parser: argparse.ArgumentParser) -> None:
    roles = ("safe", "buffer", "unsafe")
    for role, usual in (("safe", "safe or neutral, else all the rest"), ("buffer", "buffer or sexy"),
                        ("unsafe", "unsafe or porn")):  # fmt: skip
        parser.add_argument(f"--{role}", nargs="+", metavar="CLASS", help=f"classes that are {role} (default: {usual})")
    parser.add_argument("--no-buffer", action="store_true", help="leave the buffer out of the pool")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="CSV",
        help="a table with the columns class and file, relative to the table's folder (default: a folder per class)",
    )
    parser.add_argument("--query", choices=roles, help="only queries of this role, with --target (default: both ways)")
    parser.add_argument("--target", choices=roles, help="the role that they shall pass for")
    parser.add_argument("--pool-size", type=positive, metavar="N", help="images per role in the pool (default: 500)")
    parser.add_argument("--targets", type=positive, metavar="N", help="images that are aimed at (default: 16)")
    parser.add_argument("--queries", type=positive, metavar="N", help="per role that is queried (default: 1000)")
    parser.add_argument(
        "--detector", nargs="+", default=[], metavar="NAME", help="of unsafe images, alone and together with the filter"
    )
    parser.add_argument("--attack", choices=("apgd", "none"), default="apgd", help="default: %(default)s")
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", nargs="+", type=radius, help="default: 8/255")
    parser.add_argument("--steps", type=count, default=200, help="per APGD run (default: %(default)s)")
    parser.add_argument("--adaptive", action="store_true", help="also an attacker who knows the pool")


def _retrieval_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "--data roxford5k:DIR or rparis6k:DIR (gnd_NAME.pkl as published and jpg/ in DIR), classes:DIR (a folder per "
        "class, whose images are to find each other; or folders query and database with such folders), or "
        "pairs:FILE.csv (columns query, image and perhaps kind: easy, hard, junk or other)."
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="CSV",
        help="classes: a table with the columns class and file (relative to the table's folder) in place of folders",
    )
    parser.add_argument("--attack", choices=("apgd", "square", "noise", "none"), default="apgd", help="on the queries")
    parser.add_argument("--norm", nargs="+", choices=NORMS, default=["linf"], help="default: linf")
    parser.add_argument("--eps", nargs="+", type=radius, help="a radius per norm (default: 4/255, the paper's)")
    parser.add_argument("--steps", type=count, help="iterations (default: 100), queries of square (5000)")
    parser.add_argument("--restarts", type=positive, default=1, help="of APGD (default: %(default)s)")
    parser.add_argument(
        "--adaptive",
        action="store_true",
        help="attack as well with knowledge of the database: away from what belongs to a query, towards what does not",
    )
    parser.set_defaults(loss="ce", larger_eps=False)  # the task's own losses take its place


def _inversion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge", nargs="+", default=[], metavar="MODEL", help="metrics that only judge, such as ssim")
    parser.add_argument("--method", choices=("apgd", "multi-view"), default="apgd", help="default: %(default)s")
    parser.add_argument("--steps", type=count, metavar="N", help="iterations (default: 500; of multi-view 1000)")
    parser.add_argument("--name", help="of the data set, for tables (default: the folder's)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write what is made, as PNG")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="heat map: .png, .svg or .pdf (extra: plot)")
    parser.set_defaults(batch_size=8)


def _sanity_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test")
    parser.add_argument("--norm", nargs="+", choices=NORMS)
    parser.add_argument("--eps", nargs="+", type=radius)
    parser.add_argument("--steps", type=positive, default=100)
    parser.add_argument("--iterations", nargs="+", type=positive, default=[50, 100, 200, 500, 1000])
    parser.add_argument("--queries", type=positive, default=5000, help="of the Square Attack")
    parser.add_argument("--draws", type=positive, default=100, help="of random noise")
    parser.add_argument("--source", metavar="CLEAN", help="clean model for the transferred attack (default: left out)")


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="files or folders of results")
    parser.add_argument("--format", choices=("markdown", "csv", "html"), default="markdown")
    parser.add_argument("--by", choices=("split", "kind"), help="a row per split, or per kind of triplet, instead")
    parser.add_argument("--out", type=Path, help="file for the table (default: printed)")
    parser.add_argument("--plot", type=Path, help="accuracy against eps: .png, .svg or .pdf (extra: plot)")
    parser.add_argument("--sweep", type=Path, help="accuracy against iterations: .png, .svg or .pdf (extra: plot)")


def _name_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--name", help="of the data set, for tables (default: the folder's)")
    options.add_argument(
        "--published",
        action="store_true",
        help="these are the data of the paper: its numbers shall stand beside the results. Refused if the number of "
        "samples, or their digest where it is known, is another",
    )
    return options


def _set_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_name_options()])
    options.add_argument(
        "--resample",
        choices=("samples", "images"),
        default="samples",
        help="what 95 %% intervals are about: other samples, or other images as well, where few images stand behind "
        "many samples (default: %(default)s)",
    )
    return options


def _run_options() -> argparse.ArgumentParser:
    """Who is judged and how it runs, whatever the data."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", nargs="+", help="names, paths, Hub ids, or MODULE:FUNCTION")
    options.add_argument("--out", type=Path, help="folder for the results, one JSON per model and threat; resumes")
    options.add_argument("--overwrite", action="store_true", help="replace results of other settings")
    options.add_argument(
        "--preset", choices=("paper",), help="print the paper's settings, which are the defaults, and stop"
    )
    options.add_argument("--seed", type=count, default=0, help="of the random starts (default: %(default)s)")
    options.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="samples in a block, the unit of work and of what is resumed: where most are fooled at once, larger ones "
        "keep the passes of the others fuller (default: two passes, at least 64; of --certify smoothing, which makes "
        "many draws, 1)",
    )
    options.add_argument(
        "--chunk-size", type=positive, metavar="N", help="images per pass (default: by device and size)"
    )
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    options.add_argument("--quiet", action="store_true", help="no progress bar")
    return options


def _judged_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_run_options()])
    options.add_argument("--data", type=Path, help="folder of the set (things: or its table)")
    options.add_argument(
        "--allow-outside",
        action="store_true",
        help="paths in the set's tables (data.csv, a list of images) may lead out of its folder",
    )
    options.add_argument(
        "--check", action="store_true", help="only read every image of the set, and say what is broken"
    )
    options.add_argument("--limit", type=positive, metavar="N", help="only the first N samples")
    options.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of the attack's own passes; successes are always confirmed in float32. auto: bfloat16 where the device "
        "is fast at it (default: %(default)s, as in the paper)",
    )
    return options


def _attack_options(default: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--attack", choices=("apgd", "square", "noise", "none"), default=default, help="default: %(default)s"
    )
    options.add_argument("--norm", nargs="+", choices=NORMS, help="default: linf l2")
    options.add_argument(
        "--eps",
        nargs="+",
        type=radius,
        help="a radius per norm, or several for one norm (default: 4/255 3, the paper's)",
    )
    options.add_argument("--steps", type=count, help="iterations (default: 100), queries of square (5000)")
    options.add_argument("--restarts", type=positive, default=1, help="of APGD (default: %(default)s)")
    options.add_argument("--loss", choices=("ce", "margin"), default="ce", help="that is raised (default: %(default)s)")
    options.add_argument("--larger-eps", action="store_true", help="APGD begins in balls of 3 and 2 times the radius")
    return options


def _certify_options(*kinds: str) -> argparse.ArgumentParser:
    """What is proven beside what is attacked; --attack none leaves the certificates alone."""
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group(
        "certificates", "beside the attack, and with --attack none alone: what no l2 perturbation can change"
    )
    lipschitz = "; lipschitz: exact, of metrics that can prove it by themselves" if "lipschitz" in kinds else ""
    group.add_argument(
        "--certify",
        nargs="+",
        choices=kinds,
        default=[],
        metavar="KIND",
        help="smoothing: of any metric with Gaussian noise on the reference (things: all three images; filter: the "
        "query), at a confidence (Cohen et al. 2019)" + lipschitz,
    )
    group.add_argument(
        "--radius",
        nargs="+",
        type=radius,
        metavar="R",
        help="l2 radii, in [0, 1] pixels of the metric's own size (default: 36/255 72/255 108/255 1). None is scaled: "
        "what 1 is at 224 px is 64/224 at 64 px",
    )
    group.add_argument(
        "--sigma",
        nargs="+",
        type=radius,
        metavar="S",
        help="standard deviation of the noise, in [0, 1] pixels of the metric's own size (default: 0.25)",
    )
    group.add_argument("--draws", type=positive, metavar="N", help="that estimate, for each sample (default: 1000)")
    group.add_argument("--choose", type=positive, metavar="N0", help="draws before them that choose (default: 100)")
    group.add_argument("--confidence", type=float, metavar="C", help="of a radius, for each sample (default: 0.999)")
    return options


def certificates_of(options: argparse.Namespace) -> list[list[Any]]:
    """Read the certificates that are asked for, a list for each kind.

    Raises:
        ValueError: for settings of certificates that are not asked for, or that no certificate can have.
    """
    from rclip_metric.train.attacks.threat import LpBall
    from rclip_metric.train.evaluation.certificates import RADII, Certificate
    from rclip_metric.train.evaluation.smoothing import Smoothing

    kinds = list(dict.fromkeys(options.certify))
    of_noise = {"sigma": options.sigma, "n": options.draws, "n0": options.choose, "confidence": options.confidence}
    given = {key: value for key, value in of_noise.items() if value is not None}
    if given and "smoothing" not in kinds:
        raise ValueError("--sigma, --draws, --choose and --confidence are of --certify smoothing: add that")
    if options.radius is not None and not kinds:
        raise ValueError("--radius is of certificates: add --certify")
    sigmas = given.pop("sigma", [0.25])
    balls = [LpBall("l2", eps) for eps in dict.fromkeys(options.radius or RADII)]
    made: dict[str, list[Any]] = {
        "lipschitz": [Certificate(ball) for ball in balls],
        "smoothing": [Smoothing(ball, sigma, **given) for sigma in dict.fromkeys(sigmas) for ball in balls]
        if "smoothing" in kinds
        else [],
    }
    return [made[kind] for kind in made if kind in kinds]


def balls_of(norms: Sequence[str] | None, radii: Sequence[float] | None) -> list[LpBall]:
    """Pair --norm and --eps to threat models.

    Raises:
        ValueError: if they do not fit each other.
    """
    from rclip_metric.train.attacks.threat import LpBall

    names: list[Any] = list(norms or TWO_AFC_RADII)
    if radii is None:
        unknown = [name for name in names if name not in TWO_AFC_RADII]
        if unknown:
            raise ValueError(f"the paper has no radius for {unknown[0]}: pass --eps")
        return [LpBall(name, TWO_AFC_RADII[name]) for name in names]
    if len(names) == 1:
        return [LpBall(names[0], eps) for eps in radii]
    if len(radii) != len(names):
        raise ValueError(
            f"{len(names)} norms and {len(radii)} radii were given: pass one --eps value per --norm value, "
            "or several for a single norm"
        )
    return [LpBall(name, eps) for name, eps in zip(names, radii, strict=True)]
