"""What a benchmark is asked for, and how it is written on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rclip_metric.train.attacks.norms import NORMS
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings, default_batch_size
from rclip_metric.train.evaluation.certificates.lipschitz import RADII, Certificate
from rclip_metric.train.evaluation.smoothing import Smoothing
from rclip_metric.train.metrics.paper import BAPPS_ATTACKED, TWO_AFC_RADII

FORMATS = ("nights", "bapps", "things", "cue-conflict")
PAPER_BALLS = tuple(LpBall(norm, eps) for norm, eps in TWO_AFC_RADII.items())
SWEEP = (0.25, 0.5, 2.0, 4.0)  # of each radius, beside the radius itself


@dataclass(frozen=True)
class DataFolder:
    """A data set: its format, one of `FORMATS`, and its folder.

    Example:
        >>> DataFolder("nights", Path("data/nights")).folder.name
        'nights'
    """

    format: str
    folder: Path


@dataclass(frozen=True)
class BenchmarkSettings:
    """One benchmark; the defaults are the paper's protocol.

    Attributes:
        metrics: names, as `load_metric` takes them.
        data: data sets, each with every metric.
        out: folder of all that is written.
        balls: threat models.
        certified: also certified accuracy, for metrics that can prove any.
        smoothing: also certified accuracy under noise of these standard deviations, for any metric.
        smoothing_draws: that estimate, for each sample and standard deviation.
        timing: also what a score costs.
        timing_batch_sizes: pairs at once.
        timing_dtypes: float32, bfloat16 or both; empty for both where the device multiplies bfloat16, else float32.
        page: also the HTML page.
        direct: reference images under the direct attack; 0 leaves it out.
        examples: triplets that are shown; 0 leaves them out.
        sweep: triplets that are attacked at other radii (`SWEEP` times each); 0 leaves it out.
        steps: APGD iterations of every attack.
        restarts: of APGD, in the main attacks.
        split: of NIGHTS.
        attacked: triplets that attacks are run on, of a set in the NIGHTS format or of each split of BAPPS; None for
            all of the former and `BAPPS_ATTACKED` of the latter.
        classes: table that says what the images of cue conflicts show, for files that are not called so.
        limit: only the first samples of each set.
        image_size: side that images are squashed to, for metrics that leave it open.
        seed: of random starts, and of the options that are drawn for cue conflicts.
        batch_size: samples in a block, the unit of work; None: by what a pass holds (`default_batch_size`).
        chunk_size: images per pass; None: by device and size.
        precision: of the attacks' own passes; successes are confirmed in float32.
        resample: what intervals are about, see `RunSettings`.
        device: auto, cpu, cuda, cuda:N or mps.
        title: of the page.
        overwrite: replace results of other settings.
        allow_outside: paths in the tables of sets may lead out of their folders.
        quiet: no progress.

    Example:
        >>> data = (DataFolder("nights", Path("data/nights")),)
        >>> settings = BenchmarkSettings(("tiny", "l2"), data, Path("out"))
        >>> [str(attack.ball) for attack in settings.attacks()]
        ['linf 4/255', 'l2 3']

    Raises:
        ValueError: for noise that cannot be, or that is named twice, or too few draws.
    """

    metrics: tuple[str, ...]
    data: tuple[DataFolder, ...]
    out: Path
    balls: tuple[LpBall, ...] = PAPER_BALLS
    certified: bool = False
    smoothing: tuple[float, ...] = ()
    smoothing_draws: int = 1000
    timing: bool = False
    timing_batch_sizes: tuple[int, ...] = (1, 8)
    timing_dtypes: tuple[str, ...] = ()
    page: bool = False
    direct: int = 0
    examples: int = 0
    sweep: int = 0
    steps: int = 100
    restarts: int = 1
    split: str = "test"
    attacked: int | None = None
    classes: Path | None = None
    limit: int | None = None
    image_size: int = 224
    seed: int = 0
    batch_size: int | None = None
    chunk_size: int | None = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    resample: Literal["samples", "images"] = "samples"
    device: str = "auto"
    title: str = "Perceptual metrics under attack"
    overwrite: bool = False
    allow_outside: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Check the noise, before any work."""
        for sigma in self.smoothing:
            if self.smoothing.count(sigma) > 1:
                raise ValueError(f"sigma {sigma:g} is there twice: once is enough")
        self.smoothings()

    def attacks(self) -> list[AttackSettings]:
        """List the main attacks, one per ball."""
        return [AttackSettings(ball, steps=self.steps, restarts=self.restarts) for ball in self.balls]

    def certificates(self) -> list[Certificate]:
        """List the certificates: at LipSim's radii, and at the l_2 radii that are attacked."""
        return [Certificate(ball) for ball in self._certified_balls()] if self.certified else []

    def smoothings(self) -> list[list[Smoothing]]:
        """List the certificates under noise, at the same radii, for each standard deviation."""
        balls, n = self._certified_balls(), self.smoothing_draws
        return [[Smoothing(ball, sigma, n=n) for ball in balls] for sigma in self.smoothing]

    def _certified_balls(self) -> list[LpBall]:
        own = [ball.eps for ball in self.balls if ball.norm == "l2"]
        return [LpBall("l2", eps) for eps in sorted({*RADII, *own})]

    def swept(self) -> list[AttackSettings]:
        """List the attacks at the other radii of each ball."""
        balls = [LpBall(ball.norm, share * ball.eps) for ball in self.balls for share in SWEEP]
        return [AttackSettings(ball, steps=self.steps) for ball in balls]

    def run(self, chunk_size: int) -> RunSettings:
        """Choose the settings of the evaluations; `chunk_size` holds where none was asked for."""
        chunk_size = self.chunk_size or chunk_size
        batch_size = self.batch_size or default_batch_size(chunk_size)
        return RunSettings(self.seed, batch_size, chunk_size, self.precision, self.resample)

    def as_json(self) -> dict[str, Any]:
        """Describe the benchmark in its record."""
        written = asdict(self)
        written["data"] = [f"{part.format}:{part.folder.name}" for part in self.data]
        written["balls"] = [str(ball) for ball in self.balls]
        written["smoothing"] = list(self.smoothing) or None
        written["classes"] = self.classes and self.classes.name
        written["attacked"] = self.attacked or f"all, of BAPPS {BAPPS_ATTACKED} per split"
        return {key: value for key, value in written.items() if key not in ("out", "overwrite", "quiet", "title")}


def metrics_of(text: str) -> tuple[str, ...]:
    """Parse `r-clip-f,dreamsim,ssim`.

    Raises:
        ValueError: for none, or one that comes twice.

    Example:
        >>> metrics_of("r-clip-f, ssim")
        ('r-clip-f', 'ssim')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--metrics {text!r} names no metric: write it like r-clip-f,dreamsim,ssim")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--metrics names {twice[0]} twice: once is enough")
    return tuple(names)


def data_of(text: str) -> tuple[DataFolder, ...]:
    """Parse `nights:DIR,bapps:DIR`.

    Raises:
        ValueError: for an unknown format or a folder that is not there.

    Example:
        >>> [(part.format, part.folder.name) for part in data_of("nights:.,things:..")]
        [('nights', ''), ('things', '..')]
    """
    parts = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        form, colon, folder = part.partition(":")
        if not colon or form not in FORMATS:
            raise ValueError(f"--data {part!r} is none: write FORMAT:FOLDER, with one of {', '.join(FORMATS)}")
        if not Path(folder).is_dir():
            raise ValueError(f"--data {part!r}: there is no folder {folder}")
        parts.append(DataFolder(form, Path(folder)))
    if not parts:
        raise ValueError("--data names no data set: write it like nights:DIR,bapps:DIR")
    return tuple(parts)


def balls_from(text: str, radius: Any) -> tuple[LpBall, ...]:
    """Parse `linf:4/255,l2:3`, radii by `radius`; "none" is no attack at all.

    Raises:
        ValueError: for an unknown norm, or the same ball twice.

    Example:
        >>> [str(ball) for ball in balls_from("l1:0.5,l2:3", float)], balls_from("none", float)
        (['l1 0.5', 'l2 3'], ())
    """
    if text.strip() == "none":
        return ()
    balls: list[LpBall] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        norm, colon, eps = part.partition(":")
        if not colon or norm not in NORMS:
            raise ValueError(f"--norms {part!r} is none: write NORM:RADIUS, with one of {', '.join(NORMS)}")
        balls.append(LpBall(norm, radius(eps)))  # type: ignore[arg-type]
    if not balls:
        raise ValueError("--norms names no ball: write it like linf:4/255,l2:3, or none")
    return tuple(_once(balls))


def _once(balls: Sequence[LpBall]) -> list[LpBall]:
    for ball in balls:
        if balls.count(ball) > 1:
            raise ValueError(f"--norms names {ball} twice: once is enough")
    return list(balls)
