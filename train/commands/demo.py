"""`rclip-metric demo`: two images in a browser."""

from __future__ import annotations

import argparse
import signal
import socket
import tempfile
from pathlib import Path

from rclip_metric.printing import Parser, complain, say
from rclip_metric.train.runs.config import positive

_ABOUT = """\
A page on this machine: two images in, their distance, what it means, where they differ, and what an attack on a clean
and on a robust model makes of it. Needs the extra `demo`.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; `demo` is the first word."""
    parser = Parser(prog="rclip-metric demo", description=_ABOUT)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--megabytes",
        type=positive,
        default=10,
        metavar="N",
        help="of an uploaded file, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--megapixels", type=positive, default=25, metavar="N", help="of an image, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=positive, default=10, metavar="N", help="gradient steps of the attack (default: %(default)s)"
    )
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def _check_free(host: str, port: int) -> None:
    """Raise OSError if nobody can listen there: Gradio would say so in other words, and late."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
        tried.bind(address)


def main(argv: list[str]) -> int:
    """Run `demo ...` until it is interrupted: 0 then, 2 for bad input."""
    options = build_parser().parse_args(argv[1:])
    try:
        _check_free(options.host, options.port)
    except OSError as error:
        complain(
            f"cannot listen on {options.host}, port {options.port}: {error.strerror}; pass another --port or --host"
        )
        return 2
    from rclip_metric.errors import MissingPackageError
    from rclip_metric.train.demo.answers import Limits
    from rclip_metric.train.demo.page import build, looks

    limits = Limits(options.megabytes * 1_000_000, options.megapixels * 1_000_000, options.steps)
    with tempfile.TemporaryDirectory(prefix="rclip-demo-") as folder:
        try:
            page = build(limits, Path(folder))
            _, address, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                max_file_size=limits.bytes,
                share=False,
                prevent_thread_lock=True,
                show_error=True,
                quiet=True,
                footer_links=["api"],
                ssr_mode=False,
                **looks(),
            )
        except MissingPackageError as error:
            complain(error)
            return 2
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in its background with Ctrl-C ignored
            signal.signal(number, signal.default_int_handler)
        say(f"{address}  (Ctrl-C ends it)")
        page.block_thread()
    return 0
