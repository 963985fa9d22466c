"""The commands of `leveret`. Each imports its modules when it runs, so that `leveret --help` is quick."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

import leveret
from leveret.cli.doctor.command import doctor
from leveret.cli.failures import Incomplete, reported
from leveret.cli.output import STDOUT, check_writable, console, write_json
from leveret.cli.plugin_commands import ExtensibleGroup
from leveret.cli.plugins import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["app"]

T = TypeVar("T")

_EMBEDDED: Final = "embedded"
#: The largest body that RabbitMQ 4 accepts by default.
_MAX_SIZE: Final = 16 * 1024 * 1024
#: The keys of `leveret.cli.bench.BENCHMARKS`, in the guide's order; a test holds that they agree.
_BENCHMARKS: Final = (
    *("basic-publish", "batch-publish", "concurrent-publish"),
    *("basic-consume", "concurrent-consume", "serialization"),
)
_BROKER: Final = click.option(
    "--broker",
    "where",
    default=_EMBEDDED,
    show_default=True,
    metavar="embedded|URL",
    help="The embedded broker, started in its own process, or an amqp:// URL.",
)
_QUIET: Final = click.option("--quiet", is_flag=True, help="Show no progress bars.")


class _Commands(ExtensibleGroup):
    """The commands of the core and of plugins. Errors of all commands are reported here."""

    def invoke(self, ctx: click.Context) -> Any:
        with reported():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(leveret.__version__, prog_name="leveret")
def app() -> None:
    """Leveret: typed objects in, confirmed messages out, over RabbitMQ (AMQP 0-9-1)."""


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
@click.argument("names", nargs=-1, type=click.Choice(_BENCHMARKS), metavar="[NAME]...")
@_BROKER
@click.option(
    "--count", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Messages of each benchmark."
)
@click.option(
    "--size",
    default=0,
    show_default=True,
    type=click.IntRange(0, _MAX_SIZE),
    help="Bytes of each body; 0: the guide's order without padding.",
)
@click.option(
    "--batch-size",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Messages of a batch in batch-publish.",
)
@click.option(
    "--prefetch", default=100, show_default=True, type=click.IntRange(1, 65_535), help="Prefetch of each consumer."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    help="Consumers of concurrent-consume.  [default: the number of CPUs]",
)
@click.option("--confirms/--no-confirms", default=True, show_default=True, help="Wait for the broker's confirms.")
@click.option(
    "--queue-type",
    default="classic",
    show_default=True,
    type=click.Choice(["classic", "quorum"]),
    help="Type of the queues.",
)
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Runs of each benchmark; the table shows medians.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the figures of all runs to this file; '-': stdout.",
)
@_QUIET
def bench(
    names: tuple[str, ...],
    where: str,
    count: int,
    size: int,
    batch_size: int,
    prefetch: int,
    concurrency: int | None,
    confirms: bool,
    queue_type: str,
    repeat: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Run the performance guide's five benchmarks and concurrent-publish. Without a NAME all of them run.

    \b
    basic-publish       publish one message at a time and await its confirm
    batch-publish       publish batches that are all started at once
    concurrent-publish  200 tasks publish, each awaits the confirm of its message
    basic-consume       one consumer acknowledges each message after its handler
    concurrent-consume  several consumers share one queue
    serialization       encode to JSON and decode, without a broker

    The benchmarks use queues and exchanges of their own, and delete them at the end. If a message is lost or fails, the
    command ends with an error and shows no figures.
    """  # noqa: D301 - click wants the character
    from leveret.cli import bench as benchmarks
    from leveret.cli import report
    from leveret.cli.measure import Clocks, cpu_count
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target, identify

    selected = tuple(dict.fromkeys(names)) or _BENCHMARKS
    consumers = concurrency or cpu_count()
    needs_broker = not benchmarks.NEEDS_NO_BROKER.issuperset(selected)
    check_writable(json_file)
    try:
        workload = benchmarks.Workload(count, size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from error
    to_stdout = json_file == STDOUT
    with _broker_at(where if needs_broker else None) as (connection, broker_cpu_ns):
        target = Target(
            connection=connection,
            embedded=where == _EMBEDDED,
            queue_type=queue_type,
            prefetch=prefetch,
            batch_size=batch_size,
            count=count,
        )

        async def run() -> tuple[dict[str, Any] | None, list[benchmarks.BenchmarkResult]]:
            identity = await identify(target) if needs_broker else None
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                plan = benchmarks.Plan(
                    target=target,
                    workload=workload,
                    clocks=Clocks(broker_cpu_ns, lambda: bars.cpu_ns),
                    bars=bars,
                    concurrency=consumers,
                    confirms=confirms,
                )
                return identity, await benchmarks.run_benchmarks(plan, selected, repeat)

        identity, results = _run(run())
    settings = {
        "count": count,
        "smallest_body_bytes": workload.smallest_bytes,
        "largest_body_bytes": workload.largest_bytes,
        "batch_size": batch_size,
        "prefetch": prefetch,
        "concurrency": consumers,
        "confirms": confirms,
        "queue_type": queue_type,
        "repeat": repeat,
        "paced_messages": min(count, benchmarks.PACED_MESSAGES),
        "paced_rate_msgs_per_s": benchmarks.PACED_RATE,
    }
    if not (to_stdout and quiet):
        screen = console(stderr=to_stdout)
        screen.print(report.bench_table(results, width=screen.width))
        for line in report.captions(settings, identity):
            screen.print(line, markup=False, highlight=False)
    if json_file is not None:
        write_json(json_file, report.bench_json(results, settings, identity))


@app.command()
@_BROKER
@click.option(
    "--count", default=200_000, show_default=True, type=click.IntRange(1, 100_000_000), help="Orders to publish."
)
@_QUIET
def demo(where: str, count: int, quiet: bool) -> None:
    """Publish typed orders in confirmed batches, consume them, and check that each came exactly once."""
    from leveret.cli import report
    from leveret.cli.demo import run_demo
    from leveret.cli.measure import Clocks
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target, identify

    with _broker_at(where) as (connection, broker_cpu_ns):
        target = Target(connection=connection, embedded=where == _EMBEDDED, prefetch=500, count=count)

        async def run() -> tuple[dict[str, Any], Any]:
            identity = await identify(target)
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                return identity, await run_demo(target, Clocks(broker_cpu_ns, lambda: bars.cpu_ns), bars)

        identity, outcome = _run(run())
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


@contextlib.contextmanager
def _broker_at(where: str | None) -> Iterator[tuple[leveret.ConnectionSettings, Callable[[], int | None]]]:
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
    elif where == _EMBEDDED:
        from leveret.cli.process import BrokerProcess

        with BrokerProcess() as process:
            yield leveret.ConnectionSettings.from_url(process.url), process.cpu_ns
    else:
        yield leveret.ConnectionSettings.from_url(where), lambda: None


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        return leveret.run(main)
    finally:
        main.close()  # Ctrl-C may come before the coroutine has begun
