"""How tables and plots name a model, a data set and an attack: what records share is said once, the rest on each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclip_metric.train.attacks.norms import NORMS
from rclip_metric.train.evaluation.results.record import short_revision

Record = Mapping[str, Any]
# Who said which option is right.
PEOPLE, SCENES, CONSTRUCTION = "people", "the scenes' own rule", "the order by construction"

# What a record says of a randomised smoothing, in the order of labels.
_SMOOTHING: dict[str, Callable[[Any], str]] = {
    "sigma": "sigma {:g}".format,
    "n": "n {}".format,
    "n0": "n0 {}".format,
    "confidence": lambda share: f"{100 * share:.6g} % confidence",
}


@dataclass(frozen=True)
class Threat:
    """The threat model of a record, to group and sort by."""

    attack: str
    norm: str
    eps: float
    eps_text: str
    steps: int | None
    others: str  # the remaining settings as JSON, restarts and loss among them

    @classmethod
    def of(cls, record: Record) -> Threat | None:
        """Read it from a record; None without an attack."""
        threat = record["threat"]
        if threat["attack"] == "none":
            return None
        own = ("attack", "norm", "eps", "eps_text", "steps")
        others = {key: value for key, value in sorted(threat.items()) if key not in own and value not in (None, False)}
        attack, norm, eps, eps_text, steps = (threat[key] for key in own)
        return cls(attack, norm, eps, eps_text, steps, json.dumps(others))

    @property
    def ball(self) -> str:
        """E.g. `linf 4/255`."""
        return f"{self.norm} {self.eps_text}"

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts by norm (l_inf, l_2, l_1), eps, attack and steps."""
        return (norm_order(self.norm), self.eps, self.attack, self.steps or 0, self.others)

    @property
    def proven(self) -> bool:
        """Whether nothing was attacked: it is a certificate."""
        return self.attack in ("certified", "smoothing")

    def settings(self) -> dict[str, str]:
        """Put everything but the ball into words, by the name of the setting."""
        words = {"attack": self.attack}
        if self.steps is not None:
            words["steps"] = f"{self.steps} steps"
        others = json.loads(self.others)
        if self.attack == "smoothing":
            words |= {key: word(others.pop(key)) for key, word in _SMOOTHING.items() if key in others}
        for key, value in others.items():
            if value is True:
                words[key] = key
            elif isinstance(value, int):
                words[key] = f"{value} {key[:-1] if value == 1 else key}"
            else:  # a model, where a transferred attack was made on another one
                words[key] = f"{key} {named(value) if isinstance(value, dict) else value}"
        return words


def norm_order(norm: str) -> tuple[int, str]:
    """Sort norms as `NORMS` has them, and others after them."""
    return (NORMS.index(norm) if norm in NORMS else len(NORMS), norm)


def shared_words(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Find the settings that all have in common, by name."""
    first = settings[0] if settings else {}
    return {key: word for key, word in first.items() if all(words.get(key) == word for words in settings)}


def model_label(record: Record) -> str:
    """Label a model: `name @ revision`, and the ways of resizing and reading where they are not the published ones."""
    return named(record["model"])


def named(model: Mapping[str, Any]) -> str:
    """Label a model as `model_label` does, from what it says of itself."""
    revision, resize = short_revision(model.get("revision")), model.get("resize")
    label = model["name"] + (f" @ {revision}" if revision else "")
    unusual = [how for how in (resize, model.get("reading")) if how not in (None, "published")]
    return f"{label} ({', '.join(unusual)})" if unusual else label


def data_label(record: Record) -> str:
    """Name, split and protocol of the data."""
    return " ".join(str(record["data"][key]) for key in ("name", "split", "protocol") if record["data"].get(key))


def interval_label(record: Record) -> str:
    """Say what a record's intervals are: of the bootstrap over samples, or with other images allowed for."""
    over_images = record["settings"].get("resample") == "images"
    return "95 % intervals over images" if over_images else "95 % bootstrap intervals"
