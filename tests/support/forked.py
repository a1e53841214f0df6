"""Commands in processes that start at once: forks of one that has imported everything and computed nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A line of stdin is a group of processes that run beside each other; theirs are the answers: ids, then how they ended.
_SERVER = """
import importlib, json, os, runpy, sys, traceback
import rclip_metric.cli.main as cli
import rclip_metric.cli.score, rclip_metric.retrieval, rclip_metric.weights
import rclip_metric.train.commands.benchmark, rclip_metric.train.commands.evaluate.main
import rclip_metric.train.commands.train.main, rclip_metric.train.finetuning

def run(words, script, environment, output, errors):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, output), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), stream)
    os.environ.update(environment)
    sys.argv = [script or "rclip-metric", *words]
    if not script:
        return cli.main(words)
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
    return 0

print("ready", flush=True)
for line in sys.stdin:
    children, asked = [], json.loads(line)
    for name in asked["imports"]:
        importlib.import_module(name)
    for process in asked["processes"]:
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                code = run(**process)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)
"""


class Forks:
    """Runs commands one after the other, each in a process of its own, and kills them where that is asked for."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self._server = server
        self._output, self._errors = folder / "output", folder / "errors"
        self._running: list[int] = []

    @property
    def output(self) -> str:
        """What the last command wrote to stdout, all of its processes."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """What the last command wrote to stderr, all of its processes."""
        return self._errors.read_text()

    def start(
        self,
        words: Sequence[object],
        *,
        script: object = "",
        environments: Sequence[dict[str, str]] = ({},),
        imports: Sequence[str] = (),
    ) -> list[int]:
        """Start `rclip-metric WORDS`, or `python SCRIPT WORDS`, once for each environment; the process ids.

        The modules `imports` are imported once for all of them.
        """
        assert self._server.stdin
        if self._running:  # a test failed before it had waited for them
            for child in self._running:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.wait()
        for file in (self._output, self._errors):
            file.write_text("")
        shared: dict[str, Any] = {"words": [str(word) for word in words], "script": str(script)}
        shared |= {"output": str(self._output), "errors": str(self._errors)}
        group = [{**shared, "environment": environment} for environment in environments]
        self._server.stdin.write(json.dumps({"processes": group, "imports": list(imports)}) + "\n")
        self._server.stdin.flush()
        self._running = self._answer()
        return self._running

    def wait(self) -> list[int]:
        """Wait for what was started; the exit codes, or minus the signals that ended it."""
        codes = [os.waitstatus_to_exitcode(status) for status in self._answer()]
        self._running = []
        return codes

    def run(self, words: Sequence[object], *, kill_after: float | None = None) -> int:
        """Run `rclip-metric WORDS`; its exit code, or minus the signal that ended it."""
        [child] = self.start(words)
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was done
                os.kill(child, signal.SIGKILL)
        return self.wait()[0]

    def _answer(self) -> list[int]:
        assert self._server.stdout
        found: list[int] = json.loads(self._server.stdout.readline())
        return found


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Start the process that commands are forked from; what they write is kept in `folder`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as server:
        try:
            assert server.stdout and server.stdout.readline() == "ready\n"
            yield Forks(server, folder)
        finally:
            server.kill()


def ranks(count: int) -> list[dict[str, str]]:
    """What torchrun gives to each of `count` processes of this machine in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return [{**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
