"""A process that is forked after its parent used a model computes, and what the parent does."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 (so that its libraries are in the process)

PROGRAM = """
import multiprocessing, os, sys
import torch
from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import forked

torch.set_num_threads(2)
if sys.argv[1] == "unmended":
    forked._registered = True
metric = RobustPerceptualDistance("tiny")
x, y = torch.rand(2, 8, 3, 64, 64)
expected = metric(x, y)

def work(queue):
    queue.put((metric(x, y).tolist(), torch.get_num_threads()))

context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=work, args=(queue,)) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join(60 if sys.argv[1] == "mended" else 5)
hanging = sum(child.is_alive() for child in children)
for child in children:
    child.kill()
if hanging:
    print("hanging", hanging)
    os._exit(0)
for _ in children:
    found, threads = queue.get()
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-4)
    assert threads == 1, threads
print("done", torch.get_num_threads())
"""

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")


def run(how: str) -> str:
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, how]
    return subprocess.run(program, check=True, capture_output=True, text=True, timeout=300).stdout


def test_children_compute_after_their_parent_did() -> None:
    assert run("mended") == "done 2\n"


def uses_libgomp() -> bool:
    """Whether torch's threads are GNU OpenMP's, which does not outlive a fork; those of LLVM and Intel do."""
    maps = Path("/proc/self/maps")
    return maps.exists() and "libgomp" in maps.read_text()


@pytest.mark.skipif(not uses_libgomp(), reason="torch does not compute with GNU OpenMP here")
def test_without_the_mending_they_hang() -> None:
    assert run("unmended") == "hanging 2\n"
