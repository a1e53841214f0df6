"""Weights: found, downloaded, checked, read, saved and published."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.weights.digest import check_file, file_digest, tensors_digest
    from rclip_metric.weights.hub import explained
    from rclip_metric.weights.identity import short_digest
    from rclip_metric.weights.loading import (
        download,
        load_encoder,
        locate,
        read_pickle,
        verify,
    )
    from rclip_metric.weights.local import Located, find_weights, is_cached
    from rclip_metric.weights.manifest import WeightFile, WeightSpec, get_spec, load_manifest, model_names
    from rclip_metric.weights.publishing import push_encoder, push_files, refresh_manifest
    from rclip_metric.weights.saving import (
        CONFIG_NAME,
        FORMAT,
        WEIGHTS_NAME,
        SavedConfig,
        read_metadata,
        save_encoder,
    )

__all__ = [
    "CONFIG_NAME",
    "FORMAT",
    "WEIGHTS_NAME",
    "Located",
    "SavedConfig",
    "WeightFile",
    "WeightSpec",
    "check_file",
    "download",
    "explained",
    "file_digest",
    "find_weights",
    "get_spec",
    "is_cached",
    "load_encoder",
    "load_manifest",
    "locate",
    "model_names",
    "push_encoder",
    "push_files",
    "read_metadata",
    "read_pickle",
    "refresh_manifest",
    "save_encoder",
    "short_digest",
    "tensors_digest",
    "verify",
]

import_when_used(
    __name__,
    {
        ".digest": "check_file file_digest tensors_digest",
        ".hub": "explained",
        ".identity": "short_digest",
        ".loading": "download load_encoder locate read_pickle verify",
        ".local": "Located find_weights is_cached",
        ".manifest": "WeightFile WeightSpec get_spec load_manifest model_names",
        ".publishing": "push_encoder push_files refresh_manifest",
        ".saving": "CONFIG_NAME FORMAT WEIGHTS_NAME SavedConfig read_metadata save_encoder",
    },
)
