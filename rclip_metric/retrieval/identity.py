"""Which metric made an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval.embeddings import Embedder
from rclip_metric.weights import tensors_digest


def identity_of(metric: Embedder) -> dict[str, Any]:
    """Name what embeddings mean nothing without: model, revision, digest of its weights and preprocessing, JSON.

    Example:
        >>> list(identity_of(RobustPerceptualDistance("tiny")))
        ['name', 'revision', 'weights', 'resize', 'preprocessing']
    """
    if isinstance(metric, RobustPerceptualDistance):
        encoder = metric.encoder
        return {
            "name": encoder.name,
            "revision": encoder.revision,
            "weights": tensors_digest(encoder.state_dict()),  # as they are now, not as they were loaded
            "resize": encoder.resize,
            "preprocessing": encoder.preprocessing.to_dict(),
            # Said where it is another, so that an index that does not say stays valid.
            **({} if encoder.reading == "published" else {"reading": encoder.reading}),
        }
    described: dict[str, Any] = metric.describe()  # type: ignore[attr-defined]
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def model_of(about: Mapping[str, Any]) -> str | None:
    """Say by what the metric that made an index can be had again: what was said, else its name.

    Example:
        >>> model_of({"source": None, "metric": {"name": "tiny"}})
        'tiny'
    """
    found: str | None = about.get("source") or about["metric"].get("name")
    return found


def settings_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Say how the metric that made an index prepares images, as a `ModelSource` takes it: `resize` and `reading`.

    Example:
        >>> settings_of({"metric": {"name": "tiny", "resize": None}})
        {'resize': 'none', 'reading': 'published'}
        >>> settings_of({"metric": {"name": "another library's"}})
        {}
    """
    made_by = about["metric"]
    if "resize" not in made_by:
        return {}
    return {"resize": made_by["resize"] or "none", "reading": made_by.get("reading", "published")}


def differences(made_by: Any, asked: Any) -> tuple[str, str]:
    """Say of two that `identity_of` gave what is not the same, each in words.

    Example:
        >>> one = {"name": "tiny", "revision": "1", "weights": "ab", "resize": "published"}
        >>> differences(one, one | {"reading": "fast"})
        ("tiny@1 with reading 'published'", "tiny@1 with reading 'fast'")
    """
    if not (isinstance(made_by, dict) and isinstance(asked, dict)):
        return described(made_by), described(asked)
    if any(made_by.get(key) != asked.get(key) for key in ("name", "revision", "weights")):
        return described(made_by), described(asked)
    both = [{**each, "reading": each.get("reading", "published")} for each in (made_by, asked)]
    other = [key for key in dict.fromkeys([*both[0], *both[1]]) if both[0].get(key) != both[1].get(key)]
    one, two = (
        f"{each.get('name')}@{each.get('revision')} with {', '.join(f'{key} {each.get(key)!r}' for key in other)}"
        for each in both
    )
    return one, two


def described(identity: Any) -> str:
    """Say what `identity_of` gives, in a sentence."""
    if not isinstance(identity, dict):
        return repr(identity)
    name = f"{identity.get('name')}@{identity.get('revision')}"
    rest = {key: value for key, value in identity.items() if key not in ("name", "revision")}
    return f"{name} {json.dumps(rest)}"
