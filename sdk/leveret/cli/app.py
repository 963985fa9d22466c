"""The commands. What they need is imported when they run, so that `leveret --help` is quick."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

import leveret
from leveret.cli.failures import Incomplete, reported
from leveret.cli.output import STDOUT, check_writable, console, write_json
from leveret.cli.plugin_commands import ExtensibleGroup
from leveret.cli.plugins import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["app"]

T = TypeVar("T")

_EMBEDDED: Final = "embedded"
#: Every broker takes such a body unless it is configured otherwise; RabbitMQ 4 refuses larger ones.
_MAX_SIZE: Final = 16 * 1024 * 1024
#: In the guide's order, with one more; `leveret.cli.bench.BENCHMARKS` has the same names.
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
    help="The embedded broker in a process of its own, or an amqp:// URL.",
)
_QUIET: Final = click.option("--quiet", is_flag=True, help="No progress bars.")


class _Commands(ExtensibleGroup):
    """The core's commands and those of plugins, whose errors are reported in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        with reported():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(leveret.__version__, prog_name="leveret")
def app() -> None:
    """Leveret: typed objects in, confirmed messages out, over RabbitMQ (AMQP 0-9-1)."""


app.add_command(plugins)


@app.command()
def info() -> None:
    """Show versions, the event loop and the compiled modules."""
    from leveret.cli.report import info_lines

    for name, text in info_lines():
        click.echo(f"{name:20} {text}")


@app.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5672, show_default=True, type=click.IntRange(0, 65_535), help="0 takes a free one.")
@click.option("--path", type=click.Path(dir_okay=False), help="Listen on this unix socket instead.")
def broker(host: str, port: int, path: str | None) -> None:
    """Run the embedded broker in the foreground until Ctrl-C.

    It is a broker for development and tests. It keeps nothing on disk: what it holds is gone when it stops.
    """
    from leveret.broker import serve_forever

    def announce(url: str) -> None:
        click.echo(url)
        click.echo("It keeps nothing on disk: queues and messages are gone when it stops. Ctrl-C stops it.")

    serve_forever(host, port, path, announce)


@app.command()
@click.argument("names", nargs=-1, type=click.Choice(_BENCHMARKS), metavar="[NAME]...")
@_BROKER
@click.option("--count", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Messages.")
@click.option(
    "--size",
    default=0,
    show_default=True,
    type=click.IntRange(0, _MAX_SIZE),
    help="Bytes of each body; 0: the guide's order as it is.",
)
@click.option("--batch-size", default=1000, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--prefetch", default=100, show_default=True, type=click.IntRange(1, 65_535))
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    help="Consumers of concurrent-consume.  [default: the number of CPUs]",
)
@click.option("--confirms/--no-confirms", default=True, show_default=True, help="Wait for the broker's confirms.")
@click.option("--queue-type", default="classic", show_default=True, type=click.Choice(["classic", "quorum"]))
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1000), help="Runs; the medians count.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write all figures; '-': stdout."
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
    """Run the performance guide's five benchmarks and concurrent-publish: all, or those that are named.

    \b
    basic-publish       one message at a time, each awaited with its confirm
    batch-publish       batches that are all started together
    concurrent-publish  200 tasks, each awaiting the confirm of its message
    basic-consume       one consumer, each message acknowledged after its handler
    concurrent-consume  several consumers on one queue
    serialization       JSON to bytes and back, no broker

    They declare, fill and remove queues and exchanges of their own. A message that is lost or fails is an error, and
    there are no figures then.
    """  # noqa: D301 - click wants the character
    from leveret.cli import bench as benchmarks
    from leveret.cli import report
    from leveret.cli.measure import Meter, cpu_count
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

        async def run() -> tuple[dict[str, Any] | None, list[benchmarks.Result]]:
            identity = await identify(target) if needs_broker else None
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                plan = benchmarks.Plan(
                    target=target,
                    workload=workload,
                    meter=Meter(broker_cpu_ns, lambda: bars.cpu_ns),
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
@click.option("--count", default=200_000, show_default=True, type=click.IntRange(1, 100_000_000), help="Orders.")
@_QUIET
def demo(where: str, count: int, quiet: bool) -> None:
    """Publish typed orders in confirmed batches, consume and acknowledge them, and check each one."""
    from leveret.cli import report
    from leveret.cli.demo import run_demo
    from leveret.cli.measure import Meter
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target, identify

    with _broker_at(where) as (connection, broker_cpu_ns):
        target = Target(connection=connection, embedded=where == _EMBEDDED, prefetch=500, count=count)

        async def run() -> tuple[dict[str, Any], Any]:
            identity = await identify(target)
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                return identity, await run_demo(target, Meter(broker_cpu_ns, lambda: bars.cpu_ns), bars)

        identity, outcome = _run(run())
        console().print(report.demo_table(outcome, count, identity))
        if outcome.errors:
            raise Incomplete("the demo failed: " + "; ".join(outcome.errors))


@app.command("run")
@click.argument("target", metavar="MODULE:APP")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 1000), help="How many run the app.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0, 86_400, min_open=True),
    metavar="SECONDS",
    help="For running handlers to end after a signal.  [default: the app's own, 30]",
)
@click.option("--quiet", is_flag=True, help="No summary, and only warnings are logged.")
@click.option("--worker-fd", type=click.IntRange(3), hidden=True)  # what the processes are started with
def run_app(target: str, processes: int, drain_timeout: float | None, quiet: bool, worker_fd: int | None) -> None:
    """Run a leveret.App: its consumers, in one process or several, until Ctrl-C or SIGTERM.

    MODULE is looked for in the current directory first, and APP is the name of the app in it, as in shop.consumers:app.

    The first signal stops: no more messages are taken, those that no handler has begun go back to their queues, and
    running handlers get the drain timeout to end. The status is 0 then. A second signal ends everything at once.

    Consumers that lose their connection are started again, and so are processes that crash; one that crashes 5 times
    within 30 seconds ends the command with status 1. On a terminal a summary is shown, and elsewhere it is logged each
    minute: deliveries and acknowledgements per second, failures, messages that are being worked on, restarts.
    """
    if worker_fd is not None:
        from leveret.cli.serve import serve_as_worker

        serve_as_worker(target, drain_timeout, worker_fd, quiet=quiet)
    elif processes == 1:
        from leveret.cli.serve import serve_here

        serve_here(target, drain_timeout, quiet=quiet)
    else:
        from leveret.cli.workers import run_workers

        run_workers(target, processes, drain_timeout, quiet=quiet)


@contextlib.contextmanager
def _broker_at(where: str | None) -> Iterator[tuple[leveret.ConnectionSettings, Callable[[], int | None]]]:
    """Yields how to reach the broker, and what reads its CPU time; None is no broker at all."""
    # Whatever is logged also ends the command, whose one line says it.
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
        main.close()  # Ctrl-C may come before it began
