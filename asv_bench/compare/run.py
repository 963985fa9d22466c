"""CPU per message of Leveret and of rabbitmq-c, in turn, on one private RabbitMQ: `make compare`.

Rates drift with the machine, so only ratios within one run say anything; the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.rabbitmq import RabbitMQNode  # noqa: E402

#: Title; the case and its numbers: publish COUNT SIZE WINDOW, or consume COUNT PREFETCH.
CASES = {
    "publish, confirmed, window 1000": ("publish", 1024, 1000),
    "consume + ack, prefetch 100": ("consume", 100),
}
Figures = dict[str, list[float]]


def build(folder: Path) -> Path:
    """Compiles the C side."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/usr/include/amqp.h").exists():
        raise SystemExit("the comparison needs a C compiler and rabbitmq-c's headers: apt-get install librabbitmq-dev")
    program = folder / "rabbitmq_c"
    subprocess.run([compiler, "-O2", "-o", program, HERE / "rabbitmq_c.c", "-lrabbitmq"], check=True)
    return program


def measure(command: list[str], case: tuple[str | int, ...], port: int, count: int) -> dict[str, float]:
    """Runs one side of one case."""
    name, *numbers = map(str, case)
    done = subprocess.run(
        [*command, name, "127.0.0.1", str(port), "compare", str(count), *numbers],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def compare(count: int, runs: int, console: Console) -> list[dict[str, object]]:
    """Runs every case `runs` times on both sides, alternating, and returns the medians."""
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, RabbitMQNode() as node, Progress(console=console) as progress:
        sides = {"rabbitmq-c": [str(build(Path(folder)))], "leveret": [sys.executable, str(HERE / "leveret_side.py")]}
        port = node.port
        task = progress.add_task("comparing", total=len(CASES) * len(sides) * (runs + 1))
        declare = [sys.executable, "-c", DECLARE, node.url]
        subprocess.run(declare, check=True)
        for title, case in CASES.items():
            cpu: Figures = {side: [] for side in sides}
            rate: Figures = {side: [] for side in sides}
            for turn in range(runs + 1):
                for side, command in sides.items():
                    # Every run starts with a queue that is empty, or that holds just what will be consumed.
                    subprocess.run(declare, check=True)
                    if case[0] == "consume":
                        measure(sides["rabbitmq-c"], ("publish", 1024, 1000), port, count)
                    figures = measure(command, case, port, count)
                    progress.advance(task)
                    if turn:  # the first is a warm-up
                        cpu[side].append(1e6 * figures["cpu_seconds"] / count)
                        rate[side].append(count / figures["seconds"])
            results += [
                {
                    "case": title,
                    "client": side,
                    "cpu_us_per_message": statistics.median(cpu[side]),
                    "cpu_us_per_message_runs": cpu[side],
                    "messages_per_second": statistics.median(rate[side]),
                    "cpu_ratio_to_rabbitmq_c": statistics.median(
                        a / b for a, b in zip(cpu[side], cpu["rabbitmq-c"], strict=True)
                    ),
                }
                for side in sides
            ]
    return results


DECLARE = """
import sys, leveret
async def main():
    async with leveret.connect(sys.argv[1]) as client:
        await client.declare(leveret.Topology().queue("compare"))
        await client.purge("compare")
leveret.run(main())
"""


def main() -> None:
    """Reads the options, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="messages for each run (default 50000)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each side (default 5)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    console = Console()
    results = compare(options.count, options.runs, console)
    table = Table(title=f"1 KiB persistent messages, medians of {options.runs} alternating runs of {options.count}")
    for heading in ("case", "client", "CPU us/msg", "min-max", "msgs/s", "CPU : rabbitmq-c"):
        table.add_column(heading, justify="left" if heading in ("case", "client") else "right")
    for row in results:
        runs = row["cpu_us_per_message_runs"]
        assert isinstance(runs, list)
        table.add_row(
            str(row["case"]),
            str(row["client"]),
            f"{row['cpu_us_per_message']:.2f}",
            f"{min(runs):.2f}-{max(runs):.2f}",
            f"{row['messages_per_second']:,.0f}",
            f"{row['cpu_ratio_to_rabbitmq_c']:.2f}",
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
