"""`python -m rclip_metric`: the same as the command rclip-metric, also for `torchrun -m rclip_metric`."""

import os
import sys

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def console_main() -> None:
    """Run the command as a process; an interrupt while it is read in is one like any other."""
    # Threads of OpenMP that wait for each other spin: on cores that others use as well, a small model then takes many
    # times as long. It is read as torch is imported; only the command says so, since this is its own process.
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        from rclip_metric.cli.main import console_main as run
    except KeyboardInterrupt:
        sys.stderr.write("rclip-metric: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    console_main()
