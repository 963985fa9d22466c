"""The command `leveret doctor`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from leveret.cli.output import STDOUT, check_writable, console, write_json

if TYPE_CHECKING:
    from leveret.cli.doctor.finding import Finding

__all__ = ["doctor"]


@click.command()
@click.argument("url")
@click.option("--queue", metavar="NAME", help="A queue to be consumed: try the rights for it, its retries and parking.")
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Time for all checks together.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the findings to this file; '-': stdout, and the table to stderr.",
)
def doctor(url: str, queue: str | None, timeout: float, json_file: str | None) -> None:
    """Check a broker before Leveret is used with it, and say what to do.

    It tries what a program would do: it reaches the broker, logs in, publishes, consumes, and has a message wait and
    come back. Queues that it makes for that are deleted at the end. The queue of --queue is not touched, and no message
    is taken from it.

    The exit status is 0 when no check failed, 1 when one did, and 2 when an option is wrong.
    """
    import leveret
    from leveret.cli.doctor.checks import examine
    from leveret.cli.doctor.output import examination_json, examination_table, has_failed
    from leveret.cli.doctor.visit import Visit
    from leveret.errors import ConfigurationError

    check_writable(json_file, "--json")
    try:
        settings = leveret.ConnectionSettings.from_url(url)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    # The table says it.
    logging.getLogger("leveret").addHandler(logging.NullHandler())
    screen = console(stderr=json_file == STDOUT)
    visit = Visit(settings, queue, timeout)
    with console(stderr=True).status("") as status:

        async def run() -> list[tuple[str, Finding]]:
            async with visit:
                return await examine(visit, status.update)

        try:
            rows = leveret.run(run())
        finally:
            for problem in visit.problems:
                click.echo(problem, err=True)
    if json_file is not None:
        write_json(json_file, examination_json(settings.redacted_url, rows))
    screen.print(settings.redacted_url, markup=False, highlight=False)
    screen.print(examination_table(rows))
    if has_failed(rows):
        raise SystemExit(1)
