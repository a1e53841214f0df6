"""The demo as a Hugging Face Space: what `rclip-metric demo` shows, where the Space wants it."""

import os
import sys

from rclip_metric.train.commands.demo import main

if __name__ == "__main__":
    # A Space says where it listens; anywhere else this is the page on this machine alone.
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(main(["demo", "--host", host, "--port", port, *sys.argv[1:]]))
