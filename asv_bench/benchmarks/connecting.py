"""The program that `bench_connect` starts: connects clients with default settings, and prints what each cost as JSON.

    python -m benchmarks.connecting COUNT

The first clients are not counted: they load what is loaded once. All stay connected until the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from .former import need
from .support import Broker, runner

#: Clients before the ones that are counted.
WARM_UP = 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def connect(url: str, count: int) -> dict[str, float]:
    """Connects so many clients, one after the other.

    Returns:
        Microseconds of CPU and bytes of resident memory for each.
    """
    leveret = need("leveret")
    clients: list[Any] = [await leveret.connect(url, heartbeat=0) for _ in range(WARM_UP)]
    gc.collect()
    before, began = _resident(), time.process_time()
    clients += [await leveret.connect(url, heartbeat=0) for _ in range(count)]
    cpu, grown = time.process_time() - began, _resident() - before
    await asyncio.gather(*(client.close() for client in clients))
    return {"cpu_us": cpu / count * 1e6, "bytes": grown / count}


def main(count: int) -> None:
    """Connects, and prints."""
    broker = Broker()
    try:
        print(json.dumps(runner().run(connect(broker.url, count))))
    finally:
        broker.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
