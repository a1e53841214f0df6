"""What every long job shares: settings, processes, device, precision, seeds, files, log, states, interruption."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

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
        PRECISIONS,
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

import_when_used(
    __name__,
    {
        ".checkpoint": "TrainingState latest_state read_state restore_training save_batch save_state write_state",
        ".config": "PRECISIONS Recipe add_options add_size configured count positive radius read_recipe read_settings "
        "recipe_names setting shared_out",
        ".distributed": "ALONE Team chosen_device join",
        ".files": "append_line provenance state_path states step_of storing whole_lines write_json write_text",
        ".interrupt": "Interrupt Interrupted",
        ".log": "LOG_NAME TrainingLog",
        ".machine": "bfloat16_instructions device_name device_record versions",
        ".precision": "bfloat16_is_fast encoder_precision full_float32 resolved_precision",
        ".schedule": "cosine_schedule",
        ".seeds": "mixed_seed sample_seed seeded temporary_seed",
    },
)
