"""What the process uses, in the period between two readings."""

from __future__ import annotations

import gc
import time

from leveret.monitoring.usage import UsageMeter, resident_memory


def test_usage_is_that_of_the_time_since_the_last_reading() -> None:
    meter = UsageMeter()
    try:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        gc.collect()
        busy = meter.read()
        time.sleep(0.05)
        idle = meter.read()
    finally:
        meter.close()
        meter.close()
    assert busy.cpu > idle.cpu
    assert busy.gc_collections >= 1
    assert busy.gc_pause > 0
    assert (idle.gc_collections, idle.gc_pause) == (0, 0)
    assert meter._observe not in gc.callbacks


def test_memory_is_what_is_in_use_now() -> None:
    before = resident_memory()
    block = bytearray(b"x" * (64 << 20))
    after = resident_memory()
    assert before is not None
    assert after is not None
    assert after - before > len(block) // 2
