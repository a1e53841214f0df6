"""The demo: what a distance means, what an attack finds, and the page as browsers and programs reach it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance, load_image, score
from rclip_metric.cli.main import main
from rclip_metric.train.data.scenes.draw import generator, render, sample_scene
from rclip_metric.train.demo import Typical, attack_image, place, typical_distances
from rclip_metric.train.demo.answers import PAIRS, draw_examples

from support.programs import EXAMPLES, PATIENCE

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def test_the_typical_distances_are_those_that_were_measured():
    photographs = json.loads((ROOT / "results/typical_distances_photographs.json").read_text())
    for model in ("lite", "r-lite-f"):
        rows = {row.kind: row for row in typical_distances(model)}
        assert rows.keys() == photographs["distances"].keys()
        for kind, measured in photographs["distances"].items():
            told = rows[kind]
            assert [told.low, told.middle, told.high] == [measured[model][key] for key in ("5 %", "50 %", "95 %")]
    scenes = json.loads((ROOT / "results/typical_distances.json").read_text())["distances"]
    assert {row.kind: [row.low, row.middle, row.high] for row in typical_distances("tiny")} == {
        kind: measured["tiny"] for kind, measured in scenes.items()
    }


@pytest.mark.parametrize("pair", PAIRS.values())
def test_they_are_of_the_weights_that_are_shipped(pair):
    revision = RobustPerceptualDistance(pair.robust).encoder.revision
    assert typical_distances(pair.robust, revision)
    assert typical_distances("r-lite-f", "sha256:of another") == [] == typical_distances("r-clip-f")


def test_a_distance_has_a_place():
    rows = [
        Typical("blur", 0.1, 0.15, 0.2, 90),
        Typical("crop", 0.18, 0.3, 0.4, 90),
        Typical("other", 0.5, 0.7, 0.9, 90),
    ]
    assert place(0.19, rows) == '0.1900 is usual for "blur" (0.10 to 0.20), "crop" (0.18 to 0.40).'
    assert 'more than is usual for "crop"' in place(0.45, rows) and 'less than for "other"' in place(0.45, rows)
    assert 'less than is usual for anything that was measured, even "blur"' in place(0.01, rows)
    assert 'more than is usual for anything that was measured, even "other"' in place(1.2, rows)
    assert "has not been measured" in place(0.3, [])


def test_an_attack_stays_in_its_ball_and_moves_the_clean_model_further():
    image, other = (
        torch.from_numpy(render(sample_scene(generator(0, "attacked", i))).transpose(2, 0, 1) / np.float32(255))
        for i in (0, 1)
    )
    moved = {}
    for name in PAIRS["drawn scenes"]:
        metric = RobustPerceptualDistance(name)
        found = attack_image(metric, image, other, steps=4)
        changed = found.levels / 255
        assert found.levels.dtype == torch.uint8 and (changed - image).abs().max() <= 4 / 255 + 1e-6
        assert found.largest == 4
        told = [
            metric(changed[None], image[None]),
            metric(image[None], other[None]),
            metric(changed[None], other[None]),
        ]
        assert [found.moved, found.before, found.after] == pytest.approx([value.item() for value in told], abs=1e-6)
        moved[name] = found.moved
    assert moved["tiny-clean"] > 2 * moved["tiny"] > 0


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_examples(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def address():
    """The file of the Space, which is the command with what the Space says of where to listen."""
    port = free_port()
    where = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, EXAMPLES / "space" / "app.py", "--megabytes", "1", "--megapixels", "1", "--steps", "2"]
    with subprocess.Popen(
        command, env=os.environ | where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            told = server.stdout.readline()
            assert told.startswith(f"http://127.0.0.1:{port}/"), server.communicate(timeout=PATIENCE)
            yield told.split()[0]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                _, complaints = server.communicate(timeout=PATIENCE)
            finally:
                server.kill()  # one that does not end would be waited for by whoever waits for the tests
    assert server.returncode == 0 and "ImageError" not in complaints


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    from gradio_client import Client

    made = Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield made
    made.close()


def ask(client, a, b, kind="drawn scenes", api="/compare"):
    from gradio_client import handle_file

    def sent(image):
        return handle_file(str(image)) if isinstance(image, str | Path) else image

    return client.predict(sent(a), sent(b), kind, api_name=api)


def test_the_page_is_there_and_tells_nobody(address):
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        page = answer.read().decode()
    assert "How far apart are two images?" in page
    with urllib.request.urlopen(f"{address}config", timeout=PATIENCE) as answer:
        config = json.loads(answer.read())
    assert config["analytics_enabled"] is False


def test_only_this_machine_is_served(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as other:  # on all addresses, this one would be taken as well
        other.bind(("127.0.0.2", port))


def test_the_answer_is_the_metric_s(client, images):
    distance, told, shown = ask(client, *images)
    assert distance == pytest.approx(score(*images, "tiny"), abs=1e-7)
    assert place(distance, typical_distances("tiny")) in told
    metric = RobustPerceptualDistance("tiny")
    found = metric.difference_map(*(load_image(path)[None] for path in reversed(images)))
    assert f"0 (dark) to {found.max():.2f} (bright)" in told
    with Image.open(shown) as picture:
        assert picture.size == (64, 64)
        brightness = np.asarray(picture.convert("RGB")).sum(2)
    assert np.corrcoef(brightness.ravel(), found[0].ravel())[0, 1] > 0.8
    assert ask(client, images[0], images[0])[0] == 0.0


def test_the_attack_shows_both_models(client, images):
    told, pictures = ask(client, *images, api="/attack")
    rows = dict(re.findall(r"\| (\S+) \(\w+\) \| [\d.]+ \| ([\d.]+) \|", told))
    image, other = (load_image(path) for path in images)
    for name in PAIRS["drawn scenes"]:
        found = attack_image(RobustPerceptualDistance(name), image, other, steps=2)
        assert float(rows[name]) == pytest.approx(found.moved, abs=0.006)
    assert [picture["caption"].split(":")[0] for picture in pictures] == [
        "A, as it came", "changed against tiny-clean", "the change, times 20", "changed against tiny",
        "the change, times 20",
    ]  # fmt: skip
    with Image.open(pictures[1]["image"]) as changed:
        assert np.abs(np.asarray(changed).astype(int) - (image * 255).permute(1, 2, 0).numpy()).max() <= 4.01


def test_photographs_are_judged_by_the_other_pair(client, images):
    assert ask(client, *images, "photographs")[0] == pytest.approx(score(*images, "r-lite-f"), abs=1e-7)
    told, _ = ask(client, *images, "photographs", "/attack")
    assert "lite (clean)" in told and "r-lite-f (robust)" in told


def test_what_cannot_be_compared_is_said_in_a_sentence(client, images, tmp_path):
    from gradio_client.exceptions import AppError

    text, large, many = tmp_path / "text.png", tmp_path / "large.png", tmp_path / "many.png"
    text.write_text("no image")
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(large)
    Image.new("1", (2000, 1000)).save(many)
    good = images[0]
    for a, b, kind, told in (
        (None, good, "drawn scenes", "image A is missing: upload two images"),
        (good, text, "drawn scenes", "image B: not an image"),
        (many, good, "drawn scenes", "image A has 2,000,000 pixels, expected at most 1,000,000"),
    ):
        with pytest.raises(AppError, match=re.escape(told)):
            ask(client, a, b, kind)
    with pytest.raises(ValueError, match="exceeds the maximum file size of 1000000 bytes"):
        ask(client, large, good)
    assert ask(client, good, good)[0] == 0.0  # it goes on


def call(address: str, *data: object) -> str:
    """What the server answers to whoever sends what he likes."""
    request = urllib.request.Request(
        f"{address}gradio_api/call/compare", json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/compare/{event}", timeout=PATIENCE) as answer:
        return answer.read().decode()


def test_only_uploads_are_opened(address, images):
    for path in (images[0], "/dev/zero", "http://127.0.0.1/a.png", "a.png"):
        told = call(address, {"path": path}, {"path": path}, "drawn scenes")
        assert "event: error" in told and "image A is no upload" in told, told
    record = {"path": images[0], "meta": {"_type": "gradio.FileData"}}
    assert "it was not uploaded by a user" in call(address, record, record, "drawn scenes")  # as Gradio says it
    inline = {"url": "data:image/png;base64,AAAA"}
    assert "image A is missing" in call(address, inline, inline, "drawn scenes")
    assert "expected photographs or drawn scenes" in call(address, None, None, "paintings")


def test_the_server_itself_refuses_large_uploads(address):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + b"0" * 1_100_000
        + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=PATIENCE)
    with raised.value as answer:
        assert answer.code == 413


def test_bad_input_to_the_command(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert main(["demo", "--port", "99999"]) == 2
    assert "expected a port from 1 to 65535, got '99999'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert main(["demo", "--port", str(free_port())]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and 'pip install "rclip-metric[demo]"' in err


def test_the_space_says_what_it_needs():
    folder = EXAMPLES / "space"
    front = (folder / "README.md").read_text().split("---\n")[1]
    facts = dict(line.split(": ", 1) for line in front.strip().splitlines())
    assert facts["sdk"] == "gradio" and (folder / facts["app_file"]).exists() and facts["license"] == "mit"
    [needed] = (folder / "requirements.txt").read_text().split()
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", needed).groups()
    project = (ROOT / "pyproject.toml").read_text()
    assert f'name = "{name}"' in project
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
