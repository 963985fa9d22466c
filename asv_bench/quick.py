"""Runs the benchmarks quickly in this environment, without asv, and prints them: `make bench`.

    python asv_bench/quick.py                 all
    python asv_bench/quick.py -k decode       benchmarks whose name or parameters match
    python asv_bench/quick.py --json FILE     the results as well

Times are the best of five samples. They show orders of magnitude; to compare two versions use asv, or the instruction
counts. Fails when a benchmark raises anything but NotImplementedError, which leaves it out.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, str(Path(__file__).parent))

KINDS = ("time_", "timeraw_", "track_")
SAMPLES = 5
#: A sample repeats its call until it lasts this many seconds.
SAMPLE_SECONDS = 0.03


@dataclass
class Benchmark:
    """One benchmark with one combination of parameters."""

    module: str
    owner: type | None
    name: str
    function: Callable[..., Any] | None
    params: tuple[Any, ...]
    param_names: tuple[str, ...]
    value: float | None = None
    unit: str = ""
    left_out: str = ""
    failure: str = ""
    cached: tuple[Any, ...] = ()

    @property
    def title(self) -> str:
        return ".".join(filter(None, (self.module, self.owner.__name__ if self.owner else "", self.name)))

    @property
    def short_title(self) -> str:
        owner = f"{self.owner.__name__}." if self.owner else ""
        return f"{self.module.removeprefix('bench_')}.{owner}{self.name.partition('_')[2]}"

    @property
    def parameters(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in zip(self.param_names, self.params, strict=True))

    def run(self) -> None:
        """Sets `value` and `unit`, or `left_out`, or `failure`."""
        try:
            kind = next(kind for kind in KINDS if self.name.startswith(kind))
            getattr(self, f"_{kind}")()
        except NotImplementedError as reason:
            self.left_out = str(reason) or "not implemented"
        except Exception:
            self.failure = traceback.format_exc()

    def _instance(self) -> Any:
        """A new instance; what its `setup_cache` returned comes before the parameters, as with asv."""
        instance = self.owner() if self.owner else None
        if hasattr(instance, "setup_cache"):
            assert self.owner is not None
            self.cached = (_cache_of(self.owner),)
        return instance

    def _method(self, instance: Any) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(instance, self.name) if instance is not None else self.function
        assert found is not None
        return found

    @staticmethod
    def _call(instance: Any, name: str, params: tuple[Any, ...]) -> None:
        function = getattr(instance, name, None)
        if function is not None:
            function(*params)

    def _time_(self) -> None:
        best = float("inf")
        instance = self._instance()
        operations = 1
        number = getattr(instance, "number", 0)
        # With a fixed number the benchmark uses up what setup made, so setup runs before each sample.
        rounds = SAMPLES if number else 1
        for _ in range(rounds):
            try:
                self._call(instance, "setup", self.params)
                operations = getattr(instance, "operations", 1)
                method = self._method(instance)
                if number:
                    best = min(best, _seconds(method, self.params, number) / number)
                    continue
                number = _calibrated(method, self.params)
                for _ in range(SAMPLES):
                    best = min(best, _seconds(method, self.params, number) / number)
            finally:
                self._call(instance, "teardown", self.params)
        self.value, self.unit = _readable(best / operations, getattr(instance, "operation", "call"))

    def _timeraw_(self) -> None:
        assert self.function is not None
        statement = self.function(*self.params)
        program = f"import time; s = time.perf_counter(); exec({statement!r}); print(time.perf_counter() - s)"
        times = []
        for _ in range(SAMPLES):
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            times.append(float(done.stdout))
        self.value, self.unit = _readable(min(times), getattr(self.function, "operation", "call"))

    def _track_(self) -> None:
        instance = self._instance()
        try:
            params = (*self.cached, *self.params)
            self._call(instance, "setup", params)
            method = self._method(instance)
            self.value, self.unit = float(method(*params)), getattr(method, "unit", "")
        finally:
            self._call(instance, "teardown", (*self.cached, *self.params))


@cache
def _cache_of(owner: type) -> Any:
    return owner().setup_cache()


def _seconds(function: Callable[..., Any], params: tuple[Any, ...], number: int) -> float:
    repeat = itertools.repeat(None, number)
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in repeat:
            function(*params)
        return time.perf_counter() - start
    finally:
        gc.enable()


def _calibrated(function: Callable[..., Any], params: tuple[Any, ...]) -> int:
    number = 1
    while _seconds(function, params, number) < SAMPLE_SECONDS:
        number *= 2
    return number


def _readable(seconds: float, operation: str) -> tuple[float, str]:
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return seconds * factor, f"{unit}/{operation}"
    return seconds, f"s/{operation}"


def discover() -> Iterator[Benchmark]:
    """All benchmarks of the suite, in the order of their modules and sources, as asv finds them."""
    package = importlib.import_module("benchmarks")
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("bench_"):
            continue
        module = importlib.import_module(f"benchmarks.{info.name}")
        for name, member in vars(module).items():
            if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(member):
                for method in dir(member):
                    if method.startswith(KINDS):
                        yield from _with_params(info.name, member, method, None)
            elif inspect.isfunction(member) and name.startswith(KINDS):
                yield from _with_params(info.name, None, name, member)


def _with_params(
    module: str, owner: type | None, name: str, function: Callable[..., Any] | None
) -> Iterator[Benchmark]:
    source = owner or function
    params = list(getattr(source, "params", []))
    if params and not isinstance(params[0], list | tuple):
        params = [params]
    names = tuple(getattr(source, "param_names", [f"param{i}" for i in range(len(params))]))
    for combination in itertools.product(*params):
        yield Benchmark(module, owner, name, function, combination, names)


def print_results(console: Console, benchmarks: list[Benchmark]) -> None:
    """Prints the table, then what was left out and what failed."""
    table = Table(title=f"Leveret benchmarks, best of {SAMPLES} (Python {sys.version.split()[0]})")
    table.add_column("benchmark", overflow="fold")
    table.add_column("parameters", overflow="fold")
    table.add_column("result", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    module = ""
    for benchmark in benchmarks:
        if module and benchmark.module != module:
            table.add_section()
        module = benchmark.module
        result = "[red]failed" if benchmark.failure else "[dim]left out"
        if benchmark.value is not None:
            result = f"{benchmark.value:,.3g}" if benchmark.value < 100 else f"{benchmark.value:,.0f}"
        table.add_row(benchmark.short_title, benchmark.parameters, result, benchmark.unit)
    console.print(table)
    for benchmark in benchmarks:
        if benchmark.left_out:
            console.print(f"left out: {benchmark.title} {benchmark.parameters}: {benchmark.left_out}", markup=False)
    for benchmark in benchmarks:
        if benchmark.failure:
            console.print(f"\nFAILED: {benchmark.title} {benchmark.parameters}\n{benchmark.failure}", markup=False)


def main() -> int:
    """Reads the options, runs, prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="PATTERN", help="only benchmarks that match, upper or lower case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file too")
    options = parser.parse_args()
    try:
        pattern = re.compile(options.k, re.IGNORECASE)
    except re.error as error:
        parser.error(f"-k {options.k!r} is no regular expression: {error}")
    benchmarks = [b for b in discover() if pattern.search(f"{b.title} {b.parameters}")]
    if not benchmarks:
        parser.error(f"no benchmark matches {options.k!r}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    columns = (TextColumn("{task.description:<70}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(benchmarks))
        for benchmark in benchmarks:
            progress.update(task, description=f"{benchmark.title} {benchmark.parameters}"[:70])
            benchmark.run()
            progress.advance(task)
    print_results(console, benchmarks)
    if options.json:
        results = []
        for b in benchmarks:
            outcome: dict[str, Any] = {"value": b.value, "unit": b.unit}
            if b.value is None:
                outcome = {"failed": True} if b.failure else {"left_out": b.left_out}
            parameters = dict(zip(b.param_names, b.params, strict=True))
            results.append({"benchmark": b.title, "parameters": parameters} | outcome)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(benchmark.failure for benchmark in benchmarks) else 0


if __name__ == "__main__":
    sys.exit(main())
