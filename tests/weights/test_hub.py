"""Downloads with the real client from a Hub on loopback: good ones, every failure, and what stays on disk."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rclip_metric.errors import (
    AccessError,
    DigestError,
    HubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UnknownModelError,
    WeightsError,
)
from rclip_metric.weights import WeightFile, digest, file_digest, get_spec, load_manifest, locate, manifest
from rclip_metric.weights import hub as hub_module
from rclip_metric.weights.hub import HubSource, cached_file, fetch, recheck

from support.programs import PATIENCE

REPO = "owner/model"
NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightFile(NAME)


@pytest.fixture
def source(hub, tmp_path) -> HubSource:
    """A repository with one file, and an empty cache."""
    hub.commit(REPO, {NAME: CONTENT, "config.json": b"{}"})
    return HubSource(REPO, cache_dir=tmp_path / "cache")


def files_below(folder: Path) -> list[str]:
    """What a failed download may not leave behind: anything but locks and huggingface_hub's own notes."""
    ignored = {".locks", "refs", ".no_exist"}
    return sorted(
        path.name
        for path in folder.rglob("*")
        if not path.is_dir() and not ignored & set(path.parts) and path.name != "CACHEDIR.TAG"
    )


def assert_one_sentence(error: pytest.ExceptionInfo[WeightsError]) -> None:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and not re.search(r"\. [A-Z]", text.removesuffix("."))


def asked(hub: Any, method: str = "") -> list[str]:
    return [request.path for request in hub.requests if request.method.startswith(method)]


class TestDownload:
    def test_a_good_file_arrives(self, hub, source):
        found = fetch(source, [FILE])
        assert found.path.read_bytes() == CONTENT
        assert found.commit == hub.repos[REPO].head
        assert cached_file(source, NAME) == found

    def test_a_small_file_is_checked_as_well(self, source):
        assert fetch(source, [WeightFile("config.json")]).path.read_bytes() == b"{}"

    def test_the_known_digest_and_size_are_right(self, source):
        fetch(source, [WeightFile(NAME, SHA256, len(CONTENT))])

    @pytest.mark.parametrize("digits", [None, 7, 12, 40])
    def test_a_warm_cache_needs_no_request(self, hub, source, digits):
        commit = hub.repos[REPO].head
        pinned = source if digits is None else replace(source, revision=commit[:digits])
        first = fetch(pinned, [FILE])
        hub.requests.clear()
        assert fetch(pinned, [FILE]) == first
        assert first.commit == commit and not hub.requests

    def test_a_short_hash_finds_what_was_downloaded_under_another_name(self, hub, source):
        first = fetch(source, [FILE])
        hub.requests.clear()
        assert fetch(replace(source, revision=first.commit[:7]), [FILE]) == first
        assert fetch(replace(source, revision=first.commit), [FILE]) == first
        assert not hub.requests

    def test_a_pinned_revision_stays(self, hub, source):
        old = hub.repos[REPO].head
        hub.commit(REPO, {NAME: b"new"})
        assert fetch(replace(source, revision=old[:7]), [FILE]).path.read_bytes() == CONTENT

    def test_a_branch_moves_only_where_the_newest_is_asked_for(self, hub, source):
        fetch(source, [FILE])
        hub.commit(REPO, {NAME: b"new"})
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT
        assert fetch(replace(source, newest=True), [FILE]).path.read_bytes() == b"new"
        assert fetch(source, [FILE]).path.read_bytes() == b"new"

    def test_the_newest_known_is_used_where_the_hub_is_down(self, hub, source):
        fetch(source, [FILE])
        hub.status = 503
        assert fetch(replace(source, newest=True), [FILE]).path.read_bytes() == CONTENT

    def test_names_are_tried_in_order(self, source):
        assert fetch(source, [WeightFile("other.safetensors"), FILE]).name == NAME
        with pytest.raises(NotFoundError, match=r"owner/model has no a.bin or b.bin on the Hub \(404\)"):
            fetch(source, [WeightFile("a.bin"), WeightFile("b.bin")])

    def test_a_connection_that_breaks_is_resumed_or_leaves_nothing(self, hub, source):
        """Which of the two depends on the version of huggingface_hub."""
        hub.broken_after[SHA256] = 1000
        try:
            assert fetch(source, [FILE]).path.read_bytes() == CONTENT
        except NetworkError:
            assert files_below(source.cache) == []
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT

    def test_local_files_only_asks_nobody(self, hub, source):
        local = replace(source, local_files_only=True, newest=True)
        with pytest.raises(NetworkError, match=r"not in the cache .* and local_files_only is set") as error:
            fetch(local, [FILE])
        assert_one_sentence(error)
        assert not hub.requests
        fetch(source, [FILE])
        hub.requests.clear()
        assert fetch(local, [FILE]).path.read_bytes() == CONTENT
        assert not hub.requests


class TestSlowAndKilled:
    def test_a_trickle_ends_in_a_sentence(self, hub, source, monkeypatch):
        """A byte every 50 ms never meets a time-out of the HTTP client, which are about single reads."""
        monkeypatch.setattr(hub_module, "WINDOW", 1.0)
        hub.trickle = 0.05
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"model.safetensors of owner/model comes too slowly, \d+ bytes in") as e:
            fetch(source, [FILE])
        assert time.monotonic() - start < 30  # the whole file would take 85 minutes
        assert_one_sentence(e)
        assert files_below(source.cache) == []
        hub.trickle = None
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT

    def test_a_slow_start_is_no_trickle(self, hub, source):
        hub.delay = 1.0
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT

    def test_nobody_else_s_requests_are_watched_afterwards(self, source):
        from huggingface_hub.utils import get_session

        before = len(get_session().event_hooks["response"])
        fetch(source, [FILE])
        assert len(get_session().event_hooks["response"]) == before

    def test_what_a_killed_download_left_is_removed_by_the_next(self, hub, source, child):
        hub.trickle = 0.01
        process = child(f"attempt({str(source.cache)!r})")
        blobs = source.storage / "blobs"
        deadline = time.monotonic() + PATIENCE
        while not list(blobs.glob("*.incomplete")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        assert list(blobs.glob(f"{SHA256}*.incomplete"))
        (blobs / f"{'0' * 64}.1234abcd.incomplete").write_bytes(b"of another file, whose download was killed")
        hub.trickle = None
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT
        assert not list(blobs.glob("*.incomplete"))

    def test_what_another_process_is_writing_stays(self, source):
        from filelock import FileLock

        other = "1" * 64
        partial = source.storage / "blobs" / f"{other}.1234abcd.incomplete"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(b"more is to come")
        with FileLock(source.cache / ".locks" / source.storage.name / f"{other}.lock"):
            fetch(source, [FILE])
            assert partial.exists()


HOSTILE_IDS = [
    *("a/..", "a/.", "../b", "a/-b", "-a/b", "a/b-", "a/b.", "models--x/y", "a/b--c", "a/b..c", "a//b", "a/b/c"),
    *("a/b.git", "a/b c", "a/b\n", "a/b\x00", "a/\x1b[31mb", "a/é", "a/" + 97 * "b", 97 * "a" + "/b", "a/", "/b"),
    *("~nobody-of-that-name/b", "a/" + 5000 * "b", "a/b?x", "a/b#x", "a\\b/c", "a/b%2e"),
]


class TestNames:
    @pytest.mark.parametrize("name", HOSTILE_IDS)
    def test_what_can_be_no_hub_id_reaches_no_client(self, hub, name, tmp_path):
        with pytest.raises(UnknownModelError) as error:
            locate(name, cache_dir=tmp_path / "cache")
        assert_one_sentence(error)
        assert len(str(error.value)) < 400 and str(error.value).isprintable()
        with pytest.raises(UnknownModelError, match="is no Hub id: that is owner/repo"):
            HubSource(name)
        assert not hub.requests and not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("revision", ["../../x", "a/../b", "a//b", "a\n", "", " ", "-x", "\x00", 300 * "a", "/etc"])
    def test_what_can_be_no_revision(self, hub, revision, tmp_path):
        with pytest.raises(UnknownModelError, match="is no revision on the Hub: pass a commit, branch or tag") as error:
            locate(REPO, revision=revision, cache_dir=tmp_path / "cache")
        assert_one_sentence(error)
        assert not hub.requests and not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("name", ["a/b", "A-b.c_9/x-y.z_", "_/_", "a/" + 96 * "b", 96 * "a" + "/b"])
    def test_what_the_hub_may_have_is_asked_for(self, hub, name, tmp_path):
        with pytest.raises(NotFoundError):
            locate(name, cache_dir=tmp_path / "cache", token=hub.token)
        assert hub.requests


class TestDigest:
    def test_a_corrupt_file_is_refused_and_leaves_nothing(self, hub, source):
        hub.bodies[SHA256] = CONTENT[:-1] + b"?"
        with pytest.raises(DigestError, match=f"not the published file: digest .* expected {SHA256}"):
            fetch(source, [FILE])
        assert files_below(source.cache) == []
        hub.bodies.clear()
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT

    def test_a_truncated_file_is_refused_and_leaves_nothing(self, hub, source):
        hub.bodies[SHA256] = CONTENT[:-10]
        with pytest.raises(DigestError, match=f"model.safetensors of owner/model came truncated.* {len(CONTENT)}") as e:
            fetch(source, [FILE])
        assert_one_sentence(e)
        assert files_below(source.cache) == []

    def test_a_truncated_file_of_unstated_size_is_refused(self, hub, source):
        hub.bodies[SHA256], hub.stated_sizes[SHA256] = CONTENT[:-10], len(CONTENT) - 10
        with pytest.raises(DigestError, match="is truncated: it has 102390 of 102400 bytes"):
            fetch(source, [WeightFile(NAME, SHA256, len(CONTENT))])
        with pytest.raises(DigestError):
            fetch(source, [FILE])
        assert files_below(source.cache) == []

    def test_another_file_than_the_known_one_is_not_even_downloaded(self, hub, source):
        with pytest.raises(DigestError, match=f"The Hub has another model.safetensors.*{SHA256}, expected {'0' * 64}"):
            fetch(source, [WeightFile(NAME, "0" * 64)])
        assert not asked(hub, "GET") and files_below(source.cache) == []

    def test_a_file_that_changed_in_the_cache_is_noticed_and_fetched_again(self, hub, source):
        blob = fetch(source, [FILE]).path.resolve()
        blob.write_bytes(CONTENT[::-1])
        hub.requests.clear()
        with pytest.raises(DigestError, match="was removed from the cache: try again"):
            fetch(source, [FILE])
        assert not hub.requests and files_below(source.cache) == []
        assert fetch(source, [FILE]).path.read_bytes() == CONTENT

    def test_a_digest_is_computed_once_unless_asked_for(self, source, monkeypatch):
        computed: list[Path] = []
        monkeypatch.setattr(digest, "file_digest", lambda path, digits: computed.append(path) or file_digest(path))
        found = fetch(source, [FILE])
        assert fetch(source, [FILE]) == found and len(computed) == 1
        assert recheck(source, found, FILE) == SHA256 and len(computed) == 2
        monkeypatch.setenv("RCLIP_METRIC_ALWAYS_VERIFY", "1")
        assert fetch(source, [FILE]) == found and len(computed) == 3

    def test_a_blob_written_to_in_place_with_its_time_set_back_is_noticed(self, source):
        found = fetch(source, [FILE])
        blob, before = found.path.resolve(), found.path.stat()
        with blob.open("r+b") as file:  # same size, same inode, and then the same time
            file.write(b"????")
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DigestError, match="not the published file"):
            fetch(source, [FILE])
        assert files_below(source.cache) == []

    def test_a_link_that_leads_to_another_blob_is_noticed_and_that_blob_stays(self, hub, source):
        found = fetch(source, [FILE])
        hub.commit(REPO, {NAME: b"another, and as good"})
        other = fetch(replace(source, newest=True), [FILE])
        found.path.unlink()
        found.path.symlink_to(other.path.resolve())
        with pytest.raises(DigestError, match=f"expected {SHA256}.*removed from the cache"):
            fetch(replace(source, revision=found.commit), [FILE])
        assert fetch(source, [FILE]) == other
        assert fetch(replace(source, revision=found.commit), [FILE]).path.read_bytes() == CONTENT

    def test_recheck_returns_the_digest(self, source):
        assert recheck(source, fetch(source, [FILE]), FILE) == SHA256

    @pytest.mark.parametrize("note", ["", "[]", "{"])
    def test_a_damaged_note_of_the_digest_is_made_anew(self, source, note):
        found = fetch(source, [FILE])
        [record] = (source.storage / "rclip-metric").iterdir()
        good = record.read_text()
        record.write_text(note)
        assert fetch(source, [FILE]) == found
        assert record.read_text() == good

    def test_a_cache_without_links_asks_the_hub_for_the_digest(self, hub, source):
        found = fetch(source, [FILE])
        blob = found.path.resolve()
        found.path.unlink()
        blob.rename(found.path)
        [record] = (source.storage / "rclip-metric").iterdir()
        record.unlink()
        hub.requests.clear()
        assert fetch(source, [FILE]) == found
        assert asked(hub) == [f"/{REPO}/resolve/{found.commit}/{NAME}"]
        assert fetch(source, [FILE]) == found  # the note now says it
        assert len(hub.requests) == 1


class TestRefusal:
    """Each in one sentence, under the name of its cause."""

    def refused(self, source: HubSource, cause: type[WeightsError], pattern: str) -> None:
        with pytest.raises(cause, match=pattern) as error:
            fetch(source, [FILE])
        assert_one_sentence(error)
        assert files_below(source.cache) == []

    def test_private(self, hub, source):
        hub.repos[REPO].private = True
        self.refused(source, AccessError, r"private, or does not exist, .* \(401\).*HF_TOKEN")

    def test_gated(self, hub, source):
        hub.repos[REPO].gated = True
        self.refused(source, AccessError, r"is gated \(403\): accept its terms")

    def test_unknown_repository(self, hub, source):
        self.refused(
            replace(source, repo="owner/none", token=hub.token),
            NotFoundError,
            r"nor does its repository \(404\)",
        )
        self.refused(replace(source, repo="owner/none"), AccessError, r"or does not exist, .* \(401\)")

    def test_unknown_revision(self, source):
        self.refused(replace(source, revision="0123456"), NotFoundError, "at this revision, nor does the revision")

    def test_unknown_file(self, hub, source):
        hub.repos[REPO].commits[hub.repos[REPO].head].pop(NAME)
        self.refused(source, NotFoundError, r"owner/model has no model.safetensors on the Hub \(404\)")

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_out_of_order(self, hub, source, status):
        hub.status = status
        self.refused(source, NetworkError, rf"cannot be delivered by the Hub now \({status}\): try again later")

    def test_a_request_that_the_hub_does_not_accept(self, hub, source):
        hub.status = 400
        self.refused(source, HubError, "could not be transferred")

    def test_a_server_that_is_no_hub(self, hub, source):
        hub.status = 200
        self.refused(source, HubError, "names no commit and digest, as a Hub does")

    def test_too_large_for_the_disk(self, hub, source):
        hub.stated_sizes[SHA256] = 10**15
        self.refused(source, StorageError, "takes 1000000000 MB and .* MB free: make room or pass another")
        assert not asked(hub, "GET")

    def test_a_cache_folder_that_is_a_file(self, source, tmp_path):
        (tmp_path / "file").write_text("")
        self.refused(replace(source, cache_dir=tmp_path / "file" / "cache"), StorageError, "cannot be stored in")


class TestToken:
    def test_a_token_opens_and_goes_to_the_hub_only(self, hub, source):
        hub.repos[REPO].gated = hub.repos[REPO].private = True
        fetch(replace(source, token=hub.token), [FILE])
        tokens = {request.path.split("/")[1]: request.headers.get("Authorization") for request in hub.requests}
        assert tokens == {"owner": f"Bearer {hub.token}", "cdn": None}

    def test_a_wrong_token_is_refused(self, hub, source):
        hub.repos[REPO].gated = True
        with pytest.raises(AccessError, match="403"):
            fetch(replace(source, token="hf_wrong"), [FILE])


CHILD = """
import json, os, sys
from dataclasses import replace
from rclip_metric.errors import WeightsError
from rclip_metric.weights.hub import HubSource, fetch
from rclip_metric.weights import WeightFile

results = []

def attempt(cache_dir=None, revision=None, **options):
    try:
        source = HubSource("owner/model", revision, cache_dir, **options)
        found = fetch(source, [WeightFile("model.safetensors")])
        results.append([type(found).__name__, str(found.path)])
    except WeightsError as error:
        results.append([type(error).__name__, str(error)])

"""
Child = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def child(tmp_path) -> Child:
    """Starts a process with its own environment; huggingface_hub reads it once, at import."""

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", f"{CHILD}{code}\nprint(json.dumps(results))"],
            env={**os.environ, **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def results_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """What the child's attempts came to: the class of the result or error, and its path or text."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert err == ""  # no progress bars and no chatter where stderr is not a terminal
    return json.loads(out)


def test_offline_and_without_a_network(hub, source, child, tmp_path):
    """HF_HUB_OFFLINE, and an HF_ENDPOINT where nobody listens: a warm cache works, a cold one says why."""
    warm, cold, commit = str(source.cache), str(tmp_path / "cold"), hub.repos[REPO].head
    path = fetch(source, [FILE]).path
    hub.requests.clear()
    code = (
        f"for revision in (None, {commit!r}, {commit[:7]!r}): attempt({warm!r}, revision)\n"
        f"attempt({warm!r}, newest=True)\nattempt({cold!r})"
    )
    offline = child(code, HF_HUB_OFFLINE="1")
    closed = child(code, HF_ENDPOINT="http://127.0.0.1:9")
    *found, refused = results_of(offline)
    assert found == [["HubFile", str(path)]] * 4
    assert refused[0] == "NetworkError" and f"not in the cache {cold}, and HF_HUB_OFFLINE is set" in refused[1]
    *found, refused = results_of(closed)
    assert found == [["HubFile", str(path)]] * 4
    assert refused[0] == "NetworkError" and "cannot be reached, check the network and HF_ENDPOINT" in refused[1]
    assert not hub.requests and not (tmp_path / "cold").exists()


@pytest.fixture
def models(monkeypatch, tmp_path) -> Iterator[Callable[..., None]]:
    """Gives the process another manifest: r-clip-f, and under each name given a shipped model with those changes."""
    entries = load_manifest()["models"]

    def replace_manifest(r_clip_f: dict[str, Any] | None = None, **shipped: dict[str, Any]) -> None:
        tiny = {field: value for field, value in entries["tiny"].items() if field != "domain"}
        named = {name.replace("_", "-"): {**tiny, **changes} for name, changes in shipped.items()}
        path = tmp_path / "manifest.json"
        models = {"r-clip-f": {**entries["r-clip-f"], **(r_clip_f or {})}, **named}
        path.write_text(json.dumps({"schema_version": 1, "models": models}))
        monkeypatch.setattr(manifest, "manifest_path", lambda: path)
        manifest._specs.cache_clear()

    yield replace_manifest
    manifest._specs.cache_clear()


class TestNamedModelOutOfReach:
    """The sentence names what helps, and no other model is taken instead."""

    UNKNOWN = "its size is not known here, its vision tower takes 353 MB in float32"
    SHIPPED = 'and model="r-lite-f" (in the shell --model r-lite-f) comes with the package.'

    def told(self, hub: Any, cache: Path, **options: Any) -> str:
        with pytest.raises(NetworkError) as error:
            locate("r-clip-f", cache_dir=cache, **options)
        assert_one_sentence(error)
        assert not list(cache.rglob("*.safetensors"))
        return str(error.value)

    @pytest.mark.parametrize("options, status", [({"local_files_only": True}, None), ({}, 503)])
    def test_the_download_and_the_shipped_model(self, hub, models, tmp_path, options, status):
        models(r_lite_f={})
        hub.status = status
        text = self.told(hub, tmp_path / "cache", **options)
        assert text.endswith(f"; `rclip-metric download r-clip-f` fetches it once ({self.UNKNOWN}), {self.SHIPPED}")
        assert bool(hub.requests) == (status is not None)
        again = self.told(hub, tmp_path / "cache", revision="abcdef1", **options)
        assert "`rclip-metric download r-clip-f --revision abcdef1`" in again

    @pytest.mark.parametrize(
        "shipped",
        [{}, {"tiny": {"domain": "drawn scenes"}}, {"lite": {"training": None}}, {"r_lite_f": {"files": "missing"}}],
    )
    def test_only_a_robust_model_that_is_here_and_knows_photographs_is_named(self, hub, models, tmp_path, shipped):
        file = {"name": "models/missing.safetensors", "sha256": None, "size": None}
        models(**{n: c | ({"files": [file]} if "files" in c else {}) for n, c in shipped.items()})
        text = self.told(hub, tmp_path / "cache", local_files_only=True)
        assert text.endswith(f"fetches it once ({self.UNKNOWN}).")

    def test_the_size_is_the_manifest_s_where_it_is_known(self, hub, models, tmp_path):
        file = {"name": "open_clip_model.safetensors", "sha256": None, "size": 718_000_000}
        models(r_clip_f={"files": [file]})
        text = self.told(hub, tmp_path / "cache", local_files_only=True)
        assert text.endswith("`rclip-metric download r-clip-f` fetches it once (718 MB).")

    def test_what_is_in_the_cache_is_used(self, hub, models, tmp_path):
        commit = hub.commit(get_spec("r-clip-f").repo, {"open_clip_model.safetensors": CONTENT})
        models(r_clip_f={"revision": commit}, r_lite_f={})
        path = locate("r-clip-f", cache_dir=tmp_path / "cache").path
        assert locate("r-clip-f", cache_dir=tmp_path / "cache", local_files_only=True).path == path

    def test_the_command_with_hf_hub_offline(self, hub, tmp_path):
        image = Path(__file__).parents[2] / "examples" / "images" / "reference.png"
        command = [sys.executable, "-m", "rclip_metric", "score", str(image), str(image)]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        shipped = f", {self.SHIPPED}" if "r-lite-f" in manifest.model_names() else "."
        text = f"`rclip-metric download r-clip-f` fetches it once ({self.UNKNOWN}){shipped}\n"
        assert "HF_HUB_OFFLINE is set" in done.stderr and done.stderr.endswith(text)
        assert not hub.requests


def test_the_environment_is_honoured_quietly(hub, source, child, tmp_path):
    """HF_HOME and HF_TOKEN; and nothing on stderr, nothing in the current folder."""
    hub.repos[REPO].private = True
    home = tmp_path / "home"
    [[kind, path]] = results_of(child("attempt()", HF_HOME=str(home), HF_TOKEN=hub.token))
    assert kind == "HubFile" and Path(path).is_relative_to(home / "hub")
    tokens = {request.headers.get("Authorization") for request in hub.requests if "/resolve/" in request.path}
    assert tokens == {f"Bearer {hub.token}"}
    assert [item.name for item in tmp_path.iterdir()] == ["home"]


def test_two_processes_that_start_together_on_a_cold_cache(hub, source, child):
    hub.delay = 0.5
    gate = source.cache.parent / "go"
    code = f"""
import huggingface_hub.file_download, pathlib, time
pathlib.Path(f"{{os.getpid()}}.ready").touch()
while not os.path.exists({str(gate)!r}):
    time.sleep(0.001)
attempt({str(source.cache)!r})"""
    both = [child(code) for _ in range(2)]
    while len(list(gate.parent.glob("*.ready"))) < 2:
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.01)
    gate.touch()
    outcomes = [results_of(process) for process in both]
    assert outcomes[0] == outcomes[1] == [["HubFile", str(fetch(source, [FILE]).path)]]
    assert not list(source.cache.rglob("*.incomplete"))


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="limits and users as on POSIX")
def test_a_full_disk_and_a_read_only_cache(hub, source, child, tmp_path):
    """The system's own refusals: a limit on the size of files, a full disk where one can be made, another's folder."""
    full, disk, locked = tmp_path / "full", tmp_path / "disk", tmp_path / "locked"
    disk.mkdir()
    locked.mkdir(mode=0o555)
    hub.stated_sizes[SHA256] = 100  # or the download would not even begin
    code = f"""
import ctypes, huggingface_hub.file_download, resource
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
attempt({str(full)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

libc, private, own_mounts = ctypes.CDLL(None), 0x44000, 0x20000
if sys.platform == "linux" and libc.unshare(own_mounts) == 0 and libc.mount(b"none", b"/", None, private, None) == 0:
    if libc.mount(b"none", {str(disk).encode()!r}, b"tmpfs", 0, b"size=64k") == 0:
        attempt({str(disk)!r})
        assert not [name for _, _, names in os.walk({str(disk)!r}) for name in names if "incomplete" in name]

if os.getuid() == 0:
    os.chmod({str(tmp_path)!r}, 0o755)
    os.setuid(65534)  # nothing is read-only for root
attempt({str(locked)!r})
"""
    *too_small, read_only = results_of(child(code))
    for folder, (cause, text) in zip((full, disk), too_small, strict=False):
        assert cause == "StorageError" and f"does not fit on the disk of {folder}" in text
    assert too_small and files_below(full) == []
    assert read_only[0] == "StorageError" and f"cannot be stored in {locked} (Permission denied)" in read_only[1]
    assert not list(locked.iterdir())
