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


def described(identity: Any) -> str:
    """Say what `identity_of` gives, in a sentence."""
    if not isinstance(identity, dict):
        return repr(identity)
    name = f"{identity.get('name')}@{identity.get('revision')}"
    rest = {key: value for key, value in identity.items() if key not in ("name", "revision")}
    return f"{name} {json.dumps(rest)}"
