"""Commands in processes that start at once: forks of one that has imported everything and computed nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_SERVER = """
import json, os, sys
import rclip_metric.cli.main as cli
import rclip_metric.cli.score, rclip_metric.retrieval, rclip_metric.weights
import rclip_metric.train.commands.benchmark, rclip_metric.train.commands.evaluate.main
import rclip_metric.train.commands.train.main, rclip_metric.train.finetuning

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(os.open(json.loads(line)["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os._exit(cli.main(json.loads(line)["words"]))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forks:
    """Runs commands one after the other, each in a process of its own, and kills them where that is asked for."""

    def __init__(self, server: "subprocess.Popen[str]", errors: str) -> None:
        self._server = server
        self.errors = errors

    def run(self, words: Sequence[object], *, kill_after: float | None = None) -> int:
        """Run `rclip-metric WORDS`; its exit code, or minus the signal that ended it."""
        assert self._server.stdin and self._server.stdout
        request = {"words": [str(word) for word in words], "errors": self.errors}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was done
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))


@contextmanager
def forks(errors: str) -> Iterator[Forks]:
    """Start the process that commands are forked from; what they say on stderr is in the file `errors`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as server:
        try:
            assert server.stdout and server.stdout.readline() == "ready\n"
            yield Forks(server, errors)
        finally:
            server.kill()
