"""Asks the health endpoint of a run, for `leveret health` and `leveret top`."""

from __future__ import annotations

import http.client
import json
from typing import Any, Final
from urllib.parse import urlsplit

import click

__all__ = ["EndpointUnreachable", "fetch", "print_health"]

#: The longest answer that is read.
_LONGEST: Final = 16 * 1024 * 1024
#: Exit statuses of `leveret health`; 2 is a wrong option, as everywhere.
_NOT_READY: Final = 1
_NO_ANSWER: Final = 3


class EndpointUnreachable(Exception):
    """The endpoint did not answer, or what answered is not the health endpoint of a run."""


def fetch(url: str, path: str, timeout: float) -> dict[str, Any]:
    """Gets a page of the endpoint as plain values.

    Args:
        url: `http://HOST:PORT`, or `HOST:PORT`.
        path: The page, such as "/health".
        timeout: Seconds to wait at most, for each step.

    Returns:
        The page, whether it says that the run is well or not.

    Raises:
        EndpointUnreachable: See above; the text says what happened.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise click.BadParameter(f"{url!r} is no address: {error}", param_hint="URL") from error
    if parts.scheme != "http" or not host:
        raise click.BadParameter(f"the health endpoint is http://HOST:PORT, not {url!r}", param_hint="URL")
    connection = http.client.HTTPConnection(host, port or 80, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(_LONGEST)
        page = json.loads(body) if response.status in (200, 503) else None
    except (OSError, http.client.HTTPException) as error:
        raise EndpointUnreachable(
            f"{host}:{port or 80} did not answer: {str(error) or type(error).__name__}"
        ) from error
    except ValueError:
        page = None
    finally:
        connection.close()
    if not isinstance(page, dict) or "reasons" not in page:
        raise EndpointUnreachable(f"{host}:{port or 80} is not the health endpoint of leveret run (--health)")
    return page


def print_health(url: str, *, live: bool, timeout: float) -> int:
    """Prints whether a run is ready, or live, and why not.

    Returns:
        The exit status: 0 it is, 1 it is not, 3 it did not answer.
    """
    what = "live" if live else "ready"
    try:
        page = fetch(url, f"/{what}", timeout)
    except EndpointUnreachable as error:
        click.echo(str(error), err=True)
        return _NO_ANSWER
    good = bool(page.get(what))
    click.echo(what if good else f"not {what}")
    if not good:
        for reason in page["reasons"]:
            click.echo(f"  {reason}")
    return 0 if good else _NOT_READY
