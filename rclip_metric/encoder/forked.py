"""Processes that are forked after this one computed: `datasets.map(num_proc=2)`, multiprocessing's "fork"."""

import os

import torch

_registered = False


def survive_fork() -> None:
    """Let processes that this one forks from now on compute with one thread each, where they would wait forever.

    A fork takes the calling thread along and none of OpenMP's pool, which the child goes on to hand work to once the
    parent has used it: the first parallel loop of the child never ends. With one thread there is no loop to wait for;
    PyTorch's own DataLoader does the same in its workers. A child that has cores to itself may call
    `torch.set_num_threads` only where the parent has computed nothing.

    Example:
        >>> survive_fork()  # Encoder.forward does so; once is enough
    """
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_one_thread)
        _registered = True


def _one_thread() -> None:
    torch.set_num_threads(1)
