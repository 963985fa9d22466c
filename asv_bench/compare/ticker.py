"""Tells a driver when messages are due: `python ticker.py RATE COUNT`, as a process of its own.

For each message it writes the time at which the message is due, in nanoseconds of the system's clock, as eight bytes,
little-endian, and not before that time. To a driver that is what a request is to a service. Timers of event loops are
not measured by it; they are exact to a millisecond only. Drivers start it when they are ready.
"""

from __future__ import annotations

import os
import struct
import sys
import time

#: Nanoseconds until the first message is due.
BEGIN = 100_000_000


def main(rate: int, count: int) -> None:
    """Writes the times of all messages, each when it has come."""
    pack, now = struct.Struct("<q").pack, time.time_ns
    begin = now() + BEGIN
    for number in range(count):
        due = begin + number * 1_000_000_000 // rate
        while (left := due - now()) > 0:
            time.sleep(left / 1e9)
        os.write(1, pack(due))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
