"""The commands `score` and `rank`: which files, which model, and how the distances are printed."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.printing import complain, printable, say, show

# What needs torch, Pillow or the Hub is imported where it is used: --help and a wrong path come at once.
if TYPE_CHECKING:
    from rclip_metric.metric import RobustPerceptualDistance
    from rclip_metric.retrieval import FileEmbeddings


class UsageError(ValueError):
    """The arguments parse, but do not make sense together."""


def score(args: argparse.Namespace) -> int:
    """Print the distance of two files, the pairs of two folders, or all pairs in one; return the exit code."""
    paths = [Path(path) for path in args.paths]
    if len(paths) != (1 if args.all_pairs else 2):
        raise UsageError(f"got {len(paths)} paths, expected two files or two folders, or one folder with --all-pairs")
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
    if args.all_pairs:
        return _score_all_pairs(args, paths[0])
    if all(path.is_dir() for path in paths):
        return _score_folders(args, *paths)
    if any(path.is_dir() for path in paths):
        raise UsageError(
            f"{paths[0]} and {paths[1]} are a folder and a file: pass two of a kind, or use rank for "
            "one image against a folder"
        )
    return _score_files(args, *paths)


def _score_files(args: argparse.Namespace, a: Path, b: Path) -> int:
    from rclip_metric.retrieval import distances

    run = _Run(args, [a, b])
    with run.embeddings() as embeddings:
        u, v = embeddings[a], embeddings[b]
    if u is None or v is None:
        return 2
    distance = distances(u, v[None], args.squared)[0]
    if args.json:
        say(json.dumps({**_pair(a, b, distance), **run.identity, "settings": run.settings}))
    else:
        say(f"{_number(distance)}  {run.label}")
    return 0


def _score_folders(args: argparse.Namespace, a: Path, b: Path) -> int:
    from rclip_metric.retrieval import Summary, distances, pair_by_name

    pairing = pair_by_name(a, b)
    if not pairing.pairs:
        raise UsageError(f"no image in {a} has the name of one in {b}")
    run = _Run(args, [path for pair in pairing.pairs for path in pair])
    run.remark_files("without a partner", pairing.unpaired)
    left_out = run.remark_left_out(a) + run.remark_left_out(b)
    summary = Summary()
    identity = json.dumps(run.identity)[1:]
    with run.embeddings(progress=not sys.stdout.isatty()) as embeddings:  # on a terminal, the lines are it
        for x, y in pairing.pairs:
            u, v = embeddings[x], embeddings[y]
            if u is None or v is None:
                continue
            distance = distances(u, v[None], args.squared)[0]
            summary.add(distance, str(x), str(y))
            say(f"{json.dumps(_pair(x, y, distance))[:-1]}, {identity}")
    return run.finish(summary, unpaired=[str(path) for path in pairing.unpaired], left_out=left_out)


def _score_all_pairs(args: argparse.Namespace, folder: Path) -> int:
    from rclip_metric.images.reading import list_images
    from rclip_metric.retrieval import Summary, all_pairs

    files = list_images(folder)
    if len(files) < 2:
        raise UsageError(f"{folder} has {len(files)} images, expected two or more")
    run = _Run(args, files)
    left_out = run.remark_left_out(folder)
    with run.embeddings() as embeddings:
        found = [(str(file), u) for file in files if (u := embeddings[file]) is not None]
    names = [name for name, _ in found]
    quoted = [json.dumps(name) for name in names]
    identity = json.dumps(run.identity)[1:]
    summary = Summary()
    for i, row in all_pairs([u for _, u in found], args.squared):
        # Fifty million pairs are possible (10,000 images): json.dumps for each would take most of the time.
        lines = (
            f'{{"a": {quoted[i]}, "b": {quoted[j]}, "distance": {distance:.7g}, {identity}\n'
            for j, distance in enumerate(row, start=i + 1)
        )
        show("".join(lines))
        for j, distance in enumerate(row, start=i + 1):
            summary.add(distance, names[i], names[j])
    return run.finish(summary, images=len(names), left_out=left_out)


def rank(args: argparse.Namespace) -> int:
    """Print candidates by their distance to a reference, nearest first; return the exit code."""
    reference = Path(args.reference)
    if not reference.is_file():
        raise UsageError(f"{reference} is {'a folder' if reference.is_dir() else 'no file'}, expected an image")
    import torch

    from rclip_metric.images.reading import list_images
    from rclip_metric.retrieval import distances, significant

    candidates: list[Path] = []
    for path in map(Path, args.candidates):
        candidates += list_images(path) if path.is_dir() else [path]
    candidates = list(dict.fromkeys(candidates))
    if not candidates:
        raise UsageError(f"there are no images in {', '.join(args.candidates)}")
    run = _Run(args, [reference, *candidates])
    with run.embeddings() as embeddings:
        u = embeddings[reference]
        if u is None:
            return 2
        found = [(str(path), v) for path in candidates if (v := embeddings[path]) is not None]
    row = distances(u, torch.stack([v for _, v in found]), args.squared) if found else []
    ranking = sorted(zip((name for name, _ in found), row, strict=True), key=lambda item: item[1])
    if args.json:
        ranked = [
            {"rank": place, "candidate": name, "distance": significant(distance)}
            for place, (name, distance) in enumerate(ranking, start=1)
        ]
        record = {"reference": str(reference), "ranking": ranked, "skipped": run.skipped}
        say(json.dumps({**record, **run.identity, "settings": run.settings}))
    else:
        say(f"nearest to {reference}  {run.label}")
        for place, (name, distance) in enumerate(ranking, start=1):
            say(f"{place:{len(str(len(ranking)))}}  {_number(distance)}  {name}")
    return 2 if run.skipped else 0


class _Run:
    """One scoring run: the model on its device, the files, and what could not be read."""

    def __init__(self, args: argparse.Namespace, files: Sequence[Path]) -> None:
        from rclip_metric.retrieval import identity, settings

        self._args = args
        self._files = files
        self._say: Callable[[str], object] = complain
        self.metric = _load(args)
        self.batch_size = args.batch_size or (8 if self.metric.device.type == "cpu" else 32)
        self.identity = identity(self.metric)
        self.settings = settings(self.metric, args.model, self.batch_size)
        self.skipped: list[dict[str, str]] = []

    @property
    def label(self) -> str:
        """Model, revision and what the number is, for people."""
        model = f"{self.identity['model']}@{_short(self.identity['revision'])}"
        measure = "1 - cos, 0 = identical, max 2" if self._args.squared else "sqrt(1 - cos), 0 = identical, max 1.414"
        precision = "" if self.settings["dtype"] == "float32" else f"; {self.settings['dtype']}"
        return f"{model} (distance: {measure}; resize {self.identity['resize'] or 'none'}{precision})"

    @contextmanager
    def embeddings(self, progress: bool = True) -> Iterator[FileEmbeddings]:
        """Compute the embeddings of the files, with a progress bar on a terminal."""
        import torch

        from rclip_metric.retrieval import FileEmbeddings

        bar: Any = None
        if progress and not self._args.quiet and sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            bar = tqdm(unit="image", leave=False, file=sys.stderr)
            self._say = lambda text: tqdm.write(f"rclip-metric: {printable(text)}", file=sys.stderr)
        try:
            with (
                _pillow_is_quiet(),
                _tf32_is_off(),
                FileEmbeddings(
                    self.metric,
                    self._files,
                    batch_size=self.batch_size,
                    on_skip=self._skip,
                    on_done=bar.update if bar is not None else lambda: None,
                ) as embeddings,
            ):
                if bar is not None:
                    bar.reset(total=len(embeddings))
                self._remark_domain()
                yield embeddings
        except torch.cuda.OutOfMemoryError as error:
            raise UsageError(
                f"{self.metric.device} has too little memory for {self.batch_size} images at a time: "
                "pass a smaller --batch-size"
            ) from error
        finally:
            if bar is not None:
                bar.close()
            self._say = complain

    def _skip(self, file: Path, reason: str) -> None:
        self.skipped.append({"file": str(file), "reason": reason})
        where = "" if str(file) in reason else f"{file}: "
        self._say(f"{where}{reason}")

    def _remark_domain(self) -> None:
        """Say so once where a model that knows something else is asked about what is certainly a photograph."""
        from rclip_metric.images.reading import states_exposure

        encoder = self.metric.encoder
        if encoder.domain is None or self._args.quiet:
            return
        photograph = next(filter(states_exposure, self._files), None)
        if photograph is not None:
            self._say(
                f"{encoder.name} knows {encoder.domain} only, and {photograph} states a camera and its exposure: "
                "the distances say little about photographs"
            )

    def remark_files(self, what: str, files: Sequence[Path]) -> None:
        """Name files on stderr, not more than a screenful of them."""
        for path in files[:20] if not self._args.quiet else ():
            self._say(f"{what}: {path}")
        if len(files) > 20 and not self._args.quiet:
            self._say(f"{what}: {len(files) - 20} more, all of them named in the summary")

    def remark_left_out(self, folder: Path) -> int:
        """Count the files in a folder that are not images by their names, and say so on stderr."""
        from rclip_metric.images.reading import list_images

        known = set(list_images(folder))
        count = sum(path not in known and not path.name.startswith(".") and path.is_file() for path in folder.iterdir())
        if count and not self._args.quiet:
            self._say(f"{folder}: left out {_files(count)} whose names are not those of images")
        return count

    def finish(self, summary: Any, **facts: Any) -> int:
        """Print the summary as the last JSON line, and in words on stderr; return the exit code."""
        record = {**summary.to_dict(), **facts, "skipped": self.skipped, **self.identity}
        say(json.dumps({"summary": {**record, "settings": self.settings}}))
        if not self._args.quiet:
            mean = "" if summary.mean is None else f", mean {_number(summary.mean)}"
            self._say(f"{summary.count} pairs{mean}, skipped {_files(len(self.skipped))}; {self.label}")
        return 2 if self.skipped else 0


def _load(args: argparse.Namespace) -> RobustPerceptualDistance:
    import torch

    from rclip_metric.metric import RobustPerceptualDistance
    from rclip_metric.weights.digest import file_digest
    from rclip_metric.weights.hub import without_progress_bars
    from rclip_metric.weights.loading import load_encoder, locate

    device = _device(args.device)
    resize: Any = {None: "default", "none": None}.get(args.resize, args.resize)
    with without_progress_bars(args.quiet):
        encoder = load_encoder(
            args.model, base=args.base, resize=resize, revision=args.revision, cache_dir=args.cache_dir
        )
        if encoder.revision is None:  # a local file that does not say: its contents do
            path = locate(args.model, base=args.base, cache_dir=args.cache_dir, local_files_only=True).path
            encoder.revision = f"sha256:{file_digest(path)[:12]}"
    metric = RobustPerceptualDistance(encoder, squared=args.squared)
    return metric.to(device=device, dtype=getattr(torch, args.dtype))


def _device(name: str) -> str:
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, _, index = name.partition(":")
    if kind not in there or (index and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"got --device {name}, expected auto, cpu, cuda, cuda:N or mps")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise UsageError(f"there is no {name} device here")
    return name


@contextmanager
def _pillow_is_quiet() -> Iterator[None]:
    """Suppress Pillow's remarks on odd metadata and on photographs above 89 megapixels: it reads them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _tf32_is_off() -> Iterator[None]:
    """Make float32 mean float32: CUDA's convolutions otherwise round their inputs to 10 bits."""
    from torch.backends import cudnn

    allowed = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed


def _pair(a: Path, b: Path, distance: float) -> dict[str, Any]:
    from rclip_metric.retrieval import significant

    return {"a": str(a), "b": str(b), "distance": significant(distance)}


def _number(distance: float) -> str:
    """Write four decimals, except where they would make a small distance look like none."""
    return f"{distance:.4f}" if distance == 0 or distance >= 0.001 else f"{distance:.1e}"


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _short(revision: str) -> str:
    return revision[:7] if len(revision) == 40 else revision
