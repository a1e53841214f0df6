"""The model card of an exported encoder: what it is, how it was made, how well it does, in the Hub's form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, ViTArchitecture, architecture_to_dict
from rclip_metric.images import Preprocessing, Resize
from rclip_metric.train.evaluation.results.labels import Record
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.finetuning.adversarial import OBJECTIVES, FinetuneConfig
from rclip_metric.train.finetuning.nights import NightsConfig
from rclip_metric.train.publishing.finished_run import FinishedRun, facts
from rclip_metric.train.publishing.methods import METHODS, PAPER_CITED, Method
from rclip_metric.weights import get_spec, model_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Licences that the Hub knows by name; any other is "other" there, with its own name beside it.
_HUB_LICENSES = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
                 "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "gpl-3.0", "openrail", "unlicense")  # fmt: skip
_NORMS = {"linf": "l_inf", "l2": "l_2", "l1": "l_1"}
_UNUSED: dict[str | None, tuple[str, ...]] = {"lora": ("hidden",), "mlp": ("rank", "alpha", "dropout")}
_HOW = ("device", "processes", "precision", "compile")


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        run: the training run.
        name: of the exported encoder.
        license: of the weights, None where nobody has said.
        notes: anything else that a reader must know.
        half: the weights are rounded to float16.
        megabytes: of the weights file.
        rounded: some results were measured before the weights were rounded.
        records: results of this encoder.
        repo: the Hub id that it is loaded by, None as long as it is a folder.
        branch: of that repository, None for the main one.
    """

    run: FinishedRun
    name: str
    license: str | None
    notes: str | None
    half: bool
    megabytes: float
    rounded: bool
    records: Sequence[Record] = ()
    repo: str | None = None
    branch: str | None = None


def model_card(card: CardFacts) -> str:
    """Write the whole README.md, front matter first."""
    sections = [
        f"# {card.name}\n\n{_summary(card)}",
        _usage(card),
        f"## Results\n\n{_results(card)}",
        f"## The encoder\n\n{_encoder(card)}",
        f"## How it was made\n\n{_made(card.run)}",
        f"## Licence\n\n{_license(card)}",
        f"## Citation\n\n{_citation(card.run)}",
    ]
    return f"---\n{_front_matter(card)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(card: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    run, training = card.run, card.run.training
    license, license_name = None, None
    if card.license is not None:
        known = card.license.lower().replace(" ", "-")
        license = known if known in _HUB_LICENSES else "other"
        license_name = None if license != "other" else re.sub(r"[^a-z0-9.]+", "-", card.license.lower()).strip("-")
    tags = ["perceptual-metric", "image-similarity", run.saved.spec.architecture.kind]
    tags += ["adversarial-robustness"] if training["norm"] else []
    tags += [re.sub(r"[^a-z0-9]+", "-", run.method.lower()).strip("-")]
    base = _base_repo(run.base)
    return ModelCardData(
        license=license,
        license_name=license_name,
        library_name="rclip-metric",
        pipeline_tag="image-feature-extraction",
        base_model=base,
        base_model_relation="finetune" if base else None,
        tags=list(dict.fromkeys(tags)),
    ).to_yaml()


def _base_repo(base: str | None) -> str | None:
    """Find the Hub id of the base; None where it is in no repository that is known."""
    if base in model_names():
        return get_spec(base).repo if get_spec(base).source == "hub" else None
    return base if base is not None and _HUB_ID.fullmatch(base) else None


def _summary(card: CardFacts) -> str:
    run, training = card.run, card.run.training
    about = METHODS.get(run.method, Method(f"made by {run.method}")).about
    text = "An image encoder for perceptual distances, "
    text += f"made from `{run.base}`: {about}." if run.base else f"{about}."
    if training["norm"]:
        norm = _NORMS.get(training["norm"], training["norm"])
        ball = f"{norm} {training['eps']}"
        text += f" The attacks that it or its base met in training stay within {ball}, on images in [0, 1]."
    else:
        text += " No attack is known to have been part of its training: expect that one can turn its judgement around."
    return text + (f"\n\n{card.notes}" if card.notes else "")


def _usage(card: CardFacts) -> str:
    where = f'"{card.repo or f"path/to/{card.name}"}"'
    where += f', revision="{card.branch}"' if card.repo and card.branch else ""
    return (
        "```python\n"
        "from rclip_metric import RobustPerceptualDistance, load_image\n\n"
        f"metric = RobustPerceptualDistance({where})\n"
        'distance = metric(load_image("one.png")[None], load_image("other.png")[None])\n'
        "```\n\n"
        "The distance is sqrt(1 - cos) of the two embeddings: 0 for identical images, at most sqrt(2), lower is more "
        "alike. Scores of different models are on different scales, so quote a score with the model and its revision."
    )


def _results(card: CardFacts) -> str:
    if not card.records:
        return (
            "None were exported with it: how well it agrees with people, clean or under attack, is not known yet. "
            "`rclip-metric eval` measures it."
        )
    named = [{**record, "model": {**record["model"], "name": card.name}} for record in card.records]
    text = table(named)
    return f"{text} Measured with the float32 weights, before they were rounded." if card.rounded else text


def _encoder(card: CardFacts) -> str:
    encoder = card.run.encoder
    preprocessing = encoder.preprocessing
    parameters = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    head = f", then a residual MLP with {encoder.mlp_hidden} hidden units" if encoder.mlp_hidden else ""
    stored = "float16, widened to float32 when loaded" if card.half else "float32"
    mean = ", ".join(f"{number:g}" for number in preprocessing.mean)
    std = ", ".join(f"{number:g}" for number in preprocessing.std)
    return _rows(
        {
            "tower": _tower(encoder.architecture) + head,
            "parameters": f"{parameters:.2f} M",
            "embedding": f"{encoder.embedding_dim} numbers",
            "input": f"RGB in [0, 1], {encoder.image_size}x{encoder.image_size} pixels",
            "other sizes": _resized(encoder.resize, preprocessing),
            "mean": f"{mean} (subtracted inside the encoder)",
            "standard deviation": f"{std} (divided by inside the encoder)",
            "stored": f"{stored}; {card.megabytes:.2f} MB, safetensors",
        }
    )


def _tower(architecture: Architecture) -> str:
    if isinstance(architecture, ConvNeXtArchitecture):
        depths, widths = (", ".join(map(str, values)) for values in (architecture.depths, architecture.widths))
        return f"ConvNeXt, stages of {depths} blocks with {widths} channels"
    if isinstance(architecture, ViTArchitecture):
        patch = f"{architecture.patch_size}x{architecture.patch_size} pixels"
        return f"ViT, {architecture.depth} blocks of width {architecture.width}, patches of {patch}, class token"
    values = architecture_to_dict(architecture)
    return f"{values.get('model', '')} ({values['kind']})".strip()


def _resized(resize: Resize, preprocessing: Preprocessing) -> str:
    if resize is None:
        return "refused"
    side = f"{preprocessing.crop}x{preprocessing.crop}"
    if "squash" in (resize, preprocessing.mode):
        return f"the whole image is squashed to {side}, bicubic with antialiasing"
    return f"the shorter side is resized to {preprocessing.resize}, bicubic with antialiasing, then the centre {side}"


def _made(run: FinishedRun) -> str:
    data = facts(run.record, "data")
    counts = [f"{_shown(key, data[key])} {key}" for key in ("images", "triplets") if data.get(key)]
    revision = facts(run.record, "base").get("revision")
    head = {
        "method": run.method,
        "base": f"{run.base}{f' @ {revision}' if revision else ''}" if run.base else "none, from random weights",
        "data": ", ".join([str(run.training["data"] or data.get("path") or "not recorded"), *counts]),
    }
    if run.sources:
        head["converted from"] = ", ".join(f"{item['file']} (sha256 {item['sha256']})" for item in run.sources)
    parts = [_rows(head)]
    if run.recipe:
        parts.append(_recipe(run))
    if epochs := run.record.get("epochs"):
        parts.append(_epochs(epochs, run.record.get("best_epoch")))
    parts.append(_circumstances(run))
    return "\n\n".join(part for part in parts if part)


def _recipe(run: FinishedRun) -> str:
    """Tabulate the settings, with what each one is where it is one of fine-tuning or of NIGHTS tuning."""
    about: dict[str, str] = {}
    titles = [objective.title for objective in OBJECTIVES.values()]
    for methods, config in ((titles, FinetuneConfig), (("LoRA", "MLP"), NightsConfig)):
        if run.method in methods:
            about = {field.name: field.metadata["help"] for field in fields(config)}
    loss = run.recipe.get("loss")
    other = tuple(f"{name}: " for name in OBJECTIVES if loss is not None and name != loss)
    lines = []
    for key, value in run.recipe.items():
        if about.get(key, "").startswith(other) or key in _UNUSED.get(run.recipe.get("head"), ()):
            continue  # a setting of another loss or head
        plain = run.recipe.get("norm") == "l2" and isinstance(value, float)
        cells = [_words(key), f"{value:.6g}" if plain else _shown(key, value), *[about.get(key, "")] * bool(about)]
        lines.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    head = ["| setting | value |" + " what it is |" * bool(about), "|---|---:|" + "---|" * bool(about)]
    return "\n".join(head + lines)


def _epochs(epochs: Sequence[Mapping[str, Any]], best: Any) -> str:
    names = list(dict.fromkeys(key for epoch in epochs for key in epoch))
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|" + "---:|" * len(names)]
    for epoch in epochs:
        found = [epoch.get(name) for name in names]
        values = [f"{value:.4g}" if isinstance(value, float) else _shown("", value) for value in found]
        if best is not None and epoch.get("epoch") == best:
            values = [f"**{value}**" for value in values]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + (f"\n\nEpoch {best} was kept." if best is not None else "")


def _circumstances(run: FinishedRun) -> str:
    """Say when, for how long and with what."""
    record, sentences = run.record, []
    made, seconds = record.get("made"), record.get("seconds")
    if made or seconds:
        spent = f" in {_duration(seconds)}" if seconds else ""
        sentences.append(f"Made{f' on {made}' if made else ''}{spent}.")
    how = {key: value for key, value in facts(record, "run").items() if key in _HOW and value}
    if how:
        sentences.append(f"Run with {', '.join(f'{_words(key)} {_shown(key, value)}' for key, value in how.items())}.")
    if versions := facts(record, "versions"):
        sentences.append(f"Versions: {', '.join(f'{key} {value}' for key, value in versions.items() if value)}.")
    if run.last:
        step = f" (step {run.last['step']})" if "step" in run.last else ""
        told = {key: value for key, value in run.last.items() if key == "loss" or "cosine" in key}
        values = [f"{_words(key)} {value:.4g}" for key, value in told.items() if isinstance(value, float)]
        sentences.append(f"The last line of its log{step}: {', '.join(values)}.")
    return " ".join(sentences)


def _license(card: CardFacts) -> str:
    text = f"The weights: {card.license}." if card.license else "The weights: nobody has said yet."
    if card.run.base in model_names() and card.run.base is not None:
        license = get_spec(card.run.base).license
        text += f" The base, `{card.run.base}`: {license}." if license else ""
        text += "" if license else f" The licence of the base, `{card.run.base}`, is not recorded: ask its publisher."
    return text


def _citation(run: FinishedRun) -> str:
    lines = [f"{PAPER_CITED}, 2025"]
    for method in METHODS:  # also those of the base: "FARE, then LoRA on clean NIGHTS"
        cite = METHODS[method].cite
        stated = f"{run.method}, {run.training['method'] or ''}"
        if cite and cite not in lines and re.search(rf"\b{re.escape(method)}\b", stated):
            lines.append(cite)
    return "\n".join(f"- {line}" for line in lines)


def _rows(rows: Mapping[str, str]) -> str:
    body = [f"| {_words(key)} | {_escaped(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *body])


def _escaped(text: str) -> str:
    """Escape text so that a cell of a Markdown table shows it as it is."""
    return re.sub(r"([\\`*|<])", r"\\\1", text).replace("\n", " ")


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(key: str, value: Any) -> str:
    """Format a value for a table; lengths in pixels as they are written on the command line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_shown(key, part) for part in value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        levels = value * 255
        pixels = re.search(r"(^|_)eps$|step_size$", key) and abs(levels * 4 - round(levels * 4)) < 1e-3
        return f"{levels:g}/255" if pixels and 0.2 < levels <= 255 else f"{value:.6g}"
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
