"""The commands of `leveret`. Each imports its modules when it runs, so that `leveret --help` is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

import leveret
from leveret.cli.bench.command import bench
from leveret.cli.brokers import BROKER, EMBEDDED, QUIET, broker_at, run
from leveret.cli.doctor.command import doctor
from leveret.cli.failures import Incomplete, reported
from leveret.cli.output import console
from leveret.cli.plugin_commands import ExtensibleGroup
from leveret.cli.plugins import plugins

if TYPE_CHECKING:
    from leveret.cli.demo import DemoResult
    from leveret.cli.stage import Broker

__all__ = ["app"]


class _Commands(ExtensibleGroup):
    """The commands of the core and of plugins. Errors of all commands are reported here."""

    def invoke(self, ctx: click.Context) -> Any:
        with reported():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(leveret.__version__, prog_name="leveret")
def app() -> None:
    """Leveret: typed objects in, confirmed messages out, over RabbitMQ (AMQP 0-9-1)."""


app.add_command(bench)
app.add_command(plugins)
app.add_command(doctor)


@app.command()
def info() -> None:
    """Show versions, the event loop and the compiled modules."""
    from leveret.cli.report import info_lines

    for name, text in info_lines():
        click.echo(f"{name:20} {text}")


@app.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=5672, show_default=True, type=click.IntRange(0, 65_535), help="Port to listen on; 0: a free one."
)
@click.option("--path", type=click.Path(dir_okay=False), help="Listen on this unix socket instead.")
def broker(host: str, port: int, path: str | None) -> None:
    """Run the embedded broker in the foreground until Ctrl-C.

    The broker is for development and tests. It keeps queues and messages in memory only, and they are lost when it
    stops.
    """
    from leveret.broker import serve_forever

    def announce(url: str) -> None:
        click.echo(url)
        click.echo("The broker keeps queues and messages in memory only. Press Ctrl-C to stop it.")

    serve_forever(host, port, path, announce)


@app.command()
@BROKER
@click.option(
    "--count", default=200_000, show_default=True, type=click.IntRange(1, 100_000_000), help="Orders to publish."
)
@QUIET
def demo(where: str, count: int, quiet: bool) -> None:
    """Publish typed orders in confirmed batches, consume them, and check that each came exactly once."""
    from leveret.cli import report
    from leveret.cli.demo import run_demo
    from leveret.cli.measure import Clocks
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target, identify

    with broker_at(where) as (connection, broker_cpu_ns):
        target = Target(connection=connection, embedded=where == EMBEDDED, count=count)

        async def measure() -> tuple[Broker, DemoResult]:
            identity = await identify(target)
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                return identity, await run_demo(target, Clocks(broker_cpu_ns, lambda: bars.cpu_ns), bars)

        identity, outcome = run(measure())
        console().print(report.demo_table(outcome, count, identity))
        if outcome.errors:
            raise Incomplete("the demo failed: " + "; ".join(outcome.errors))


@app.command("run")
@click.argument("target", metavar="MODULE:APP")
@click.option(
    "--processes", default=1, show_default=True, type=click.IntRange(1, 1000), help="Processes that run the app."
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0, 86_400, min_open=True),
    metavar="SECONDS",
    help="Time for running handlers to end after a signal.  [default: the app's own, 30]",
)
@click.option(
    "--health",
    metavar="HOST:PORT",
    help="Serve /live, /ready, /health and /metrics over HTTP, for all processes together.",
)
@click.option(
    "--log-file", type=click.Path(dir_okay=False), help="Append the log to this file.  [default: write it to stderr]"
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Lines of text, or one JSON object per line.  [default: text, or what the module has set up]",
)
@click.option("--quiet", is_flag=True, help="Show no summary, and log only warnings.")
@click.option("--worker-fd", type=click.IntRange(3), hidden=True)  # for processes that `run_workers` starts
def run_app(
    target: str,
    processes: int,
    drain_timeout: float | None,
    health: str | None,
    log_file: str | None,
    log_format: str | None,
    quiet: bool,
    worker_fd: int | None,
) -> None:
    """Run the consumers of a leveret.App, in one process or several, until Ctrl-C or SIGTERM.

    MODULE is imported from the current directory or the Python path. APP is the name of the app in it, as in
    shop.consumers:app.

    The first signal stops the app: it takes no more messages, messages that no handler has begun return to their
    queues, and running handlers get the drain timeout to end. The exit status is then 0. A second signal stops the app
    at once.

    Consumers that lose their connection start again, and so do processes that crash. If a process crashes 5 times
    within 30 seconds, the command ends with status 1. A terminal shows a summary; elsewhere a report is logged each
    minute: rates, durations with percentiles, failures, memory and CPU time, and why the app is not ready.

    Each process has its number, from 0 up, in the environment variable LEVERET_PROCESS.
    """
    from leveret.cli.serve import RunOptions

    options = RunOptions(
        target=target,
        drain_timeout=drain_timeout,
        quiet=quiet,
        health=health,
        log_file=log_file,
        log_format=log_format,
    )
    if worker_fd is not None:
        from leveret.cli.serve import serve_as_worker

        serve_as_worker(options, worker_fd)
    elif processes == 1:
        from leveret.cli.serve import serve_here

        serve_here(options)
    else:
        from leveret.cli.workers import run_workers

        run_workers(options, processes)


_URL: Final = click.argument("url", metavar="URL")
_PATIENCE: Final = click.option(
    "--timeout",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True),
    metavar="SECONDS",
    help="Time for an answer.",
)


@app.command()
@_URL
@click.option("--live", is_flag=True, help="Ask whether it is live, instead of ready.")
@_PATIENCE
@click.pass_context
def health(ctx: click.Context, url: str, live: bool, timeout: float) -> None:
    """Ask a run whether it is ready, for example as an exec probe.

    URL is what `leveret run --health` serves, as in 127.0.0.1:8080. The exit status is 0 when the run is ready, 1 when
    it is not, and 3 when it does not answer.
    """
    from leveret.cli.probe import print_health

    ctx.exit(print_health(url, live=live, timeout=timeout))


@app.command()
@_URL
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Time between two drawings.",
)
@click.option("--once", is_flag=True, help="Print it once, and end.")
@_PATIENCE
def top(url: str, every: float, once: bool, timeout: float) -> None:
    """Show what a run does now: rates, durations, processes, queues and exchanges.

    URL is what `leveret run --health` serves, as in 127.0.0.1:8080.
    """
    from leveret.cli.probe import EndpointUnreachable
    from leveret.cli.top import show_top

    try:
        show_top(url, every=every, once=once, timeout=timeout)
    except EndpointUnreachable as error:
        raise click.ClickException(str(error)) from error
