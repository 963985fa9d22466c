"""Settings: frozen objects whose every option is checked when they are made.

They come from code, a URL, environment variables or a TOML file, under the same option names everywhere. An unknown,
mistyped or out-of-range option is a `ConfigurationError` that names it. Seconds are floats, sizes are bytes.
Only paths and flags are held here: the transport opens the files and makes the TLS context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn, Self, TypeVar
from urllib.parse import quote, unquote_to_bytes

from leveret.errors import ConfigurationError, printable
from leveret.message import PERSISTENT, TRANSIENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "ConnectionSettings",
    "ConsumerSettings",
    "Endpoint",
    "GcSettings",
    "MonitoringSettings",
    "PluginSettings",
    "ProducerSettings",
    "Secret",
    "Settings",
    "TLSSettings",
    "load",
]

T = TypeVar("T")

_ACK_MODES: Final = ("coalesced", "each", "manual", "handoff", "none")
_MIB: Final = 1024 * 1024
_PORTS: Final = {"amqp": 5672, "amqps": 5671, "amqp+unix": 0}
#: What AMQP's strings cannot carry: NUL (AMQP 0-9-1 section 4.2.5.3, RFC 4616) and halves of characters.
_NOT_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_WORDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "Secret": "text",
    "dict": "a table",
    "Mapping": "a table",
}
_BOOLEANS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_WHY_NO_ZERO: Final = " (AMQP's 0 means unlimited: memory would be unbounded)"
_DELIVERY_MODES: Final = {"transient": TRANSIENT, "persistent": PERSISTENT}
#: In a URL these have their own places, not in the query.
_NOT_IN_QUERY: Final = {"endpoints", "username", "password", "virtual_host", "unix_socket", "tls"}
_TLS_IN_QUERY: Final = ("cafile", "certfile", "keyfile", "server_hostname", "insecure_skip_verification")
_QUERY_ALIASES: Final = {"name": "client_name"}
#: Variables that belong to others; those that end in "_" are families.
_OTHER_VARIABLES: Final = ("PLUGINS", "BUILD", "ANNOTATE", "PLUGINS_", "PRODUCER_", "CONSUMER_", "MONITORING_", "TLS_")


class Secret:
    """Text that is not shown by `repr`, `str`, `format`, logs and tracebacks, and is not pickled.

    It protects against accidents, not against code in the same process.

    Example:
        >>> password = Secret("rabbit")
        >>> f"{password} {password!r}"
        '*** ***'
        >>> password.reveal()
        'rabbit'
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a Secret holds text, not {type(value).__name__}")
        self._value = value

    def reveal(self) -> str:
        """Returns the text itself; do not log it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled: the text would leave the process in the clear")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What an option may be. Numbers have both bounds; the bounds of text count its bytes in UTF-8."""

    kind: type
    items: _Rule | None = None  # of a tuple
    optional: bool = False  # None is a value
    unit: str = ""
    minimum: float = 0
    maximum: float = float("inf")
    or_zero: bool = False  # 0 is a value, though it is below the minimum
    whole: bool = False  # a float without a fraction
    choices: tuple[object, ...] = ()
    aliases: Mapping[str, object] = field(default_factory=dict)  # words for values
    word: str = ""  # a value beside those of the kind
    note: str = ""  # why the bounds are what they are
    code_only: bool = False  # refused in URLs, environment variables and files

    def check(self, name: str, value: Any) -> Any:
        """Returns the value in its own type, or raises a `ConfigurationError`; no secret is in its text."""
        if value is None and self.optional:
            return None
        if self.word and value == self.word:
            return self.word
        if self.kind is Secret and isinstance(value, (str, Secret)):
            return Secret(self.check_amount(name, value if isinstance(value, str) else value.reveal()))
        if self.kind is tuple and isinstance(value, (list, tuple)) and self.items:
            return tuple(self._check_items(name, value))
        if self.aliases and isinstance(value, str):
            value = self.aliases.get(value, value)
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise _wrong(name, f"{name} is of type {type(value).__name__}; it must be {self.wanted()}")
        if self.choices and value not in self.choices:
            shown = repr(printable(value, 64)) if isinstance(value, str) else _number(value)
            raise _wrong(name, f"{name} is {shown}; it must be {self.wanted()}")
        return self.check_amount(name, value) if self.kind in (str, int, float) else value

    def _check_items(self, name: str, value: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(value, 1):
            with _inside(f"item {number}"):
                yield self.items.check(name, item) if self.items else item

    def check_amount(self, name: str, value: Any) -> Any:
        """Checks the length of text or the size of a number."""
        amount, unit, verb, must = value, self.unit, "is", "be"
        if isinstance(value, str):
            if _NOT_TEXT.search(value):
                raise _wrong(name, f"{name} has a NUL or is not Unicode text")
            amount, unit, verb, must = len(value.encode()), "bytes in UTF-8", "has", "have"
        inside = self.minimum <= amount <= self.maximum or (self.or_zero and amount == 0)  # false for NaN
        if not inside or (self.whole and amount % 1):
            lead = "a whole number, " if self.whole else "0 or " if self.or_zero else ""
            limits = f"{lead}{_number(self.minimum)} to {_number(self.maximum)}".replace(" to inf", " or more")
            has = f"{name} {verb} {_number(amount)} {unit}".rstrip()
            raise _wrong(name, f"{has}; it must {must} {limits}{self.note}")
        return float(value) if self.kind is float else value

    def read(self, name: str, value: Any, *, text: bool) -> Any:
        """Checks a value from outside; `text` says that numbers and the like are still text."""
        if self.code_only:
            raise _wrong(name, f"{name} can be set from code only")
        if text and self.kind is tuple:
            value = [item.strip() for item in value.split(",")] if value else []
        elif text and self.kind in (bool, int, float) and value not in self.aliases and value != (self.word or None):
            number = r"-?[0-9]{1,20}" if self.kind is int else r"-?[0-9]{1,20}(\.[0-9]{1,20})?"
            good = value.lower() in _BOOLEANS if self.kind is bool else re.fullmatch(number, value)
            if not good:
                raise _wrong(name, f"{name} is {printable(value, 64)!r}; it must be {self.wanted()}")
            value = _BOOLEANS[value.lower()] if self.kind is bool else self.kind(value)
        return self.check(name, value)

    def wanted(self) -> str:
        """Says what the value should have been."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        name = self.kind.__name__
        if self.word:
            return f"{_WORDS[name]} or {self.word!r}"
        return f"a list of {self.items.wanted()}" if self.items else _WORDS.get(name, name)


def _option(default: T, kind: type | None = None, **rule: Any) -> T:
    """Declares an option with its default; the kind is the default's unless given."""
    rules = {"rule": _Rule(kind=kind or type(default), optional=default is None, **rule)}
    return field(default=default, metadata=rules)


def _seconds(default: float, minimum: float = 0.001, maximum: float = 86_400, *, whole: bool = False) -> float:
    return _option(default, unit="s", minimum=minimum, maximum=maximum, whole=whole)


def _size(default: int, minimum: int = 1, maximum: int = 2**40, *, or_zero: bool = False) -> int:
    return _option(default, unit="bytes", minimum=minimum, maximum=maximum, or_zero=or_zero)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value) if value.bit_length() < 128 else "huge"  # str refuses more than 4300 digits


def _wrong(option: str, text: str) -> ConfigurationError:
    return ConfigurationError(text, option=option)


def _rules(kind: type[_Options]) -> dict[str, _Rule]:
    return {item.name: item.metadata["rule"] for item in fields(kind)}


def _refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            import difflib

            nearest = difflib.get_close_matches(name[:64], known, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise _wrong(name, f"unknown option {printable(name, 64)!r}{hint}")


@contextlib.contextmanager
def _inside(source: str) -> Iterator[None]:
    """Says in an error where the option came from; the names of nested tables are joined."""
    try:
        yield
    except ConfigurationError as error:
        raise _wrong(error.option, f"{source}: {error}".replace("]: [", ".")) from None


def _read_environment(
    environ: Mapping[str, str] | None, prefix: str, rules: Mapping[str, _Rule], others: Iterable[str] = ()
) -> dict[str, Any]:
    not_mine = [prefix + name for name in others]
    families = tuple(name for name in not_mine if name.endswith("_"))
    known = {prefix + name.upper(): name for name in rules}
    values = {}
    for variable, text in (os.environ if environ is None else environ).items():
        if variable.startswith(prefix) and not variable.startswith(families) and variable not in not_mine:
            _refuse_unknown([variable], known)
            name = known[variable]
            with _inside(variable):
                values[name] = rules[name].read(name, text, text=True)
    return values


def _read(values: Mapping[str, Any], rules: Mapping[str, _Rule], *, text: bool) -> dict[str, Any]:
    _refuse_unknown(values, rules)
    return {name: rules[name].read(name, value, text=text) for name, value in values.items()}


def _read_table(tables: Mapping[str, Any], name: str, rules: Mapping[str, _Rule]) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise _wrong(name, f"{name} must be a table")
    with _inside(f"[{name}]"):
        return _read(table, rules, text=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What all settings have in common."""

    def __post_init__(self) -> None:
        for name, rule in _rules(type(self)).items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """Checks what the rules of single options cannot."""

    def replace(self, **overrides: object) -> Self:
        """Makes a copy with other values.

        Args:
            **overrides: The options to change, by name.

        Returns:
            The checked copy.

        Raises:
            ConfigurationError: An option is unknown, of the wrong type or out of range.
        """
        _refuse_unknown(overrides, _rules(type(self)))
        values: dict[str, Any] = overrides
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, slots=True)
class Endpoint(_Options):
    """An address of a broker.

    Attributes:
        host: A host name, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535.

    Example:
        >>> str(Endpoint("::1", 5672))
        '[::1]:5672'
    """

    host: str = _option("localhost", minimum=1, maximum=255)
    port: int = _option(5672, minimum=1, maximum=65_535)

    def _check_together(self) -> None:
        if re.search(r"[\s/@?#\[\],]", self.host):
            raise _wrong("host", "host has a character that no host name or address has")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings(_Options):
    """How to verify the broker and identify the client. Without CA options the system's certificates are trusted.

    Attributes:
        cafile: File with the CA certificates to trust (PEM).
        capath: Directory with CA certificates, hashed by OpenSSL's rules.
        cadata: CA certificates as PEM text.
        certfile: File with the client's certificate chain (PEM).
        keyfile: File with the client's private key, if it is not in `certfile`.
        keyfile_password: What decrypts the private key; a `str` is made a `Secret`.
        server_hostname: The name that the broker's certificate must have; None means the endpoint's host.
        minimum_version: "TLSv1.2" or "TLSv1.3".
        insecure_skip_verification: True accepts any certificate, so anybody in between can read the password. Only code
            can set it: URLs, environment variables and TOML files cannot.

    Example:
        >>> TLSSettings(minimum_version="TLSv1.3").insecure_skip_verification
        False
    """

    cafile: str | None = _option(None, str)
    capath: str | None = _option(None, str)
    cadata: str | None = _option(None, str, minimum=1)
    certfile: str | None = _option(None, str)
    keyfile: str | None = _option(None, str)
    keyfile_password: Secret | None = _option(None, Secret)  # noqa: RUF009 - it is a field
    server_hostname: str | None = _option(None, str, minimum=1, maximum=255)
    minimum_version: Literal["TLSv1.2", "TLSv1.3"] = _option("TLSv1.2", choices=("TLSv1.2", "TLSv1.3"))
    insecure_skip_verification: bool = _option(False, code_only=True)

    def _check_together(self) -> None:
        for name in ("keyfile", "keyfile_password"):
            if getattr(self, name) is not None and self.certfile is None:
                raise _wrong(name, f"{name} is of no use without certfile")
        for name in ("cafile", "certfile", "keyfile"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise _wrong(name, f"{name}: there is no file {path!r}")
        if self.capath is not None and not os.path.isdir(self.capath):
            raise _wrong("capath", f"capath: there is no directory {self.capath!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings(_Options):
    """How to reach a broker, and what to agree on with it.

    Timeouts are 0.001 to 86400 s. `frame_max`, `channel_max` and `heartbeat` are asked for; the broker may lower them.

    Attributes:
        endpoints: Brokers, tried in random order, the one that was reached last first; by default localhost at 5672,
            with `tls` at 5671.
        unix_socket: Path of a unix socket to connect to instead of `endpoints`, 1 to 107 bytes.
        username: For PLAIN.
        password: For PLAIN; a `str` is made a `Secret`.
        virtual_host: 1 to 255 bytes.
        mechanism: "PLAIN", or "EXTERNAL" (the client certificate says who it is).
        tls: None means plain TCP.
        client_name: Shown in the broker's management tools, 1 to 200 bytes.
        connect_timeout: Seconds until a broker is reached, with TCP and TLS. Meanwhile a further address is tried every
            0.25 s, and at once when one fails.
        handshake_timeout: Seconds from the protocol header to connection.open-ok.
        operation_timeout: Seconds for a call such as queue.declare.
        close_timeout: Seconds to wait for connection.close-ok.
        auto_recovery: True dials again for what waits for a connection that was lost; False ends it with the error.
        recovery_initial_delay: Seconds that the first attempt is delayed at most; twice as many for each that follows.
            The delay is a random part of that, so that clients of a broker that restarts do not come all at once.
        recovery_max_delay: Seconds that no attempt is delayed longer; at least `recovery_initial_delay`.
        heartbeat: Whole seconds, 0 to 65535; 0 turns heartbeats off.
        frame_max: Bytes, 4096 to 1048576. RabbitMQ allows 131072 unless it is configured otherwise.
        channel_max: 1 to 65535 channels.
        max_pooled_channels: How many channels of a connection's pool may be open, 1 to 65535; no more than
            `channel_max` ever are.
        socket_receive_buffer_size: Bytes, 4096 to 64 MiB; 0 leaves it to the kernel, which adapts it to the link.
        socket_send_buffer_size: Likewise.
        tcp_nodelay: True sends small writes at once.
        tcp_keepalive: True lets the kernel probe idle connections.
        tcp_keepalive_time: Whole seconds of silence before the first probe, 1 to 32767.
        tcp_keepalive_interval: Whole seconds between probes, 1 to 32767.
        write_high_watermark: Unwritten bytes above which publishing waits, 1 to 2**40.
        write_low_watermark: Unwritten bytes at which it goes on; less than `write_high_watermark`.
        max_body_size: The largest body taken from the broker, 1 to 2**40 bytes.
        max_table_depth: How deep the broker may nest tables and arrays, 1 to 128.
        max_table_entries: How many entries its tables may have, 1 to 2**20.

    Example:
        >>> settings = ConnectionSettings.from_url("amqp://app:rabbit@a,b:5673/shop?heartbeat=20", connect_timeout=5)
        >>> settings.redacted_url, settings.heartbeat, settings.password
        ('amqp://app:***@a:5672,b:5673/shop', 20.0, ***)
    """

    endpoints: tuple[Endpoint, ...] = _option((), items=_Rule(kind=Endpoint))
    unix_socket: str | None = _option(None, str, minimum=1, maximum=107)  # sun_path, unix(7)
    username: str = _option("guest")
    password: Secret = _option(Secret("guest"))  # noqa: RUF009 - it is a field
    virtual_host: str = _option("/", minimum=1, maximum=255)
    mechanism: Literal["PLAIN", "EXTERNAL"] = _option("PLAIN", choices=("PLAIN", "EXTERNAL"))
    tls: TLSSettings | None = _option(None, TLSSettings)  # noqa: RUF009 - it is a field
    client_name: str = _option("leveret", minimum=1, maximum=200)
    connect_timeout: float = _seconds(30.0)
    handshake_timeout: float = _seconds(10.0)
    operation_timeout: float = _seconds(10.0)
    close_timeout: float = _seconds(5.0)
    auto_recovery: bool = _option(True)
    recovery_initial_delay: float = _seconds(0.1)
    recovery_max_delay: float = _seconds(30.0)
    heartbeat: float = _seconds(30.0, 0, 65_535, whole=True)
    frame_max: int = _size(131_072, 4096, _MIB)
    channel_max: int = _option(2047, minimum=1, maximum=65_535)
    max_pooled_channels: int = _option(16, minimum=1, maximum=65_535)
    # A size of our own would keep the kernel from adapting it to the link (man 7 tcp, tcp_moderate_rcvbuf).
    socket_receive_buffer_size: int = _size(0, 4096, 64 * _MIB, or_zero=True)
    socket_send_buffer_size: int = _size(0, 4096, 64 * _MIB, or_zero=True)
    tcp_nodelay: bool = _option(True)
    tcp_keepalive: bool = _option(True)
    # Linux refuses more than these: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h
    tcp_keepalive_time: float = _seconds(60.0, 1, 32_767, whole=True)
    tcp_keepalive_interval: float = _seconds(10.0, 1, 32_767, whole=True)
    write_high_watermark: int = _size(_MIB)
    write_low_watermark: int = _size(256 * 1024, 0)
    max_body_size: int = _size(64 * _MIB)
    max_table_depth: int = _option(32, minimum=1, maximum=128)
    max_table_entries: int = _option(16_384, minimum=1, maximum=2**20)

    def _check_together(self) -> None:
        if not self.endpoints:
            default = Endpoint("localhost", _PORTS["amqps" if self.tls else "amqp"])
            object.__setattr__(self, "endpoints", (default,))
        if self.write_low_watermark >= self.write_high_watermark:
            text = f"write_low_watermark is {self.write_low_watermark} bytes; it must be less than write_high_watermark"
            raise _wrong("write_low_watermark", f"{text}, {self.write_high_watermark}")
        if self.recovery_max_delay < self.recovery_initial_delay:
            text = f"recovery_max_delay is {_number(self.recovery_max_delay)} s; it must not be less than"
            initial = _number(self.recovery_initial_delay)
            raise _wrong("recovery_max_delay", f"{text} recovery_initial_delay, {initial} s")
        if self.tls is not None and self.unix_socket is not None:
            raise _wrong("tls", "tls is not used on a unix socket")

    @property
    def redacted_url(self) -> str:
        """The URL of these settings without options and without the password, for logs."""
        user = f"{quote(self.username, safe='')}:***@" if self.mechanism == "PLAIN" else ""
        path = quote(self.virtual_host, safe="")
        if self.unix_socket is not None:
            return f"amqp+unix://{user}/{path}?socket={quote(self.unix_socket)}"
        hosts = ",".join(str(endpoint).replace("%", "%25") for endpoint in self.endpoints)
        return f"{'amqps' if self.tls else 'amqp'}://{user}{hosts}/{path}"

    @classmethod
    def from_url(cls, url: str, **overrides: object) -> Self:
        """Makes settings from a URL, by RabbitMQ's URI specification and with more than one host.

        `amqp://user:password@host:port,host:port/virtual_host?option=value&option=value`; `amqps://` means TLS, and
        `amqp+unix://user:password@/virtual_host?socket=/path` a unix socket. Absent parts keep their defaults, and
        `amqp://host/` is `amqp://host`, where RabbitMQ's specification sees a virtual host with an empty name.
        Options are named as here, and `name` is short for `client_name`; with `amqps` also `cafile`, `certfile`,
        `keyfile` and `server_hostname`. Every part is percent-decoded; `@`, `/`, `?` and `#` in a value are written
        `%40`, `%2F`, `%3F` and `%23`.

        Args:
            url: The URL.
            **overrides: Options by name, which win over the URL's. `tls` needs an `amqps` URL.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: The URL is malformed or an option is wrong. The text never has the password.
        """
        scheme, values, query, shown = _parse_url(url)
        rules = {name: rule for name, rule in _rules(cls).items() if name not in _NOT_IN_QUERY}
        rules.update((name, _rules(TLSSettings)[name]) for name in _TLS_IN_QUERY)
        if scheme == "amqp+unix":
            rules["socket"] = _rules(cls)["unix_socket"]
        with _inside(shown):
            _refuse_unknown(overrides, _rules(cls))
            values |= _read(_parse_query(query), rules, text=True)
            tls = {name: values.pop(name) for name in _TLS_IN_QUERY if name in values}
            if scheme == "amqps" and "tls" not in overrides:
                values["tls"] = TLSSettings(**tls)
            elif tls and scheme != "amqps":
                raise _wrong(min(tls), f"{min(tls)} needs amqps://")
            elif "tls" in overrides and (overrides["tls"] is None) == (scheme == "amqps"):
                raise _wrong("tls", "tls needs amqps://, and amqps:// needs tls")
            if scheme == "amqp+unix":
                if "socket" not in values:
                    raise _wrong("unix_socket", "amqp+unix needs ?socket=/path")
                values["unix_socket"] = values.pop("socket")
            return cls(**{**values, **overrides})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "LEVERET_") -> Self:
        """Makes settings from environment variables.

        `LEVERET_URL` is the base; `LEVERET_<OPTION>`, such as `LEVERET_PASSWORD` or `LEVERET_ENDPOINTS=a:5672,b`, and
        `LEVERET_TLS_<OPTION>` win over it. Left alone are `LEVERET_PLUGINS`, `LEVERET_BUILD`, `LEVERET_ANNOTATE`, and
        the families `LEVERET_PLUGINS_`, `LEVERET_PRODUCER_`, `LEVERET_CONSUMER_` and `LEVERET_MONITORING_`.

        Args:
            environ: The variables; None means those of the process.
            prefix: What the names start with.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: A variable with the prefix is unknown or wrong.
        """
        rules = {name: rule for name, rule in cls._outside_rules().items() if name != "tls"}
        values = _read_environment(environ, prefix, rules, _OTHER_VARIABLES)
        tls = _read_environment(environ, f"{prefix}TLS_", _rules(TLSSettings))
        with _inside("environment"):
            return cls._from_outside({**values, "tls": tls} if tls else values)

    @classmethod
    def _outside_rules(cls) -> dict[str, _Rule]:
        """The rules of the environment and of files, where `endpoints` is text and `tls` a table."""
        endpoints = _Rule(kind=tuple, items=_Rule(kind=str))
        return {**_rules(cls), "url": _Rule(kind=str), "endpoints": endpoints, "tls": _Rule(kind=dict)}

    @classmethod
    def _from_outside(cls, values: dict[str, Any]) -> Self:
        base = cls.from_url(values.pop("url")) if "url" in values else None
        tls = base.tls if base else None
        if "tls" in values:
            if base and not tls:
                raise _wrong("tls", "TLS options need an amqps:// URL")
            tls = (tls or TLSSettings()).replace(**_read_table(values, "tls", _rules(TLSSettings)))
            values["tls"] = tls
        if "endpoints" in values:
            values["endpoints"] = _parse_endpoints(values["endpoints"], _PORTS["amqps" if tls else "amqp"])
        return base.replace(**values) if base else cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section(_Options):
    """What the settings of producers, consumers and monitoring have in common."""

    _family: ClassVar[str]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "LEVERET_") -> Self:
        """Makes settings from the variables `LEVERET_PRODUCER_<OPTION>`, `LEVERET_CONSUMER_<OPTION>` and so on.

        Args:
            environ: The variables; None means those of the process.
            prefix: What stands before `PRODUCER_`, `CONSUMER_` or `MONITORING_`.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: One of these variables is unknown or wrong.
        """
        return cls(**_read_environment(environ, prefix + cls._family, _rules(cls)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings(_Section):
    """How to publish.

    Attributes:
        exchange: Where to publish, at most 255 bytes; the empty name is the default exchange: it routes by queue name.
        serializer: The serializer's name: "json", "text", "bytes", "empty", "hybrid" or a plugin's.
        compressor: The compressor's name: "gzip", "deflate" or a plugin's; None leaves bodies as they are, except for a
            serializer that has a compressor of its own, as "hybrid" has.
        compression_level: The compressor's level, within its own bounds; None is its default.
        compression_threshold: Bodies of up to this many bytes are not compressed, 0 to 2**40.
        compression_ratio: A compressed body is kept when it is smaller than this share of the original, 0.01 to 1.
        confirms: False publishes without asking the broker to confirm: lost messages stay unknown.
        confirm_timeout: Seconds to wait for a confirm before the outcome is UNKNOWN, 0.001 to 86400.
        publish_timeout: Seconds for the whole of `publish`, and for the wait of `enqueue` and of each chunk of
            `publish_batch`: for the connection, for the broker's leave, for room, and for the confirm, 0.001 to 86400.
        mandatory: True has unroutable messages returned.
        delivery_mode: 2 (persistent) or 1 (transient); the words are understood too.
        max_outstanding: Unconfirmed publishings above which `publish` waits, 1 to 1000000; "auto" begins with 200 and
            grows up to `max_buffered` while that brings a higher rate of confirms.
        max_outstanding_bytes: Bytes of unconfirmed bodies, 1 to 2**40.
        max_buffered: Unconfirmed publishings above which `publish_nowait` refuses, 1 to 1000000.
        batch_size: Messages in a chunk of `publish_batch`, 1 to 1000000; fewer when they are large, so that a chunk has
            about 1 MiB.
        batches_in_flight: How many full chunks may be unconfirmed, 1 to 1000.
        max_body_size: The largest body, 1 to 2**40 bytes. RabbitMQ's own limit, `max_message_size`, is 128 MiB unless
            configured; since 4.0 it is 16 MiB.
        retry: The name of a retry policy, asked after each failure of `publish` and `publish_batch`; None for none.
        circuit_breaker: The name of a circuit breaker, told of failures and asked when it is not closed; None for none.

    Example:
        >>> ProducerSettings(exchange="orders", mandatory=True).delivery_mode
        2
    """

    _family = "PRODUCER_"

    exchange: str = _option("", maximum=255)
    serializer: str = _option("json", minimum=1, maximum=255)
    compressor: str | None = _option(None, str, minimum=1, maximum=255)
    compression_level: int | None = _option(None, int, minimum=-(2**31), maximum=2**31 - 1)
    compression_threshold: int = _size(1024, 0)
    compression_ratio: float = _option(0.9, minimum=0.01, maximum=1)
    confirms: bool = _option(True)
    confirm_timeout: float = _seconds(5.0)
    publish_timeout: float = _seconds(30.0)
    mandatory: bool = _option(False)
    delivery_mode: int = _option(PERSISTENT, choices=(TRANSIENT, PERSISTENT), aliases=_DELIVERY_MODES)
    max_outstanding: int | Literal["auto"] = _option(200, minimum=1, maximum=1_000_000, word="auto")
    max_outstanding_bytes: int = _size(64 * _MIB)
    max_buffered: int = _option(10_000, minimum=1, maximum=1_000_000)
    batch_size: int = _option(1000, minimum=1, maximum=1_000_000)
    batches_in_flight: int = _option(2, minimum=1, maximum=1000)
    max_body_size: int = _size(128 * _MIB)
    retry: str | None = _option(None, str, minimum=1, maximum=255)
    circuit_breaker: str | None = _option(None, str, minimum=1, maximum=255)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings(_Section):
    """How to consume.

    Attributes:
        prefetch: How many deliveries the broker sends ahead of their acknowledgements, 1 to 65535. "auto" begins with
            two for each worker and moves with what the handlers need, between `prefetch_min` and `prefetch_max`.
        prefetch_min: The least that "auto" uses, 1 to 65535. It is never less than `concurrency`.
        prefetch_max: The most that "auto" uses, 1 to 65535.
        concurrency: How many handlers run at once, 1 to 10000.
        ordered_by: What keeps messages in order when several handlers run: those with an equal "routing_key", or an
            equal header, written "header:<name>", are handled one after the other. None keeps no order.
        ack: When messages are acknowledged. "coalesced": after their handlers, many with one basic.ack. "each": after
            their handlers, each with its own. "manual": by whoever calls `ack`. "handoff": when they are taken over,
            before they are handled, so that a crash loses up to `handoff_size` of them. "none": the broker forgets
            them as it sends them (`no_ack`), and what is lost on the way is lost.
        ack_delay: Seconds an acknowledgement may wait to be sent with others, 0 to 1.
        read_delay: Seconds that deliveries may wait in the kernel for others while many come, so that one read brings
            many of them, 0 to 1; 0 reads each at once. It costs up to twice that latency under load, and none without.
        handoff_size: With "handoff": how many messages may be acknowledged and not handled yet, 1 to 1000000.
        processing_timeout: Seconds after which a handler is cancelled and has failed, 0.01 to 86400; it may run a tenth
            longer. None: no limit. A plain function cannot be cancelled: it goes on in its thread, and its worker takes
            no other message before it ends.
        resubscribe: True goes on when the broker cancels the consumer or closes its channel, or when the connection is
            lost and made again (`auto_recovery`); what was not acknowledged comes again. False ends with the error.
        exclusive: True refuses other consumers of the queue.
        consumer_tag: At most 240 bytes; empty has a new one made, `leveret-` and 16 digits. When the consumer begins
            again on its channel, after a pause or with another prefetch, `~` and a number follow it.
        priority: The consumer's priority (`x-priority`), a 32-bit number; None means the broker's default of 0.
        accept: The content types to take, each of 1 to 255 bytes; empty means those of all serializers that can make
            the model and are safe. Refused together with `serializer`.
        serializer: The serializer that decodes everything; None chooses by content type. "bytes" takes bodies as they
            came, compressed ones too.
        max_decompressed_size: The largest body after decompression, 1 to 2**40 bytes.
        max_decompression_ratio: How many times its compressed size a body may have, 1 to 1000000.
        body_view_size: Bodies of at least so many bytes, 1 to 2**40, are memoryviews of pooled memory; None: all are
            bytes.

    Example:
        >>> ConsumerSettings(prefetch=500, accept=("application/json",)).replace(concurrency=8).prefetch
        500
    """

    _family = "CONSUMER_"

    prefetch: int | Literal["auto"] = _option(100, minimum=1, maximum=65_535, note=_WHY_NO_ZERO, word="auto")
    prefetch_min: int = _option(1, minimum=1, maximum=65_535)
    prefetch_max: int = _option(1000, minimum=1, maximum=65_535)
    concurrency: int = _option(1, minimum=1, maximum=10_000)
    ordered_by: str | None = _option(None, str, minimum=1, maximum=255)
    ack: Literal["coalesced", "each", "manual", "handoff", "none"] = _option("coalesced", str, choices=_ACK_MODES)
    ack_delay: float = _seconds(0.005, 0, 1)
    read_delay: float = _seconds(0.004, 0, 1)
    handoff_size: int = _option(5000, minimum=1, maximum=1_000_000)
    processing_timeout: float | None = _option(None, float, unit="s", minimum=0.01, maximum=86_400)
    resubscribe: bool = _option(False)
    exclusive: bool = _option(False)
    consumer_tag: str = _option("", maximum=240)
    priority: int | None = _option(None, int, minimum=-(2**31), maximum=2**31 - 1)
    accept: Sequence[str] = _option((), items=_Rule(kind=str, minimum=1, maximum=255))
    serializer: str | None = _option(None, str, minimum=1, maximum=255)
    max_decompressed_size: int = _size(64 * _MIB)
    max_decompression_ratio: float = _option(200.0, minimum=1, maximum=1_000_000)
    body_view_size: int | None = _option(None, int, unit="bytes", minimum=1, maximum=2**40)

    def _check_together(self) -> None:
        if self.prefetch_min > self.prefetch_max:
            text = f"prefetch_min is {self.prefetch_min}; it must not be more than prefetch_max, {self.prefetch_max}"
            raise _wrong("prefetch_min", text)
        if self.ordered_by is not None and self.ordered_by != "routing_key":
            kind, _, header = self.ordered_by.partition(":")
            if kind != "header" or not header:
                shown = repr(printable(self.ordered_by, 64))
                raise _wrong("ordered_by", f"ordered_by is {shown}; it must be 'routing_key' or 'header:<name>'")
        if self.prefetch == "auto" and self.exclusive:
            # The consumer with the new prefetch has to be there before the old one goes, and two cannot be exclusive.
            raise _wrong("prefetch", "prefetch cannot be 'auto' for an exclusive consumer: it cannot be changed")
        if self.prefetch == "auto" and self.ack == "none":
            raise _wrong("prefetch", "prefetch cannot be 'auto' without acknowledgements: the broker has no limit then")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSettings(_Section):
    """Where a client's counters go.

    Attributes:
        sinks: The names of metrics sinks, which plugins bring; empty for none. Counting costs the same either way.
        sink_timeout: Seconds that a sink gets to start, and again to close, 0.001 to 86400.

    Example:
        >>> MonitoringSettings(sinks=["prometheus"]).sinks
        ('prometheus',)
    """

    _family = "MONITORING_"

    sinks: Sequence[str] = _option((), items=_Rule(kind=str, minimum=1, maximum=255))
    sink_timeout: float = _seconds(5.0)

    def _check_together(self) -> None:
        if len(set(self.sinks)) < len(self.sinks):
            raise _wrong("sinks", "sinks names one sink twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class GcSettings(_Options):
    """How a `GcPolicy` treats Python's garbage collector.

    Attributes:
        freeze: True collects once at the start and then leaves out of all collections what is alive (gc.freeze), which
            is mostly modules and what the program has set up.
        threshold: New objects, without those that are gone, at which Python collects by itself, 1000 to 10000000. A
            higher one means fewer, longer pauses and more garbage. Python's own is 700, and 2000 from 3.13 on.
        interval: Seconds between two looks at whether there is something to collect, 0.001 to 60.
        idle_turn: The event loop counts as idle when one turn of it takes at most this many seconds, 0.00001 to 1.
        max_delay: Seconds since the last collection after which a loop that is never idle collects all the same, 0.001
            to 86400.
        log_interval: Seconds between two lines in the log, 0.001 to 86400.

    Example:
        >>> GcSettings().replace(threshold=50_000).threshold
        50000
    """

    freeze: bool = _option(True)
    threshold: int = _option(10_000, minimum=1000, maximum=10_000_000)
    interval: float = _seconds(0.1, maximum=60)
    idle_turn: float = _seconds(0.001, minimum=0.00001, maximum=1)
    max_delay: float = _seconds(5.0)
    log_interval: float = _seconds(60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings(_Options):
    """Which installed plugins to use. Plugins are meant by the name of their entry point or of their distribution.

    Attributes:
        allow: Only these; None allows all, and an empty list none. What the core brings is always there.
        block: Not these. A blocked plugin is not imported.
        strict: True makes a plugin that fails to load an error; otherwise it is logged and left out.
        choose: Which plugin is meant where two bring the same: by name, content type or content encoding.

    Example:
        >>> PluginSettings.from_env({"LEVERET_PLUGINS": "msgpack,lz4"}).allow
        ('msgpack', 'lz4')
    """

    allow: Sequence[str] | None = _option(None, tuple, items=_Rule(kind=str, minimum=1, maximum=255))
    block: Sequence[str] = _option((), items=_Rule(kind=str, minimum=1, maximum=255))
    strict: bool = _option(False)
    choose: Mapping[str, str] = field(default_factory=dict, hash=False, metadata={"rule": _Rule(kind=Mapping)})

    def _check_together(self) -> None:
        texts: tuple[object, ...] = (*self.choose, *self.choose.values())
        if not all(isinstance(text, str) for text in texts):
            raise _wrong("choose", "choose must be a table of text to text")
        # The caller's own may change.
        object.__setattr__(self, "choose", MappingProxyType(dict(self.choose)))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "LEVERET_") -> Self:
        """Makes settings from `LEVERET_PLUGINS` (what to allow; `none` for nothing) and `LEVERET_PLUGINS_<OPTION>`.

        Args:
            environ: The variables; None means those of the process.
            prefix: What the names start with.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: One of these variables is unknown or wrong.
        """
        environ = os.environ if environ is None else environ
        rules = {name: rule for name, rule in _rules(cls).items() if name in ("block", "strict")}
        values = _read_environment(environ, f"{prefix}PLUGINS_", rules)
        allow = environ.get(f"{prefix}PLUGINS", "").strip()
        if allow:
            with _inside(f"{prefix}PLUGINS"):
                values["allow"] = _rules(cls)["allow"].read("allow", "" if allow == "none" else allow, text=True)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a settings file holds.

    Attributes:
        connection: The table `[leveret.connection]`.
        producer: The table `[leveret.producer]`.
        consumer: The table `[leveret.consumer]`.
        plugins: The table `[leveret.plugins]`.
        monitoring: The table `[leveret.monitoring]`.

    Example:
        >>> Settings().consumer.prefetch
        100
    """

    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    producer: ProducerSettings = field(default_factory=ProducerSettings)
    consumer: ConsumerSettings = field(default_factory=ConsumerSettings)
    plugins: PluginSettings = field(default_factory=PluginSettings)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)


def load(path: str | os.PathLike[str], section: str = "leveret") -> Settings:
    """Reads a TOML file.

    The tables are `[leveret.connection]` (a `url`, and options that win over it), `[leveret.connection.tls]`,
    `[leveret.producer]`, `[leveret.consumer]`, `[leveret.plugins]` and `[leveret.monitoring]`. What is absent keeps its
    default.

    Args:
        path: The file.
        section: The table that holds these tables, with dots for nested ones, such as "tool.leveret".

    Returns:
        The checked settings.

    Raises:
        ConfigurationError: The file cannot be read, is not TOML, has no such section, or has a wrong or unknown option.
    """
    import tomllib

    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            table: Any = tomllib.load(stream)
    except OSError as error:
        raise _wrong("path", f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise _wrong("path", f"{file}: is not TOML: {error}") from error
    with _inside(file):
        for part in section.split("."):
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise _wrong("section", f"there is no table [{section}]")
        with _inside(f"[{section}]"):
            _refuse_unknown(table, [item.name for item in fields(Settings)])
            connection = _read_table(table, "connection", ConnectionSettings._outside_rules())
            with _inside("[connection]"):
                made = ConnectionSettings._from_outside(connection)
            return Settings(
                connection=made,
                producer=ProducerSettings(**_read_table(table, "producer", _rules(ProducerSettings))),
                consumer=ConsumerSettings(**_read_table(table, "consumer", _rules(ConsumerSettings))),
                plugins=PluginSettings(**_read_table(table, "plugins", _rules(PluginSettings))),
                monitoring=MonitoringSettings(**_read_table(table, "monitoring", _rules(MonitoringSettings))),
            )


def _decode(option: str, text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise _wrong(option, f"{option} has a malformed percent escape")
    decoded = unquote_to_bytes(text).decode("utf-8", "surrogateescape")  # its own error would show the bytes
    if _NOT_TEXT.search(decoded):
        raise _wrong(option, f"{option} has a NUL or is not UTF-8 after percent-decoding")
    return decoded


def _parse_endpoints(texts: Iterable[str], default_port: int) -> tuple[Endpoint, ...]:
    """Reads `host`, `host:port` and `[IPv6]:port`. Errors show none: `user:password` without a host looks like one."""
    endpoints = []
    for number, text in enumerate(texts, 1):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%25[\w.-]+)?)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text)
        port = int(match[3] or default_port) if match else 0
        if match is None or not 1 <= port <= 65_535:
            text = "host, host:port or [IPv6]:port with a port of 1 to 65535"
            raise _wrong("endpoints", f"endpoints: number {number} is not {text}")
        endpoints.append(Endpoint(_decode("endpoints", match[1] or match[2]), port))
    return tuple(endpoints)


def _parse_query(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        name, equals, text = pair.partition("=")
        name = printable(_QUERY_ALIASES.get(name, name), 64)
        if not equals or name in options:
            raise _wrong(name, f"option {name!r} {'is given twice' if equals else 'has no value'}")
        options[name] = _decode(name, text)
    return options


def _parse_url(url: str) -> tuple[str, dict[str, Any], str, str]:
    """Takes a URL apart, by hand: `urlsplit` drops characters, and shows the password in some of its errors.

    Returns:
        The scheme, the options outside the query, the query, and the URL as errors may show it.
    """
    if not isinstance(url, str):
        raise _wrong("url", f"url is of type {type(url).__name__}; it must be text")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _PORTS:
        got = f", not {scheme}://" if separator and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]{0,15}", scheme) else ""
        raise _wrong("url", f"the URL must start with amqp://, amqps:// or amqp+unix://{got}")
    scheme = scheme.lower()
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    with _inside(f"{scheme}://..."):
        if re.search("[\0-\x20\x7f\ud800-\udfff]", url):
            raise _wrong("url", "the URL has a space, a control character or half a character")
        if "#" in rest:
            raise _wrong("url", "the URL has a fragment; in a password or option '#' is written %23")
        if rest.count("@") > 1 or ("@" in rest and "@" not in authority):
            escapes = "'@', '/' and '?' in a password or option are written %40, %2F and %3F"
            raise _wrong("url", f"the URL has an '@' that does not end the password; {escapes}")
        credentials, at, hosts = authority.rpartition("@")
        user, colon, password = credentials.partition(":")
        values: dict[str, Any] = {}
        if at:
            values["username"] = _decode("username", user)
        if colon:
            values["password"] = Secret(_decode("password", password))
        if scheme == "amqp+unix":
            if hosts:
                raise _wrong("url", "an amqp+unix URL has no host")
        elif not hosts:
            raise _wrong("endpoints", "the URL has no host")
        else:
            values["endpoints"] = _parse_endpoints(hosts.split(","), _PORTS[scheme])
    shown = f"{scheme}://{quote(values['username'], safe='') + ':***@' if at else ''}{printable(hosts)}/..."
    # A bare slash is no name: RabbitMQ's specification reads it as a virtual host with an empty name, which nobody has.
    if slash and path:
        with _inside(shown):
            if "/" in path:
                raise _wrong("virtual_host", "virtual_host has a '/'; it is written %2F")
            values["virtual_host"] = _decode("virtual_host", path)
    return scheme, values, query, shown
