"""SIGTERM and SIGINT as a request to stop after the step, so that a run can save its state first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(SystemExit):
    """The end of a run that was asked to stop, raised when its state is saved.

    Where nobody catches it the process exits with `code`, 128 + the signal's number, as a shell reports a process
    that the signal ended: 130 after SIGINT, 143 after SIGTERM. Its text is one sentence.

    Example:
        >>> stopped = Interrupted(signal.SIGTERM, "the same command goes on from step 3")
        >>> stopped.code, str(stopped)
        (143, 'stopped by SIGTERM: the same command goes on from step 3')
    """

    def __init__(self, number: int, sentence: str) -> None:
        """Take a sentence that says where the run goes on; the signal's name is put before it."""
        super().__init__(128 + number)
        self.signal, self.sentence = number, f"stopped by {signal.Signals(number).name}: {sentence}"

    def __str__(self) -> str:
        """Say what happened and how to go on."""
        return self.sentence


class Interrupt:
    """While it is open, SIGTERM and the first SIGINT (Ctrl-C) only set `signal`; the loop looks after each step.

    A second SIGINT raises KeyboardInterrupt at once. A signal that the process was started to ignore stays ignored,
    forked processes (a loader's workers) leave both to their parent, and outside the main thread, where Python lets
    nobody handle signals, nothing is changed. The old handlers come back at the end.

    Attributes:
        signal: the number of the signal that came, else None. Several processes have to agree on the step after
            which they stop: it may reach each in another one, or only some.

    Example:
        >>> with Interrupt() as interrupt:
        ...     for step in range(1, 6):
        ...         if step == 3:
        ...             os.kill(os.getpid(), signal.SIGTERM)
        ...         if interrupt.signal:
        ...             break
        >>> step
        3
    """

    def __init__(self) -> None:
        """Handle nothing yet."""
        self.signal: int | None = None
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        """Take over both signals."""
        self.signal, self._owner = None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give both signals back."""
        for number, handler in self._before.items():
            # None is a handler that was not installed from Python, and that Python cannot install again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT or self.signal is None:
            self.signal = int(number)
        if number == signal.SIGINT and os.isatty(2):
            # Past Python's own buffers, which a signal may find in the middle of a write.
            os.write(2, b"\nrclip-metric: stopping after this step; Ctrl-C again stops at once, without saving\n")
