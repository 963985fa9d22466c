"""Recommends settings for what was found; says nothing where there is nothing to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from leveret.cli.doctor.finding import milliseconds, ok, warning
from leveret.cli.doctor.login import is_local
from leveret.cli.doctor.series import largest_body, version_of
from leveret.cli.doctor.visit import RABBITMQ

if TYPE_CHECKING:
    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit

__all__ = ["recommended"]

#: Heartbeats in seconds that are neither too short for a busy process nor too long to notice a silent broker.
_SHORTEST: Final = 5
_LONGEST: Final = 60
#: Seconds to a confirm from which on it matters whether publishings wait for each other.
_FAR: Final = 0.01


async def recommended(visit: Visit) -> Finding:
    """Recommends settings."""
    urgent = _urgent(visit)
    others = _others(visit)
    advice = " ".join([*urgent, *others])
    if urgent:
        return warning("some should be changed", advice)
    return ok("some may be worth a change" if others else "nothing to recommend", advice)


def _urgent(visit: Visit) -> list[str]:
    settings, negotiated = visit.settings, visit.logged_in.connection.negotiated
    texts = []
    if not is_local(visit) and settings.tls is None:
        secret = "password and messages" if settings.mechanism == "PLAIN" else "messages"
        texts.append(f"TLS: use amqps://; {secret} cross the network readable.")
    if negotiated.heartbeat == 0:
        texts.append("heartbeat=30: without heartbeats a broker that is gone may not be noticed.")
    return texts


def _others(visit: Visit) -> list[str]:
    settings, negotiated = visit.settings, visit.logged_in.connection.negotiated
    texts = []
    if 0 < negotiated.heartbeat < _SHORTEST:
        texts.append(f"heartbeat=30: at {negotiated.heartbeat} s a busy process may lose its connection.")
    elif negotiated.heartbeat > _LONGEST:
        texts.append(f"heartbeat=30: a silent broker is noticed after {2 * negotiated.heartbeat} s.")
    if len(settings.endpoints) == 1 and not is_local(visit):
        texts.append("Hosts: if the broker is a cluster, name its nodes in the URL: amqp://a,b,c.")
    version = version_of(visit.version) if visit.product == RABBITMQ else None
    largest = None if version is None else largest_body(version)
    if largest is not None and settings.max_body_size < largest:
        texts.append(
            f"max_body_size={largest}, if your messages may be that large: the broker takes them by default, and "
            f"this client does not keep bodies of more than {settings.max_body_size} bytes."
        )
    if visit.confirm_p50 is not None and visit.confirm_p50 > _FAR:
        texts.append(
            f"Publish in batches or from many tasks: with {milliseconds(visit.confirm_p50)} to a confirm, one message "
            f"at a time makes {1 / visit.confirm_p50:.0f} messages per second."
        )
    return texts
