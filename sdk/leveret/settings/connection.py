"""The options of connections and of TLS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from leveret.records import dataclass
from leveret.settings.addresses import PORTS, Endpoint, parse_endpoints, parse_query, parse_url, quoted
from leveret.settings.environment import read_environment
from leveret.settings.names import refuse_unknown, suggestion
from leveret.settings.rules import (
    MIB,
    Options,
    Rule,
    Secret,
    inside,
    option,
    read_table,
    read_values,
    rules_of,
    seconds,
    shown_number,
    size,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Login = tuple[str, str | Secret]
    CredentialProvider = Callable[[], Login | Awaitable[Login]]

C = TypeVar("C", bound="ConnectionSettings")

#: In a URL these have their own places, not in the query.
_NOT_IN_QUERY: Final = ("endpoints", "username", "password", "virtual_host", "tls")
_PLACES: Final = "a URL is amqp://username:password@endpoints/virtual_host?option=value, and amqps:// with TLS"
_TLS_IN_QUERY: Final = ("cafile", "certfile", "keyfile", "server_hostname", "insecure_skip_verification")
#: Variables that belong to others; those that end in "_" are families.
_OTHER_VARIABLES: Final = (
    *("PLUGINS", "BUILD", "ANNOTATE", "PROCESS"),
    *("PLUGINS_", "PRODUCER_", "CONSUMER_", "MONITORING_", "TLS_"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings(Options):
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
        insecure_skip_verification: True accepts any certificate, so an attacker in between can read the password. Only
            code can set it: URLs, environment variables and TOML files cannot.

    Example:
        >>> TLSSettings(minimum_version="TLSv1.3").insecure_skip_verification
        False
    """

    cafile: str | None = option(None, str)
    capath: str | None = option(None, str)
    cadata: str | None = option(None, str, minimum=1)
    certfile: str | None = option(None, str)
    keyfile: str | None = option(None, str)
    keyfile_password: Secret | None = option(None, Secret)
    server_hostname: str | None = option(None, str, minimum=1, maximum=255)
    minimum_version: Literal["TLSv1.2", "TLSv1.3"] = option("TLSv1.2", choices=("TLSv1.2", "TLSv1.3"))
    insecure_skip_verification: bool = option(False, code_only=True)

    def _check_together(self) -> None:
        for name in ("keyfile", "keyfile_password"):
            if getattr(self, name) is not None and self.certfile is None:
                raise wrong(name, f"{name} is of no use without certfile")
        for name in ("cafile", "certfile", "keyfile"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise wrong(name, f"{name}: there is no file {path!r}")
        if self.capath is not None and not os.path.isdir(self.capath):
            raise wrong("capath", f"capath: there is no directory {self.capath!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings(Options):
    """How to reach a broker, and what to agree on with it.

    Timeouts are 0.001 to 86400 s. `frame_max`, `channel_max` and `heartbeat` are asked for; the broker may lower them.

    Attributes:
        endpoints: Brokers, tried in random order, the one that was reached last first; by default localhost at 5672,
            with `tls` at 5671.
        unix_socket: Path of a unix socket to connect to instead of `endpoints`, 1 to 107 bytes.
        username: For PLAIN.
        password: For PLAIN; a `str` is made a `Secret`.
        credentials: A function without arguments that returns `(username, password)`, asked at each connect instead of
            the two options above; None for none. It may be async; a plain one runs in a thread. It has
            `connect_timeout` seconds to answer. Only code can set it.
        virtual_host: 1 to 255 bytes.
        mechanism: "PLAIN", or "EXTERNAL" (the client certificate says who it is).
        tls: None means plain TCP.
        client_name: Shown in the broker's management tools, 1 to 200 bytes.
        wait: Seconds that `connect` waits for a broker that is not there, or that refuses the login or the virtual
            host, 0 to 86400; None or 0 tries once.
        connect_timeout: Seconds until a broker is reached, with TCP and TLS. Meanwhile a further address is tried every
            0.25 s, and at once when one fails.
        handshake_timeout: Seconds from the protocol header to connection.open-ok.
        operation_timeout: Seconds for a call such as queue.declare.
        close_timeout: Seconds that closing a client, a dedicated connection or a connection takes at most, with all
            that was made on it.
        auto_recovery: True dials again for what waits for a connection that was lost; False ends it with the error.
        recovery_initial_delay: Upper bound in seconds of the delay before the first attempt. The bound doubles with
            each failed attempt; the delay is a random part of it, so that clients of a restarted broker are spread out.
        recovery_max_delay: The largest bound in seconds; at least `recovery_initial_delay`. After a refusal, such as
            a wrong password, the delay is between half of this and this.
        recovery_backoff: The name of a plugin's backoff policy, which chooses the delays instead of the two options
            above; None for none.
        heartbeat: Whole seconds, 0 to 65535; 0 turns heartbeats off.
        frame_max: Bytes, 4096 to 1048576. RabbitMQ allows 131072 unless it is configured otherwise.
        channel_max: 1 to 65535 channels.
        publish_connections: How many connections a client publishes on, 1 to 64; producers get them in turn. A
            dedicated connection is one of its own in any case.
        max_pooled_channels: How many channels of a connection's pool may be open, 1 to 65535; no more than
            `channel_max` ever are. As many others that closed producers left may lie idle.
        socket_receive_buffer_size: Bytes, 4096 to 64 MiB; 0 leaves it to the kernel, which adapts it to the link.
        socket_send_buffer_size: Likewise.
        tcp_nodelay: True sends small writes at once.
        tcp_keepalive: True lets the kernel probe idle connections.
        tcp_keepalive_time: Whole seconds of silence before the first probe, 1 to 32767.
        tcp_keepalive_interval: Whole seconds between probes, 1 to 32767.
        write_high_watermark: Unwritten bytes above which publishing waits, 1 to 2**40.
        write_low_watermark: Unwritten bytes at which it goes on; less than `write_high_watermark`.
        max_body_size: The largest body taken from the broker, 1 to 2**40 bytes. Incomplete messages of all channels
            together may have as much and one frame, and deliveries beyond the prefetch as much; more ends the
            connection (reply code 506).
        max_table_depth: How deep the broker may nest tables and arrays, 1 to 128.
        max_table_entries: How many entries its tables may have, 1 to 2**20.

    Example:
        >>> settings = ConnectionSettings.from_url("amqp://app:rabbit@a,b:5673/shop?heartbeat=20", connect_timeout=5)
        >>> settings.redacted_url, settings.heartbeat, settings.password
        ('amqp://app:***@a:5672,b:5673/shop', 20.0, ***)
    """

    endpoints: tuple[Endpoint, ...] = option((), items=Rule(kind=Endpoint))
    unix_socket: str | None = option(None, str, minimum=1, maximum=107)  # sun_path, unix(7)
    username: str = option("guest")
    password: Secret = option(Secret("guest"))
    credentials: CredentialProvider | None = option(None, object, shown=False, code_only=True)
    virtual_host: str = option("/", minimum=1, maximum=255)
    mechanism: Literal["PLAIN", "EXTERNAL"] = option("PLAIN", choices=("PLAIN", "EXTERNAL"))
    tls: TLSSettings | None = option(None, TLSSettings)
    client_name: str = option("leveret", minimum=1, maximum=200)
    wait: float | None = option(None, float, unit="s", minimum=0, maximum=86_400)
    connect_timeout: float = seconds(30.0)
    handshake_timeout: float = seconds(10.0)
    operation_timeout: float = seconds(10.0)
    close_timeout: float = seconds(5.0)
    auto_recovery: bool = option(True)
    recovery_initial_delay: float = seconds(0.1)
    recovery_max_delay: float = seconds(30.0)
    recovery_backoff: str | None = option(None, str, minimum=1, maximum=255)
    heartbeat: float = seconds(30.0, 0, 65_535, whole=True)
    frame_max: int = size(131_072, 4096, MIB)
    channel_max: int = option(2047, minimum=1, maximum=65_535)
    publish_connections: int = option(1, minimum=1, maximum=64)
    max_pooled_channels: int = option(16, minimum=1, maximum=65_535)
    # A size of our own would keep the kernel from adapting it to the link (man 7 tcp, tcp_moderate_rcvbuf).
    socket_receive_buffer_size: int = size(0, 4096, 64 * MIB, or_zero=True)
    socket_send_buffer_size: int = size(0, 4096, 64 * MIB, or_zero=True)
    tcp_nodelay: bool = option(True)
    tcp_keepalive: bool = option(True)
    # Linux refuses more than these: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, include/net/tcp.h
    tcp_keepalive_time: float = seconds(60.0, 1, 32_767, whole=True)
    tcp_keepalive_interval: float = seconds(10.0, 1, 32_767, whole=True)
    write_high_watermark: int = size(MIB)
    write_low_watermark: int = size(256 * 1024, 0)
    max_body_size: int = size(64 * MIB)
    max_table_depth: int = option(32, minimum=1, maximum=128)
    max_table_entries: int = option(16_384, minimum=1, maximum=2**20)

    def _check_together(self) -> None:
        if not self.endpoints:
            default = Endpoint("localhost", PORTS["amqps" if self.tls else "amqp"])
            object.__setattr__(self, "endpoints", (default,))
        if self.write_low_watermark >= self.write_high_watermark:
            text = f"write_low_watermark is {self.write_low_watermark} bytes; it must be less than write_high_watermark"
            raise wrong("write_low_watermark", f"{text}, {self.write_high_watermark}")
        if self.recovery_max_delay < self.recovery_initial_delay:
            text = f"recovery_max_delay is {shown_number(self.recovery_max_delay)} s; it must not be less than"
            initial = shown_number(self.recovery_initial_delay)
            raise wrong("recovery_max_delay", f"{text} recovery_initial_delay, {initial} s")
        provider: object = self.credentials
        if provider is not None:
            if not callable(provider):
                text = f"credentials is of type {type(provider).__name__}; it must be a function that returns"
                raise wrong("credentials", f"{text} (username, password)")
            if self.mechanism == "EXTERNAL":
                raise wrong("credentials", "credentials is of no use with the mechanism EXTERNAL")
        if self.tls is not None and self.unix_socket is not None:
            raise wrong("tls", "tls is not used on a unix socket")

    @property
    def redacted_url(self) -> str:
        """The URL of these settings without options and without the password, for logs."""
        user = ""
        if self.mechanism == "PLAIN" and self.credentials is None:
            user = f"{quoted(self.username)}:***@"
        path = quoted(self.virtual_host)
        if self.unix_socket is not None:
            return f"amqp+unix://{user}/{path}?unix_socket={quoted(self.unix_socket, '/')}"
        hosts = ",".join(str(endpoint).replace("%", "%25") for endpoint in self.endpoints)
        return f"{'amqps' if self.tls else 'amqp'}://{user}{hosts}/{path}"

    @classmethod
    def from_url(cls, url: str, **overrides: object) -> Self:
        """Makes settings from a URL, by RabbitMQ's URI specification and with more than one host.

        `amqp://user:password@host:port,host:port/virtual_host?option=value&option=value`; `amqps://` means TLS, and
        `amqp+unix://user:password@/virtual_host?unix_socket=/path` a unix socket. Absent parts keep their defaults, and
        `amqp://host/` is `amqp://host`, where RabbitMQ's specification sees a virtual host with an empty name.
        Options are named as here; with `amqps` also `cafile`, `certfile`, `keyfile` and `server_hostname` of
        `TLSSettings`. Every part is percent-decoded; `@`, `/`, `?` and `#` in a value are written `%40`, `%2F`, `%3F`
        and `%23`.

        Args:
            url: The URL.
            **overrides: Options by name, which win over the URL's. `tls` needs an `amqps` URL.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: The URL is malformed or an option is wrong. The text never has the password.
        """
        scheme, values, query, shown = parse_url(url)
        rules = {name: rule for name, rule in rules_of(cls).items() if name not in _NOT_IN_QUERY}
        rules.update((name, rules_of(TLSSettings)[name]) for name in _TLS_IN_QUERY)
        with inside(shown):
            refuse_unknown(overrides, rules_of(cls))
            options = parse_query(query)
            for name in options.keys() - rules.keys() - rules_of(TLSSettings).keys():
                if (meant := suggestion(name, rules_of(cls))) in _NOT_IN_QUERY:
                    raise wrong(name, f"{name!r} is no option behind the '?' of a URL ({meant}); {_PLACES}")
            values |= read_values(options, rules, text=True)
            tls = {name: values.pop(name) for name in _TLS_IN_QUERY if name in values}
            if scheme == "amqps" and "tls" not in overrides:
                values["tls"] = TLSSettings(**tls)
            elif tls and scheme != "amqps":
                raise wrong(min(tls), f"{min(tls)} needs amqps://")
            elif "tls" in overrides and (overrides["tls"] is None) == (scheme == "amqps"):
                raise wrong("tls", "tls needs amqps://, and amqps:// needs tls")
            if (scheme == "amqp+unix") != ("unix_socket" in values):
                raise wrong("unix_socket", "amqp+unix:// needs ?unix_socket=/path, which no other URL has")
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
        rules = {name: rule for name, rule in outside_rules().items() if name != "tls"}
        values = read_environment(environ, prefix, rules, _OTHER_VARIABLES)
        tls = read_environment(environ, f"{prefix}TLS_", rules_of(TLSSettings))
        with inside("environment"):
            return from_outside(cls, {**values, "tls": tls} if tls else values)


def outside_rules() -> dict[str, Rule]:
    """The rules of connection options in the environment and in files: `endpoints` is text and `tls` a table."""
    endpoints = Rule(kind=tuple, items=Rule(kind=str))
    return {**rules_of(ConnectionSettings), "url": Rule(kind=str), "endpoints": endpoints, "tls": Rule(kind=dict)}


def from_outside(kind: type[C], values: dict[str, Any]) -> C:
    """Makes connection settings from values that `outside_rules` has checked; options win over the `url`."""
    base = kind.from_url(values.pop("url")) if "url" in values else None
    tls = base.tls if base else None
    if "tls" in values:
        if base and not tls:
            raise wrong("tls", "TLS options need an amqps:// URL")
        tls = (tls or TLSSettings()).replace(**read_table(values, "tls", rules_of(TLSSettings)))
        values["tls"] = tls
    if "endpoints" in values:
        values["endpoints"] = parse_endpoints(values["endpoints"], PORTS["amqps" if tls else "amqp"])
    return base.replace(**values) if base else kind(**values)
