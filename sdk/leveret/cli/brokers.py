"""The broker that a command uses: the embedded one, in its own process, or one with a URL."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["BROKER", "EMBEDDED", "QUIET", "broker_at", "run"]

T = TypeVar("T")

EMBEDDED: Final = "embedded"
#: The option `--broker`, as the parameter `where`.
BROKER: Final = click.option(
    "--broker",
    "where",
    default=EMBEDDED,
    show_default=True,
    metavar="embedded|URL",
    help="The embedded broker, started in its own process, or an amqp:// URL.",
)
#: The option `--quiet`.
QUIET: Final = click.option("--quiet", is_flag=True, help="Show no progress bars.")


@contextlib.contextmanager
def broker_at(where: str | None) -> Iterator[tuple[leveret.ConnectionSettings, Callable[[], int | None]]]:
    """Starts the embedded broker if `where` asks for it.

    Args:
        where: "embedded", an amqp:// URL, or None for no broker.

    Yields:
        The connection settings, and a function that returns the broker's CPU time or None.
    """
    # An error that is logged also ends the command, which prints it in one line.
    logging.getLogger("leveret").addHandler(logging.NullHandler())
    if where is None:
        yield leveret.ConnectionSettings(), lambda: None
    elif where == EMBEDDED:
        from leveret.cli.process import BrokerProcess

        with BrokerProcess() as process:
            yield leveret.ConnectionSettings.from_url(process.url), process.cpu_ns
    else:
        yield leveret.ConnectionSettings.from_url(where), lambda: None


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the event loop of `leveret.run`."""
    try:
        return leveret.run(main)
    finally:
        main.close()  # Ctrl-C may come before the coroutine has begun
