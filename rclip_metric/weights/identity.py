"""Which weights an encoder has, by a digest of their bytes: name and revision follow from it, whatever a file says."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rclip_metric.encoder.architectures import architecture_to_dict
from rclip_metric.encoder.encoder import Origin
from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.files import notes_folder, stamp
from rclip_metric.weights.digest import remember, remembered, tensors_digest
from rclip_metric.weights.local import Located, packaged_revision
from rclip_metric.weights.manifest import PACKAGED, WeightSpec, get_spec, model_names
from rclip_metric.weights.saving import WEIGHTS_NAME, is_sealed

if TYPE_CHECKING:
    from rclip_metric.encoder.encoder import Encoder


def identify(encoder: "Encoder", found: Located, layout: str) -> None:
    """Give an encoder that was built from `found` the name, revision and domain that its weights have a right to.

    What the manifest names was checked before. Of anything else, a name of the manifest is the encoder's own only where
    the weights, architecture and preprocessing are the manifest's; otherwise it says where it was found. The revision
    is the Hub's commit, else it is made of the digest.

    Raises:
        CheckpointError: The file is damaged: it does not hold the tensors that were saved.
    """
    known = found.spec.tensors if found.named else None
    digest = known or _digest(encoder, found, layout)
    if not found.named:
        own = _known_by_the_manifest(encoder.name, digest, encoder)
        if own is not None:
            encoder.revision, encoder.domain = packaged_revision(own), own.domain
        else:
            encoder.revision = found.revision if found.spec.source == "hub" else short_digest(digest)
            if encoder.name in model_names():
                encoder.name = f"{encoder.name} in {_place(found)}"
    encoder.origin = Origin(encoder.name, encoder.revision, digest)


def _known_by_the_manifest(name: str, digest: str, encoder: "Encoder") -> WeightSpec | None:
    """Return the manifest's entry of that name if these are its weights, for images that are prepared in its way."""
    try:
        spec = get_spec(name)
    except UnknownModelError:
        return None
    same = (spec.tensors, spec.architecture, spec.preprocessing, spec.mlp_hidden)
    own = (digest, encoder.architecture, encoder.preprocessing, encoder.mlp_hidden)
    return spec if same == own and spec.source in PACKAGED else None


def short_digest(digest: str) -> str:
    """Shorten the digest of tensors to what stands for a revision.

    Example:
        >>> short_digest("61091ef75036d969" * 4)
        'tensors:61091ef75036'
    """
    return f"tensors:{digest[:12]}"


def _digest(encoder: "Encoder", found: Located, layout: str) -> str:
    """Compute the digest of the tensors, once for a file that stays as it is, and compare it with what was saved."""
    read_as = [str(found.path.resolve()), layout, architecture_to_dict(encoder.architecture), encoder.mlp_hidden]
    name = hashlib.sha256(json.dumps(read_as).encode()).hexdigest()[:32]
    note = notes_folder() / "weights" / f"{name}.json"
    if (known := remembered(found.path, note)) is not None:
        return known
    before = stamp(found.path)
    digest = tensors_digest(encoder.state_dict())
    check_saved(found.path, digest)
    remember(found.path, digest, note, before)
    return digest


def check_saved(path: Path, digest: str) -> None:
    """Raise CheckpointError where a file does not hold what `save_encoder` wrote, tensors of this digest."""
    if not is_sealed(path, digest):
        raise CheckpointError(f"{path} is damaged: its tensors or settings are not those that were saved.")


def _place(found: Located) -> str:
    if found.spec.repo is not None:
        return found.spec.repo
    path: Path = found.path.resolve()
    return path.parent.name if path.name == WEIGHTS_NAME else path.name
