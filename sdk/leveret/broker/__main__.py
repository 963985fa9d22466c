"""`python -m leveret.broker` runs an embedded broker until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence  # noqa: TC003

from leveret.broker.server import serve_forever
from leveret.errors import LeveretError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the broker; the first line it prints is its URL.

    Args:
        arguments: The command line's arguments; None for those of this process.

    Returns:
        The exit status: 0 after SIGINT or SIGTERM, 1 when it cannot listen.
    """
    parser = argparse.ArgumentParser(
        prog="python -m leveret.broker",
        description="Runs Leveret's embedded AMQP 0-9-1 broker until SIGINT or SIGTERM. It keeps everything in memory "
        "and nothing on disk.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the loopback address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="the port; 0, the default, lets the kernel choose one")
    parser.add_argument("--path", help="a unix socket to listen on, instead of host and port")
    options = parser.parse_args(arguments)
    try:
        serve_forever(options.host, options.port, options.path, _announce)
    except LeveretError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    # A parent process waits for this line behind a pipe.
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
