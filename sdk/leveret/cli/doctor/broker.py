"""Checks what the broker is, and the limits that it set: product, version, support, frames, bodies, timeouts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from leveret.broker.session import PRODUCT as EMBEDDED
from leveret.cli.doctor.finding import ok, warning
from leveret.cli.doctor.series import NEWEST, consumer_timeout, largest_body, series_of, version_of
from leveret.cli.doctor.visit import RABBITMQ
from leveret.errors import printable

if TYPE_CHECKING:
    from datetime import date

    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit

__all__ = ["broker", "is_embedded", "limits", "support"]

_MIB: Final = 1024 * 1024


def is_embedded(visit: Visit) -> bool:
    """Returns whether it is Leveret's embedded broker."""
    return visit.product == EMBEDDED


async def broker(visit: Visit) -> Finding:
    """Says what the broker is, and whether its version is supported."""
    product, version = printable(visit.product, 64), printable(visit.version, 64)
    text = f"{product} {version}"
    properties = visit.server_properties
    platform = printable(str(properties.get("platform", "")), 64).replace("Erlang/OTP", "Erlang")
    if platform:
        text += f" on {platform}"
    if "cluster_name" in properties:
        text += f", cluster {printable(str(properties['cluster_name']), 128)}"
    if is_embedded(visit):
        return ok(text, "For development and tests: it keeps everything in memory, and loses it when it stops.")
    if product != RABBITMQ:
        return warning(text, "Leveret is tested with RabbitMQ only.")
    return support(text, version, datetime.now(UTC).date())


def support(text: str, version: str, today: date) -> Finding:
    """Says whether a version of RabbitMQ is supported.

    Args:
        text: What the broker is.
        version: Its version.
        today: The date.
    """
    numbers = version_of(version)
    if numbers is None:
        return warning(f"{text}; that is no version of a release", "Use a release of RabbitMQ.")
    series = series_of(numbers)
    if series is None and numbers[:2] > NEWEST.number:
        return ok(f"{text}; newer than what this Leveret knows ({NEWEST})")
    if series is None:
        return warning(f"{text}; no release of its series is supported any more", f"Upgrade, to {NEWEST} or newer.")
    text += f"; series {series} of {series.released}"
    if today <= series.community:
        return ok(f"{text}, community support until {series.community}")
    text += f", community support ended {series.community}"
    if series is NEWEST:
        return warning(text, f"Look for a newer series: {NEWEST} is the last one that this Leveret knows.")
    if today <= series.commercial:
        return warning(f"{text}, commercial support until {series.commercial}", f"Upgrade, to {NEWEST} or newer.")
    return warning(f"{text}, commercial support {series.commercial}", f"Upgrade, to {NEWEST} or newer.")


async def limits(visit: Visit) -> Finding:
    """Says which limits hold, and who lowered them."""
    asked, negotiated = visit.settings, visit.logged_in.connection.negotiated

    def agreed(name: str, unit: str, ours: int, both: int) -> str:
        return f"{name} {both}{unit}" + (f" (lowered by the broker from {ours})" if both < ours else " (as asked)")

    texts = [
        agreed("frame_max", " bytes", asked.frame_max, negotiated.frame_max),
        agreed("channel_max", "", asked.channel_max, negotiated.channel_max),
        agreed("heartbeat", " s", int(asked.heartbeat), negotiated.heartbeat),
    ]
    version = version_of(visit.version) if visit.product == RABBITMQ else None
    if version is not None:
        largest = largest_body(version)
        size = "no limit" if largest is None else f"{largest // _MIB} MiB"
        texts.append(
            f"by default of this version (AMQP does not tell what is set): largest body {size}, "
            f"delivery acknowledgement timeout {consumer_timeout(version)}"
        )
    else:
        texts.append("largest body and delivery acknowledgement timeout: not known, AMQP does not tell")
    figures = {
        "frame_max_bytes": negotiated.frame_max,
        "channel_max": negotiated.channel_max,
        "heartbeat_s": negotiated.heartbeat,
    }
    pooled = visit.settings.max_pooled_channels
    if negotiated.channel_max < pooled:
        advice = (
            f"Set max_pooled_channels to less than {negotiated.channel_max} (it is {pooled}), or raise channel_max."
        )
        return warning("; ".join(texts), advice, figures)
    return ok("; ".join(texts), figures=figures)
