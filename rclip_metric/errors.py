"""What can go wrong with an image, and between a model's name and its weights: one exception per cause."""


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line, to be quoted within a sentence; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


class ImageError(ValueError):
    """An image that cannot be read, or values whose meaning is not clear; the message says which and why.

    Example:
        >>> from rclip_metric.images import load_image
        >>> load_image(b"no picture")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.ImageError: cannot read the image: not an image, or not in a format that is read here
    """


class WeightsError(RuntimeError):
    """Base of every error about finding, fetching, checking or reading weights.

    Example:
        >>> from rclip_metric import RobustPerceptualDistance
        >>> try:
        ...     RobustPerceptualDistance("tinny")
        ... except WeightsError as error:
        ...     print(error)
        There is no model 'tinny' in the manifest: did you mean 'tiny' or 'tiny-clean'?
    """


class UnknownModelError(WeightsError, ValueError):
    """The name is neither in the manifest nor a path nor a Hub id, or cannot be loaded by name alone."""


class ManifestError(WeightsError, ValueError):
    """JSON that was read back is malformed: the manifest, a config.json, a recipe, a result; names the field."""


class CheckpointError(WeightsError, ValueError):
    """The file does not hold what it should: an unexpected or missing key, a wrong shape, no tensors."""


class MissingPackageError(WeightsError):
    """The weights come with a Python package that is not installed; names the extra that installs it."""


class HubError(WeightsError):
    """The network or the Hub did not deliver; base of the three below."""


class NetworkError(HubError):
    """Nothing answered: no connection, a time-out, or offline mode with a cold cache."""


class AccessError(HubError):
    """The Hub refused with 401 or 403: a private or gated repository, or a bad token."""


class NotFoundError(HubError):
    """The Hub answered 404: no such repository, revision or file."""


class DigestError(WeightsError):
    """The file is not the one that was published: wrong sha256, wrong size, or truncated."""


class StorageError(WeightsError):
    """The file cannot be stored here: full disk, read-only cache, or a path that is not a folder."""


class ImageIndexError(ValueError):
    """An index of images that is not there, damaged, of another model, or asked for what it does not hold."""


class FilterError(ValueError):
    """A filter that cannot be made of the examples that were given, or work that cannot be begun or gone on with."""
