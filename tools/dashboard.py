#!/usr/bin/env python3
"""Runs every query of the Grafana dashboard against a real Prometheus, which scrapes a run of an app.

Usage: tools/dashboard.py [--seconds 45] [--keep]. It needs `prometheus` (apt-get install prometheus). It prints a line
for each query, with the series and the last value, and ends with 1 when a query fails or finds nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leveret_prometheus
from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = """
import asyncio
import os

import leveret

app = leveret.App(os.environ["SHOP_URL"], name="shop")
app.topology = leveret.Topology().queue("billing")


@app.consumer("billing", concurrency=8, prefetch=50)
async def bill(order: dict, message: leveret.Message) -> bool:
    await asyncio.sleep(0.002)
    return order["id"] % 50 > 0  # some are refused, and parked


@app.on_startup
async def sell(client: leveret.Client) -> None:
    async def publish() -> None:
        async with client.producer() as producer:
            while True:
                await producer.publish_batch(({"id": number} for number in range(100)), "billing")
                await asyncio.sleep(0.2)

    app.selling = asyncio.create_task(publish())
"""
CONFIG = """
global: {{scrape_interval: 2s}}
scrape_configs:
  - job_name: shop
    static_configs: [{{targets: ["{target}"]}}]
"""
#: What Grafana puts in place of its variables.
VARIABLES = {"$__rate_interval": "20s", "$__range": "5m", "$client": ".*"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, folder: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with Path(folder, f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | environment)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def queries(value: Any, title: str = "") -> Iterator[tuple[str, str]]:
    """Yields the title of a panel and each of its queries."""
    if isinstance(value, dict):
        title = value.get("title", title)
        if isinstance(value.get("expr"), str):
            yield title, value["expr"]
        for part in value.values():
            yield from queries(part, title)
    elif isinstance(value, list):
        for part in value:
            yield from queries(part, title)


def asked(prometheus: str, query: str) -> list[dict[str, Any]]:
    for name, text in VARIABLES.items():
        query = query.replace(name, text)
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="how long the app runs before the queries")
    parser.add_argument(
        "--keep", action="store_true", help="go on after the queries until Enter, to look at Prometheus"
    )
    options = parser.parse_args()
    program = shutil.which("prometheus")
    if program is None:
        print("prometheus is not there. Run: apt-get install -y prometheus", file=sys.stderr)
        return 2
    health, port = f"127.0.0.1:{free_port()}", free_port()
    prometheus = f"http://127.0.0.1:{port}"
    empty = 0
    with tempfile.TemporaryDirectory() as folder, BrokerProcess() as broker:
        Path(folder, "shop.py").write_text(APP)
        Path(folder, "prometheus.yml").write_text(CONFIG.format(target=health))
        leveret = [sys.executable, "-m", "leveret.cli", "run", "shop:app", "--processes", "2", "--health", health]
        serve = [
            program,
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with running(*leveret, folder=folder, SHOP_URL=broker.url), running(*serve, folder=folder):
            time.sleep(options.seconds)
            print(f"{'panel':24} {'series':>6}  {'last value':>12}  query")
            for title, query in queries(json.loads(leveret_prometheus.dashboard())):
                found = asked(prometheus, query)
                empty += not found
                last = float(found[0]["value"][1]) if found else float("nan")
                print(f"{title:24} {len(found):6}  {last:12.6g}  {re.sub(' +', ' ', query)}")
            if options.keep:
                print(f"{prometheus} - Enter ends it", flush=True)
                sys.stdin.readline()
    print("every query found something" if not empty else f"{empty} queries found nothing")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
