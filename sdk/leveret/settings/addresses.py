"""Addresses of brokers: endpoints, and AMQP URLs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import printable
from leveret.records import dataclass
from leveret.settings.rules import Options, Secret, inside, is_text, option, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable

PORTS: Final = {"amqp": 5672, "amqps": 5671, "amqp+unix": 0}
#: What needs no percent sign (RFC 3986 section 2.3).
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Endpoint(Options):
    """An address of a broker.

    Attributes:
        host: A host name, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535.

    Example:
        >>> str(Endpoint("::1", 5672))
        '[::1]:5672'
    """

    host: str = option("localhost", minimum=1, maximum=255)
    port: int = option(5672, minimum=1, maximum=65_535)

    def _check_together(self) -> None:
        if any(character in "/@?#[]," or character.isspace() for character in self.host):
            raise wrong("host", "host has a character that no host name or address has")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def quoted(text: str, safe: str = "") -> str:
    """Percent-encodes text for a URL; `urllib.parse.quote` does the same, and is slow to import."""
    return "".join(
        character
        if character in _UNRESERVED or character in safe
        else "".join(f"%{it:02X}" for it in character.encode())
        for character in text
    )


def _decode(option: str, text: str) -> str:
    first, *rest = text.encode().split(b"%")
    if any(len(each) < 2 or not _HEX.issuperset(each[:2]) for each in rest):
        raise wrong(option, f"{option} has a malformed percent escape")
    raw = first + b"".join(bytes((int(each[:2], 16),)) + each[2:] for each in rest)
    decoded = raw.decode("utf-8", "surrogateescape")  # its own error would show the bytes
    if not is_text(decoded):
        raise wrong(option, f"{option} has a NUL or is not UTF-8 after percent-decoding")
    return decoded


def parse_endpoints(texts: Iterable[str], default_port: int) -> tuple[Endpoint, ...]:
    """Reads `host`, `host:port` and `[IPv6]:port`. Errors show none: `user:password` without a host looks like one."""
    endpoints = []
    for number, text in enumerate(texts, 1):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%25[\w.-]+)?)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text)
        port = int(match[3] or default_port) if match else 0
        if match is None or not 1 <= port <= 65_535:
            text = "host, host:port or [IPv6]:port with a port of 1 to 65535"
            raise wrong("endpoints", f"endpoints: number {number} is not {text}")
        endpoints.append(Endpoint(_decode("endpoints", match[1] or match[2]), port))
    return tuple(endpoints)


def parse_query(query: str) -> dict[str, str]:
    """Reads the options of a URL's query; each is given once."""
    options: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        name, equals, text = pair.partition("=")
        name = printable(name, 64)
        if not equals or name in options:
            raise wrong(name, f"option {name!r} {'is given twice' if equals else 'has no value'}")
        options[name] = _decode(name, text)
    return options


def parse_url(url: str) -> tuple[str, dict[str, Any], str, str]:
    """Takes a URL apart, by hand: `urlsplit` drops characters, and shows the password in some of its errors.

    Returns:
        The scheme, the options outside the query, the query, and the URL as errors may show it.
    """
    if not isinstance(url, str):
        raise wrong("url", f"url is of type {type(url).__name__}; it must be text")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in PORTS:
        got = f", not {scheme}://" if separator and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]{0,15}", scheme) else ""
        raise wrong("url", f"the URL must start with amqp://, amqps:// or amqp+unix://{got}")
    scheme = scheme.lower()
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    with inside(f"{scheme}://..."):
        if not is_text(url) or any(character <= " " or character == "\x7f" for character in url):
            raise wrong("url", "the URL has a space, a control character or half a character")
        if "#" in rest:
            raise wrong("url", "the URL has a fragment; in a password or option '#' is written %23")
        if rest.count("@") > 1 or ("@" in rest and "@" not in authority):
            escapes = "'@', '/' and '?' in a password or option are written %40, %2F and %3F"
            raise wrong("url", f"the URL has an '@' that does not end the password; {escapes}")
        credentials, at, hosts = authority.rpartition("@")
        user, colon, password = credentials.partition(":")
        values: dict[str, Any] = {}
        if at:
            values["username"] = _decode("username", user)
        if colon:
            values["password"] = Secret(_decode("password", password))
        if scheme == "amqp+unix":
            if hosts:
                raise wrong("url", "an amqp+unix URL has no host")
        elif not hosts:
            raise wrong("endpoints", "the URL has no host")
        else:
            values["endpoints"] = parse_endpoints(hosts.split(","), PORTS[scheme])
    shown = f"{scheme}://{quoted(values['username']) + ':***@' if at else ''}{printable(hosts)}/..."
    # A bare slash is no name: RabbitMQ's specification reads it as a virtual host with an empty name, which no broker
    # has.
    if slash and path:
        with inside(shown):
            if "/" in path:
                raise wrong("virtual_host", "virtual_host has a '/'; it is written %2F")
            values["virtual_host"] = _decode("virtual_host", path)
    return scheme, values, query, shown
