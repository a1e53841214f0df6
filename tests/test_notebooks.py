"""The notebooks of examples/notebooks: valid, without outputs, and their cells run in order, offline."""

import json
import os
import subprocess
import sys

import pytest

from support.programs import EXAMPLES, PATIENCE

NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
# What a kernel does, as far as these need it: one namespace, cells in order, a figure is drawn when it is shown.
# The network is taken away, and so is the screen.
_KERNEL = """
import json, os, pathlib, socket, sys, warnings
warnings.simplefilter("error")
def refused(*address):
    raise AssertionError(f"a notebook asks for the network: {address}")
socket.socket.connect = refused
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
figures = []
def show():
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        figures.append(number)
    plt.close("all")
plt.show = show
name, folder = sys.argv[1:]
names = {"__name__": "__main__"}
for number, cell in enumerate(json.loads(pathlib.Path(name).read_text(encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
        if folder:
            pathlib.Path(folder, f"{number}").touch()
assert not plt.get_fignums(), "a figure is not shown"
print("figures", len(figures))
"""


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["as_a_loss", "attack_and_defend", "compare_photographs", "look_inside"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_hold_no_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {} and "".join(cell["source"]).strip()
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" == text  # as Jupyter writes it: small differences
    assert notebook["cells"][0]["source"][0].startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_in_order_and_without_a_network(path, tmp_path):
    kernel = tmp_path / "kernel.py"
    kernel.write_text(_KERNEL)
    done = tmp_path / "done"
    done.mkdir()
    result = subprocess.run(
        [sys.executable, kernel, path, done],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert {file.name for file in done.iterdir()} == {
        str(number) for number, cell in enumerate(cells) if cell["cell_type"] == "code"
    }
    shown = sum("".join(cell["source"]).count("plt.show()") for cell in cells if cell["cell_type"] == "code")
    assert int(result.stdout.split()[-1]) >= min(shown, 2)
