"""What is known of RabbitMQ by its version: when its series came out and is supported, and its default limits.

Dates of 3.10 and later: https://www.rabbitmq.com/release-information, as its sources stood on 2026-08-20. Where that
page gives no day for the end of community support, it is the last day of the month in which the next series came out.
Dates before 3.10: https://endoflife.date/rabbitmq. Limits: the release notes of 3.8.0, 3.8.15, 3.8.17, 4.0.1 and 4.3.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

__all__ = ["NEWEST", "SERIES", "Series", "consumer_timeout", "largest_body", "series_of", "version_of"]

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Series:
    """A release series.

    Attributes:
        number: Major and minor version.
        released: When its first version came out.
        community: The last day of community support.
        commercial: The last day of commercial support.
    """

    number: tuple[int, int]
    released: date
    community: date
    commercial: date

    def __str__(self) -> str:
        return "{}.{}".format(*self.number)


#: The newest first.
SERIES: Final = (
    Series((4, 3), date(2026, 4, 23), date(2026, 11, 30), date(2028, 4, 30)),
    Series((4, 2), date(2025, 10, 28), date(2026, 7, 31), date(2030, 6, 30)),
    Series((4, 1), date(2025, 4, 15), date(2026, 1, 31), date(2027, 4, 30)),
    Series((4, 0), date(2024, 9, 18), date(2025, 4, 30), date(2026, 9, 30)),
    Series((3, 13), date(2024, 2, 22), date(2024, 9, 30), date(2029, 12, 31)),
    Series((3, 12), date(2023, 6, 2), date(2024, 2, 29), date(2025, 6, 30)),
    Series((3, 11), date(2022, 9, 28), date(2023, 6, 30), date(2024, 6, 30)),
    Series((3, 10), date(2022, 5, 3), date(2022, 9, 30), date(2023, 12, 31)),
    Series((3, 9), date(2021, 7, 23), date(2023, 1, 31), date(2023, 7, 31)),
    Series((3, 8), date(2019, 10, 1), date(2022, 7, 31), date(2022, 7, 31)),
    Series((3, 7), date(2017, 11, 28), date(2020, 9, 30), date(2020, 9, 30)),
)
NEWEST: Final = SERIES[0]


def version_of(text: str) -> tuple[int, ...] | None:
    """Reads a version such as `4.0.5` or `3.13.0-rc.1`; returns its three numbers, or None for something else."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text)
    return tuple(map(int, match.groups())) if match else None


def series_of(version: tuple[int, ...]) -> Series | None:
    """Returns the series that a version is of, or None for one that is not in the table."""
    return next((series for series in SERIES if series.number == version[:2]), None)


def largest_body(version: tuple[int, ...]) -> int | None:
    """Returns the default of `max_message_size` in bytes; None where there is no such setting."""
    if version < (3, 8, 0):
        return None
    return 16 * _MIB if version >= (4, 0, 0) else 128 * _MIB


def consumer_timeout(version: tuple[int, ...]) -> str:
    """Says how long a delivery may stay unacknowledged by default (RabbitMQ: delivery acknowledgement timeout)."""
    if version < (3, 8, 15):
        return "none"
    if version < (3, 8, 17):
        return "15 minutes"
    return "30 minutes in quorum queues, none in others" if version >= (4, 3, 0) else "30 minutes"
