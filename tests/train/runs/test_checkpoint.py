"""States of a run: what is restored goes on bit for bit, and no full disk, crash or signal costs the last good one."""

import dataclasses
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rclip_metric import files
from rclip_metric.errors import CheckpointError, StorageError
from rclip_metric.train.runs import tensor_file
from rclip_metric.train.runs.checkpoint import (
    TrainingState,
    latest_state,
    read_state,
    restore_training,
    save_batch,
    save_state,
    write_state,
)
from rclip_metric.train.runs.files import states, system_error, write_json
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.tensor_file import read, write


@dataclasses.dataclass(frozen=True)
class Recipe:
    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)


def small_model(channels_last=False):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, history_size=4)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "adamw without foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=1e-2),  # its one slot is None
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "lbfgs": lbfgs,  # lists of tensors, numbers, None
}


def train(model, optimizer, first, last):
    """Steps with a batch, and a learning rate, per step, and dropout from the global generator."""
    model.train()
    for step in range(first, last):
        x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        x = x.contiguous(memory_format=torch.channels_last)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().sum(1).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9  # what a schedule does


def flat(value, place=""):
    """The leaves of nested dicts and lists, by place."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{place}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{place}/{key}").items()}
    return {place: value}


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for place, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[place]), place
            assert value.stride() == other[place].stride(), place
        else:
            assert value == other[place] and type(value) is type(other[place]), place


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [*((name, False) for name in OPTIMIZERS), ("adamw", True), ("adamw without foreach", True), ("sgd momentum", True)],
)
def test_a_restored_run_goes_on_bit_for_bit(name, channels_last, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = small_model(channels_last)
        whole_optimizer = OPTIMIZERS[name](whole.parameters())
        train(whole, whole_optimizer, 0, 6)

        torch.manual_seed(7)
        model = small_model(channels_last)
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer, 0, 3)
        facts = {"position": {"epoch": 1, "taken": 15}}
        path = save_state(
            tmp_path, 3, Recipe(), model=model, optimizer=optimizer, facts=facts, rng=torch.get_rng_state()
        )
        assert path.name == "state-00000003.safetensors"
        train(model, optimizer, 3, 4)  # what a crash loses
        torch.manual_seed(99)

        again = small_model(channels_last)
        optimizer = OPTIMIZERS[name](again.parameters())
        state = latest_state(tmp_path, Recipe())
        assert state is not None and state.step == 3 and state.facts == facts and state.path == path
        restore_training(state, again, optimizer)
        torch.set_rng_state(state.parts["rng"])
        train(again, optimizer, 3, 6)
    assert_same(whole.state_dict(), again.state_dict())
    assert_same(whole_optimizer.state_dict(), optimizer.state_dict())


def test_values_of_every_kind_come_back_as_they_were(tmp_path):
    shared = torch.arange(6.0)
    values = {
        "numbers": [1, 2.5, float("inf"), True, None, "text"],
        "keys": {0: torch.tensor(3), "0": torch.tensor(4), "a.b": torch.zeros(0, 2)},
        "tuple": (shared[:3], shared[3:].view(3, 1), shared),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "turned": torch.arange(6).view(2, 3).T,
        "flags": torch.tensor([True, False]),
    }
    write(tmp_path / "v.safetensors", values, {"about": "x"})
    back, metadata = read(tmp_path / "v.safetensors")
    assert metadata["about"] == "x"
    one, other = flat(values), flat(back)
    assert list(one) == list(other) and isinstance(back["tuple"], tuple) and list(back["keys"]) == [0, "0", "a.b"]
    for place, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[place].dtype and torch.equal(value, other[place]), place
        else:
            assert value == other[place] and type(value) is type(other[place]), place
    assert {path.name for path in tmp_path.iterdir()} == {"v.safetensors"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "v.safetensors").stat().st_mode) == 0o666 & ~umask
    with pytest.raises(ValueError, match=r"a state holds tensors and plain values, and a\.b is a object"):
        write(tmp_path / "w.safetensors", {"a": {"b": object()}}, {})


def a_state(folder, step, keep=2, size=1, **extra):
    model = nn.Linear(size, 2)
    return save_state(
        folder, step, Recipe(), model=model, optimizer=torch.optim.SGD(model.parameters()), keep=keep, **extra
    )


def test_the_newest_states_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        a_state(tmp_path, step, keep=3)
    assert [path.name for path in states(tmp_path)] == [f"state-{n:08d}.safetensors" for n in (10, 15, 20)]
    a_state(tmp_path, 25, keep=0)
    assert len(states(tmp_path)) == 4
    a_state(tmp_path, 12, keep=1)  # a run that went back: later states are none of its business
    assert [int(path.name[6:14]) for path in states(tmp_path)] == [12, 15, 20, 25]
    with pytest.raises(ValueError, match="--keep must be 0"):
        a_state(tmp_path, 30, keep=-1)
    assert latest_state(tmp_path / "nothing") is None
    names = {path.name for path in tmp_path.iterdir()}
    assert all(name.startswith("state-") for name in names), names


def test_older_states_go_only_when_the_new_one_is_in_place(tmp_path, monkeypatch):
    a_state(tmp_path, 1, keep=1)
    seen = []
    rename, unlink = os.replace, Path.unlink

    def replace(source, target):
        seen.append(("rename", [path.name for path in states(tmp_path)]))
        rename(source, target)

    def remove(path, **settings):
        seen.append(("remove", [path.name for path in states(tmp_path)]))
        unlink(path, **settings)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", remove)
    a_state(tmp_path, 2, keep=1)
    one, two = "state-00000001.safetensors", "state-00000002.safetensors"
    assert seen == [("rename", [one]), ("remove", [one, two])]
    assert [path.name for path in states(tmp_path)] == [two]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "zeros", "foreign"])
def test_a_damaged_state_is_told_and_the_one_before_is_used(damage, tmp_path):
    a_state(tmp_path, 1)
    newest = a_state(tmp_path, 2, size=1000)
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[:-100])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "flipped":
        content[-100] ^= 1
        newest.write_bytes(content)
    elif damage == "zeros":  # right length, but the pages never reached the disk
        newest.write_bytes(content[:-4096] + bytes(4096))
    else:
        save_file({"model.weight": torch.zeros(2)}, newest)
    told: list[str] = []
    state = latest_state(tmp_path, Recipe(), report=told.append)
    assert state is not None and state.step == 1
    assert len(told) == 1 and str(newest) in told[0] and told[0].endswith("The state before it is used.")
    with pytest.warns(RuntimeWarning, match="state-00000002"):
        latest_state(tmp_path)
    with pytest.raises(CheckpointError, match="state-00000002"):
        read_state(newest)
    states(tmp_path)[0].unlink()
    with pytest.raises(ValueError, match=r"none of the states in .* can be read .*remove them to begin anew"):
        latest_state(tmp_path)


def test_the_checksum_is_of_all_bytes_by_name(tmp_path):
    write(tmp_path / "v.safetensors", {"b": torch.tensor([1.0]), "a": torch.tensor([2], dtype=torch.uint8)}, {})
    with safe_open(tmp_path / "v.safetensors", framework="pt") as handle:
        stored = handle.metadata()["crc32"]
    assert stored == f"{zlib.crc32(b'a' + bytes([2]) + b'b' + bytes([0, 0, 128, 63])):08x}"  # 1.0, little-endian


def test_a_state_of_another_recipe_names_the_fields(tmp_path):
    a_state(tmp_path, 1)
    assert latest_state(tmp_path, {"learning_rate": 0.01, "betas": [0.9, 0.999]}) is not None
    other = dataclasses.replace(Recipe(), learning_rate=1.0)
    with pytest.raises(ValueError, match=r"another setting of learning_rate \(0.01, and now 1.0\): continue"):
        latest_state(tmp_path, other)
    with pytest.raises(ValueError, match=r"betas .* steps \(None, and now 5\)"):
        latest_state(tmp_path, {"learning_rate": 0.01, "steps": 5})


def test_a_state_of_another_model_or_optimizer_is_refused(tmp_path):
    a_state(tmp_path, 1)
    state = latest_state(tmp_path)
    assert isinstance(state, TrainingState)
    model = nn.Linear(5, 2)
    with pytest.raises(ValueError, match=r"state-00000001.* does not fit this run: .*size mismatch for weight"):
        restore_training(state, model, torch.optim.SGD(model.parameters()))
    model = nn.Linear(1, 2)
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, and the run's groups of \[1\]"):
        restore_training(state, model, torch.optim.SGD([model.weight]))


def test_a_state_of_a_newer_version_is_refused(tmp_path):
    path = a_state(tmp_path, 1)
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    del metadata["crc32_of_the_rest"]
    save_file(load_file(path), path, {**metadata, "version": "99"})
    with pytest.raises(ValueError, match="has version 99 of the format, and this rclip-metric reads 2: update it"):
        latest_state(tmp_path)


def test_one_file_that_is_replaced_every_time(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    train_path = tmp_path / "run" / "state.safetensors"
    for step in (1, 2):
        write_state(train_path, step, Recipe(), model=model, optimizer=optimizer)
    assert read_state(train_path, Recipe()).step == 2
    with pytest.raises(ValueError, match=r"another setting of betas"):
        read_state(train_path, dataclasses.replace(Recipe(), betas=(0.5, 0.5)))
    assert [path.name for path in train_path.parent.iterdir()] == ["state.safetensors"]
    with safe_open(train_path, framework="pt") as handle:  # what `train text` reads from it
        assert {"model.weight", "model.bias"} <= set(handle.keys())
        assert json.loads(handle.metadata()["config"])["learning_rate"] == 0.01


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_sentence_and_costs_nothing_that_was_saved(small_disk):
    a_state(small_disk, 1, size=50_000)  # 400 kB
    good = a_state(small_disk, 2, size=50_000)
    before = good.read_bytes()
    with pytest.raises(StorageError) as caught:
        a_state(small_disk, 3, size=100_000)
    text = str(caught.value)
    assert text.startswith(f"the state after step 3 cannot be written to {small_disk}: No space left on device")
    assert "it takes 0.80 MB" in text and "make room, or keep fewer states (--keep)" in text
    assert text.endswith("state-00000002.safetensors is still good, and the same command goes on from it.")
    free = os.statvfs(small_disk)
    assert f"{free.f_bavail * free.f_frsize / 1e6:.2f} MB are free there" in text
    assert {path.name for path in small_disk.iterdir()} == {path.name for path in states(small_disk)}
    assert len(states(small_disk)) == 2 and good.read_bytes() == before
    state = latest_state(small_disk, Recipe())
    assert state is not None and state.step == 2
    told = save_batch(small_disk, 4, torch.zeros(2, 3, 300, 300))
    assert told.startswith("the batch of step 4 cannot be written to") and "No space left on device" in told
    with pytest.raises(StorageError, match=r"run\.json cannot be written"):
        write_json(small_disk / "run.json", {"text": "x" * 1_000_000})
    assert len(list(small_disk.iterdir())) == 2


def in_a_child(work):
    """The exit status of a forked process that does ``work``: what it does to itself stays there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads: the child has none
        child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs must not hang the tests
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_quota_is_one_sentence_too(tmp_path):
    """A limit on the size of files stands for a quota: it needs no root."""
    run = tmp_path / "run"
    a_state(run, 1)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            a_state(run, 2, size=50_000)
        except StorageError as error:
            (tmp_path / "told").write_text(str(error))

    assert in_a_child(limited) == 0
    told = (tmp_path / "told").read_text()
    assert told.startswith(f"the state after step 2 cannot be written to {run}: File too large (it takes 0.40 MB, ")
    assert "state-00000001.safetensors is still good" in told
    assert [path.name for path in run.iterdir()] == ["state-00000001.safetensors"]


def test_a_read_only_folder_is_one_sentence(tmp_path):
    a_state(tmp_path, 1)
    if subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], capture_output=True).returncode:
        pytest.skip("a read-only mount needs root")
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this system does not mount read-only in one go")
        with pytest.raises(StorageError) as caught:
            a_state(tmp_path, 2)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert "Read-only file system: make it writable, or choose another folder; state-00000001" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001.safetensors"]


def test_a_path_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written to .*file/run: it is no folder: choose another"):
        a_state(tmp_path / "file" / "run", 1)


def test_an_error_of_ours_is_no_full_disk(tmp_path, monkeypatch):
    """Only what the system says becomes a sentence about the disk."""

    def refuse(*_):
        raise SafetensorError("header too large")

    monkeypatch.setattr(tensor_file, "save_file", refuse)
    with pytest.raises(SafetensorError, match="header too large"):
        a_state(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    """SIGKILL in the middle of a write: the last state is good, and the next write clears up."""
    a_state(tmp_path, 1)

    def killed():
        files.flush_to_disk = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        a_state(tmp_path, 2)

    assert in_a_child(killed) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    state = latest_state(tmp_path, Recipe())
    assert state is not None and state.step == 1
    a_state(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2 == len(states(tmp_path))


def test_a_batch_is_kept_for_inspection(tmp_path):
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, 0] = torch.nan
    told = save_batch(tmp_path, 12, images, attacked=images + 1)
    path = tmp_path / "failed-step-12.safetensors"
    assert told == (f"the batch of step 12 is in {path} for inspection (images (2, 3, 4, 4), attacked (2, 3, 4, 4))")
    kept = load_file(path)
    torch.testing.assert_close(kept["images"], images, equal_nan=True, rtol=0, atol=0)
    assert kept["attacked"][1].min() >= 1
    assert "failed-step-12-rank-3.safetensors" in save_batch(tmp_path, 12, images, rank=3)
    assert states(tmp_path) == []


@pytest.fixture
def heeds_ctrl_c():
    """A shell starts what runs in its background with SIGINT ignored, and an ignored signal stays ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_a_request_and_the_old_handlers_come_back(heeds_ctrl_c):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # impatient schedulers send it twice: the state is still being saved
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with interrupt:
        assert interrupt.signal is None


def test_outside_the_main_thread_nothing_is_handled():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_ignored_signal_stays_ignored_and_workers_leave_signals_to_their_parent():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.signal is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN

            def worker():
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(7 if interrupt.signal is None else 8)

            assert in_a_child(worker) == 7
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_exits_as_a_shell_expects(number, code, heeds_ctrl_c):
    interrupt_file = sys.modules[Interrupt.__module__].__file__
    assert interrupt_file is not None
    program = (
        "import os, runpy, sys; names = runpy.run_path(sys.argv[1])\n"
        "with names['Interrupt']() as interrupt:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    raise names['Interrupted'](interrupt.signal, 'the state of step 3 is saved')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, interrupt_file], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    stopped = Interrupted(number, "the state of step 3 is saved")
    assert f"{stopped}" == f"stopped by {number.name}: the state of step 3 is saved" and stopped.code == code


def test_the_numbers_of_a_full_disk_are_those_of_the_system():
    assert system_error(OSError(errno.EDQUOT, "quota")) == errno.EDQUOT
    assert system_error(SafetensorError("I/O error: Disk quota exceeded (os error 122)")) == 122
    assert system_error(SafetensorError("header too large")) is None
