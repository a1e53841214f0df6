"""What a record says of the processor: its model, and what decides how it rounds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rclip_metric.train.runs.machine import device_record
from rclip_metric.train.runs.precision import bfloat16_is_fast

CPU = torch.device("cpu")


def test_the_processor_is_named_with_what_decides_its_rounding():
    found = device_record(CPU)
    assert list(found) == ["type", "name", "capability", "bfloat16", "onednn"]
    assert json.loads(json.dumps(found)) == found and found["type"] == "cpu" and found["name"]
    if found["capability"] != "DEFAULT":
        assert f"CPU capability usage: {found['capability']}\n" in torch.__config__.show()
    assert bfloat16_is_fast(CPU) == bool(found["bfloat16"])


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads what Linux says of the processor")
def test_it_is_what_the_system_states():
    stated = dict(re.findall(r"^([^:\t]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    found, flags = device_record(CPU), stated.get("flags", "").split()
    assert found["name"] == stated.get("model name", found["name"]).strip()
    assert found["bfloat16"] == [name for name in ("amx_bf16", "avx512_bf16") if name in flags]


@pytest.mark.parametrize(
    ("variables", "before", "told"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, "", {"capability": "DEFAULT"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "", {"onednn": "AVX2"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "torch.backends.mkldnn.enabled = False; ", {"onednn": "off"}),
    ],
)
def test_a_confined_processor_is_told_from_a_free_one(variables, before, told):
    if "onednn" in told and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    program = f"import json, torch; from rclip_metric.train.runs.machine import device_record; {before}"
    program += "print(json.dumps(device_record(torch.device('cpu'))))"
    command = [sys.executable, "-c", program]
    found = json.loads(subprocess.check_output(command, env={**os.environ, **variables}, text=True))
    assert {key: found[key] for key in told} == told and found["name"] == device_record(CPU)["name"]
