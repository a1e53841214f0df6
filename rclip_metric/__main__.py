"""`python -m rclip_metric`: the same as the command rclip-metric, also for `torchrun -m rclip_metric`."""

import sys


def console_main() -> None:
    """Run the command as a process; an interrupt while it is read in is one like any other."""
    try:
        from rclip_metric.cli.main import console_main as run
    except KeyboardInterrupt:
        sys.stderr.write("rclip-metric: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    console_main()
