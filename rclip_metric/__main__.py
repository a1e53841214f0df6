"""`python -m rclip_metric`: the same as the command rclip-metric, also for `torchrun -m rclip_metric`."""

from rclip_metric.cli.main import console_main

if __name__ == "__main__":
    console_main()
