"""What every long job shares: settings, processes, device, precision, seeds, files, log, states, interruption."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclip_metric.train.runs.checkpoint import (
        TrainingState,
        latest_state,
        read_state,
        restore_training,
        save_batch,
        save_state,
        write_state,
    )
    from rclip_metric.train.runs.config import (
        Recipe,
        add_options,
        add_size,
        configured,
        count,
        positive,
        radius,
        read_recipe,
        read_settings,
        recipe_names,
        setting,
        shared_out,
    )
    from rclip_metric.train.runs.distributed import ALONE, Team, chosen_device, join
    from rclip_metric.train.runs.files import (
        append_line,
        provenance,
        state_path,
        states,
        step_of,
        storing,
        whole_lines,
        write_json,
        write_text,
    )
    from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
    from rclip_metric.train.runs.log import LOG_NAME, TrainingLog
    from rclip_metric.train.runs.machine import bfloat16_instructions, device_name, device_record, versions
    from rclip_metric.train.runs.precision import (
        PRECISIONS,
        bfloat16_is_fast,
        encoder_precision,
        full_float32,
        resolved_precision,
    )
    from rclip_metric.train.runs.schedule import cosine_schedule
    from rclip_metric.train.runs.seeds import mixed_seed, sample_seed, seeded, temporary_seed

__all__ = [
    "ALONE",
    "LOG_NAME",
    "PRECISIONS",
    "Interrupt",
    "Interrupted",
    "Recipe",
    "Team",
    "TrainingLog",
    "TrainingState",
    "add_options",
    "add_size",
    "append_line",
    "bfloat16_instructions",
    "bfloat16_is_fast",
    "chosen_device",
    "configured",
    "cosine_schedule",
    "count",
    "device_name",
    "device_record",
    "encoder_precision",
    "full_float32",
    "join",
    "latest_state",
    "mixed_seed",
    "positive",
    "provenance",
    "radius",
    "read_recipe",
    "read_settings",
    "read_state",
    "recipe_names",
    "resolved_precision",
    "restore_training",
    "sample_seed",
    "save_batch",
    "save_state",
    "seeded",
    "setting",
    "shared_out",
    "state_path",
    "states",
    "step_of",
    "storing",
    "temporary_seed",
    "versions",
    "whole_lines",
    "write_json",
    "write_state",
    "write_text",
]

# Nothing is imported before it is used: the options of a command need no torch.
_MODULES = {
    "ALONE": "distributed",
    "LOG_NAME": "log",
    "PRECISIONS": "precision",
    "Interrupt": "interrupt",
    "Interrupted": "interrupt",
    "Recipe": "config",
    "Team": "distributed",
    "TrainingLog": "log",
    "TrainingState": "checkpoint",
    "add_options": "config",
    "add_size": "config",
    "append_line": "files",
    "bfloat16_instructions": "machine",
    "bfloat16_is_fast": "precision",
    "chosen_device": "distributed",
    "configured": "config",
    "cosine_schedule": "schedule",
    "count": "config",
    "device_name": "machine",
    "device_record": "machine",
    "encoder_precision": "precision",
    "full_float32": "precision",
    "join": "distributed",
    "latest_state": "checkpoint",
    "mixed_seed": "seeds",
    "positive": "config",
    "provenance": "files",
    "radius": "config",
    "read_recipe": "config",
    "read_settings": "config",
    "read_state": "checkpoint",
    "recipe_names": "config",
    "resolved_precision": "precision",
    "restore_training": "checkpoint",
    "sample_seed": "seeds",
    "save_batch": "checkpoint",
    "save_state": "checkpoint",
    "seeded": "seeds",
    "setting": "config",
    "shared_out": "config",
    "state_path": "files",
    "states": "files",
    "step_of": "files",
    "storing": "files",
    "temporary_seed": "seeds",
    "versions": "machine",
    "whole_lines": "files",
    "write_json": "files",
    "write_state": "checkpoint",
    "write_text": "files",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too that were not asked for yet."""
    return sorted({*globals(), *__all__})
