"""What is said of weights that are not on this machine: the command that fetches them, and how large they are."""

from rclip_metric.encoder.architectures import tower_values
from rclip_metric.weights.local import packaged_path
from rclip_metric.weights.manifest import WeightSpec, get_spec, model_names


def how_to_fetch(model: str, spec: WeightSpec | None = None, revision: str | None = None) -> str:
    """Say which command fetches a model, and how much that is.

    Args:
        model: Its name in the manifest, or its Hub id.
        spec: Its entry, None for a Hub id that is no entry.
        revision: The one that was asked for.

    Example:
        >>> how_to_fetch("r-clip-t-vit-l-14", get_spec("r-clip-t-vit-l-14"))
        '`rclip-metric download r-clip-t-vit-l-14` fetches it once (1711 MB)'
        >>> how_to_fetch("owner/repo")
        '`rclip-metric download owner/repo` fetches it once (the Hub alone knows its size)'
    """
    command = f"rclip-metric download {model}" + (f" --revision {revision}" if revision else "")
    return f"`{command}` fetches it once ({_size_in_words(spec) if spec else 'the Hub alone knows its size'})"


def what_helps_offline(spec: WeightSpec, revision: str | None = None) -> str:
    """Say what helps where an entry cannot be fetched, as the end of a sentence; nothing is done unasked.

    Example:
        >>> what_helps_offline(get_spec("r-clip-t-vit-l-14")).rpartition("(1711 MB), ")[2]
        'and model="r-lite-f" (in the shell --model r-lite-f) comes with the package'
    """
    text = how_to_fetch(spec.name, spec, revision)
    shipped = next((other.name for other in map(get_spec, model_names()) if _ships_for_photographs(other)), None)
    if shipped is not None:
        text += f', and model="{shipped}" (in the shell --model {shipped}) comes with the package'
    return text


def published_size(spec: WeightSpec) -> int | None:
    """Return the size in bytes of the file that would be fetched, None where nobody has seen it.

    Example:
        >>> published_size(get_spec("r-clip-t-vit-l-14"))
        1710635909
    """
    return spec.candidates[0].size if spec.candidates else None


def tower_size(spec: WeightSpec) -> int:
    """Return the size in bytes of the vision tower in float32, which is at most what is in most files.

    Example:
        >>> tower_size(get_spec("tiny"))
        7732608
    """
    values = tower_values(spec.architecture)
    if values is None:
        from rclip_metric.encoder.state_dicts import expected_tensors

        values = sum(tensor.numel() for tensor in expected_tensors(spec.architecture).values())
    return 4 * values


def _size_in_words(spec: WeightSpec) -> str:
    size = published_size(spec)
    if size is not None:
        return f"{size / 1e6:.0f} MB"
    return f"its size is not known here, its vision tower takes {tower_size(spec) / 1e6:.0f} MB in float32"


def _ships_for_photographs(spec: WeightSpec) -> bool:
    robust = spec.source == "package" and spec.domain is None and spec.training is not None
    return robust and packaged_path(spec) is not None
