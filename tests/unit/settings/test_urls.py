"""A URL sets the options of a connection, and a wrong one is refused without showing a password."""

from __future__ import annotations

import traceback
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret.errors import ConfigurationError
from leveret.settings import ConnectionSettings, Endpoint, Secret, TLSSettings


def test_url_sets_everything_when_it_has_everything() -> None:
    settings = ConnectionSettings.from_url(
        "amqp://app:s3cret@a:5673,b,[::1]:5674/shop?heartbeat=20&client_name=billing"
    )
    assert settings.endpoints == (Endpoint("a", 5673), Endpoint("b", 5672), Endpoint("::1", 5674))
    assert (settings.username, settings.password.reveal(), settings.virtual_host) == ("app", "s3cret", "shop")
    assert (settings.heartbeat, settings.client_name, settings.tls) == (20.0, "billing", None)


@pytest.mark.parametrize(  # RabbitMQ's URI specification, appendix A
    ("url", "username", "password", "host", "port", "virtual_host"),
    [
        ("amqp://user:pass@host:10000/vhost", "user", "pass", "host", 10_000, "vhost"),
        ("amqp://user%61:%61pass@ho%61st:10000/v%2fhost", "usera", "apass", "hoast", 10_000, "v/host"),
        ("amqp://:@host/", "", "", "host", 5672, "/"),
        ("amqp://user@host", "user", "guest", "host", 5672, "/"),
        ("amqp://user:p:s@host", "user", "p:s", "host", 5672, "/"),
        ("amqp://host", "guest", "guest", "host", 5672, "/"),
        ("amqp://host/", "guest", "guest", "host", 5672, "/"),
        ("amqp://host/%2f", "guest", "guest", "host", 5672, "/"),
        ("amqp://[::1]", "guest", "guest", "::1", 5672, "/"),
        ("amqp://[fe80::1%25eth0]:5673", "guest", "guest", "fe80::1%eth0", 5673, "/"),
        ("AMQPS://host/vhost", "guest", "guest", "host", 5671, "vhost"),
    ],
)
def test_url_means_what_rabbitmq_specifies_when_parts_are_absent_or_escaped(
    url: str, username: str, password: str, host: str, port: int, virtual_host: str
) -> None:
    settings = ConnectionSettings.from_url(url)
    assert (settings.username, settings.password) == (username, Secret(password))
    assert settings.endpoints == (Endpoint(host, port),)
    assert settings.virtual_host == virtual_host


def test_url_turns_tls_on_when_it_is_amqps(files: dict[str, Any]) -> None:
    assert ConnectionSettings.from_url("amqps://host").tls == TLSSettings()
    query = "&".join(f"{name}={quote(path, safe='')}" for name, path in files.items())
    settings = ConnectionSettings.from_url(f"amqps://a,b:5000?{query}&server_hostname=rabbit.example")
    assert settings.tls == TLSSettings(**files, server_hostname="rabbit.example")
    assert settings.endpoints == (Endpoint("a", 5671), Endpoint("b", 5000))


def test_url_reaches_a_unix_socket_when_it_is_amqp_unix() -> None:
    settings = ConnectionSettings.from_url("amqp+unix://app:pw@/shop?unix_socket=/run/rabbit.sock&heartbeat=0")
    assert (settings.unix_socket, settings.virtual_host, settings.username) == ("/run/rabbit.sock", "shop", "app")
    assert settings.redacted_url == "amqp+unix://app:***@/shop?unix_socket=/run/rabbit.sock"


def test_overrides_win_when_the_url_says_otherwise() -> None:
    settings = ConnectionSettings.from_url("amqp://app:old@host?heartbeat=20", heartbeat=5, password="new")
    assert (settings.heartbeat, settings.password) == (5.0, Secret("new"))
    tls = TLSSettings(insecure_skip_verification=True)
    assert ConnectionSettings.from_url("amqps://host", tls=tls).tls == tls


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("on", True), ("1", True), ("no", False), ("0", False)]
)
def test_boolean_is_read_when_it_is_text(text: str, value: bool) -> None:
    assert ConnectionSettings.from_url(f"amqp://host?tcp_nodelay={text}").tcp_nodelay is value


def refusal_of_url(url: Any, **overrides: object) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        ConnectionSettings.from_url(url, **overrides)
    return caught.value


@pytest.mark.parametrize(
    ("url", "option", "text"),
    [
        ("http://host", "url", "not http://"),
        ("localhost:5672", "url", "must start with amqp://"),
        (b"amqp://host", "url", "of type bytes"),
        ("amqp://", "endpoints", "no host"),
        ("amqp://user:pw@/vhost", "endpoints", "no host"),
        ("amqp://a,,b", "endpoints", "number 2 is not"),
        ("amqp://host:", "endpoints", "number 1 is not"),
        ("amqp://host:0", "endpoints", "number 1 is not"),
        ("amqp://host:65536", "endpoints", "number 1 is not"),
        ("amqp://host:amqp", "endpoints", "number 1 is not"),
        ("amqp://a,::1", "endpoints", "number 2 is not"),
        ("amqp://[::1", "endpoints", "number 1 is not"),
        ("amqp://ho%2Fst", "host", "no host name"),
        ("amqp://host/a/b", "virtual_host", "%2F"),
        ("amqp://host#top", "url", "fragment"),
        ("amqp://host /", "url", "space"),
        ("amqp://host/\n", "url", "control character"),
        ("amqp://u%zz@host", "username", "malformed percent escape"),
        ("amqp://u:%f@host", "password", "malformed percent escape"),
        ("amqp://u:%ff@host", "password", "not UTF-8"),
        ("amqp://u:%00@host", "password", "NUL"),
        ("amqp://host/%", "virtual_host", "malformed percent escape"),
        ("amqp://host/" + 256 * "v", "virtual_host", "has 256 bytes"),
        ("amqp://host?heartbeat", "heartbeat", "has no value"),
        ("amqp://host?heartbeat=1&heartbeat=2", "heartbeat", "given twice"),
        ("amqp://host?client_name=a&client_name=b", "client_name", "given twice"),
        ("amqp://host?heartbeat=soon", "heartbeat", "heartbeat is 'soon'; it must be a number"),
        ("amqp://host?heartbeat=nan", "heartbeat", "must be a number"),
        ("amqp://host?heartbeat=1e1", "heartbeat", "must be a number"),
        ("amqp://host?heartbeat=", "heartbeat", "must be a number"),
        ("amqp://host?heartbeat=70000", "heartbeat", "heartbeat is 70000 s"),
        ("amqp://host?heartbeat=%f", "heartbeat", "malformed percent escape"),
        ("amqp://host?channel_max=1_0", "channel_max", "must be a whole number"),
        ("amqp://host?channel_max=" + 5000 * "9", "channel_max", "must be a whole number"),
        ("amqp://host?tcp_nodelay=maybe", "tcp_nodelay", "must be true or false"),
        ("amqp://host?hartbeat=1", "hartbeat", "did you mean 'heartbeat'?"),
        ("amqp://host?password=x", "password", "'password' is no option behind the '?' of a URL"),
        ("amqp://host?vhost=x", "vhost", "'vhost' is no option behind the '?' of a URL (virtual_host)"),
        ("amqp://host?unix_socket=/x", "unix_socket", "amqp+unix:// needs ?unix_socket=/path, which no other URL has"),
        ("amqp://host?verify=verify_none", "verify", "unknown option"),
        ("amqp://host?cafile=ca.pem", "cafile", "cafile needs amqps://"),
        ("amqp://host?keyfile_password=x", "keyfile_password", "unknown option"),
        ("amqps://host?cafile=gone.pem", "cafile", "there is no file 'gone.pem'"),
        ("amqp+unix:///vhost", "unix_socket", "needs ?unix_socket="),
        ("amqp+unix://host/?unix_socket=/x", "url", "has no host"),
        ("amqp+unix:///?socket=/x", "socket", "did you mean 'unix_socket'?"),
        ("amqp://host?name=a", "name", "did you mean 'client_name'?"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_error_names_what_is_wrong_when_a_url_is_refused(url: Any, option: str, text: str) -> None:
    error = refusal_of_url(url)
    assert text in str(error)
    assert error.option == option


@pytest.mark.parametrize(
    ("url", "overrides", "option"),
    [
        ("amqp://host", {"hartbeat": 1}, "hartbeat"),
        ("amqp://host", {"heartbeat": "20"}, "heartbeat"),
        ("amqp://host", {"tls": TLSSettings()}, "tls"),
        ("amqps://host", {"tls": None}, "tls"),
    ],
    ids=["unknown", "of another type", "tls for amqp", "no tls for amqps"],
)
def test_override_is_refused_when_it_is_wrong_or_changes_what_the_scheme_says(
    url: str, overrides: dict[str, object], option: str
) -> None:
    assert refusal_of_url(url, **overrides).option == option


def render(settings: ConnectionSettings) -> str:
    """Writes settings as a URL with the password, which the library itself never does."""
    hosts = ",".join(str(endpoint) for endpoint in settings.endpoints)
    user, password, virtual_host = (
        quote(text, safe="") for text in (settings.username, settings.password.reveal(), settings.virtual_host)
    )
    scheme = "amqp" if settings.tls is None else "amqps"
    name = quote(settings.client_name, safe="")
    return f"{scheme}://{user}:{password}@{hosts}/{virtual_host}?client_name={name}&heartbeat={settings.heartbeat:g}"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


HOSTS = st.sampled_from(["localhost", "rabbit-1.example", "10.0.0.1", "::1", "fe80::1:2"])


CONNECTIONS = st.builds(
    ConnectionSettings,
    endpoints=st.lists(st.builds(Endpoint, HOSTS, st.integers(1, 65_535)), min_size=1, max_size=3).map(tuple),
    username=TEXT,
    password=TEXT.map(Secret),
    virtual_host=TEXT.filter(lambda text: 1 <= len(text.encode()) <= 255),
    client_name=TEXT.filter(lambda text: 1 <= len(text.encode()) <= 200),
    heartbeat=st.integers(0, 65_535),
    tls=st.sampled_from([None, TLSSettings()]),
)


@given(CONNECTIONS)
def test_settings_are_the_same_when_written_as_a_url_and_read_again(settings: ConnectionSettings) -> None:
    assert ConnectionSettings.from_url(render(settings)) == settings


@given(CONNECTIONS)
def test_redacted_url_has_all_but_password_and_options_when_read_again(settings: ConnectionSettings) -> None:
    read = ConnectionSettings.from_url(settings.redacted_url)
    assert read.password == Secret("***")
    assert read.replace(password="", client_name="x", heartbeat=0) == settings.replace(
        password="", client_name="x", heartbeat=0
    )


SENTINEL = "5entine1"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:{}@host",
        "user:{}@host",
        "://user:{}@host",
        "user:{}://host",
        "amqp://user:{}@",
        "amqp://user:{}",  # without a host, the password looks like a port
        "amqp://user:{}/vhost",
        "amqp://user:1,{}:x",
        "amqp://user:{}@host:port",
        "amqp://user:{}@host:70000",
        "amqp://user:{}@[::1",
        "amqp://user:{}@a,,b",
        "amqp://user:{}@host/a/b",
        "amqp://user:{}@host#fragment",
        "amqp://user:{}%zz@host",
        "amqp://user:{}%ff@host",
        "amqp://user:{}%00@host",
        "amqp://user:{} @host",
        "amqp://user:{}\n@host",
        "amqp://user:{}\ud800@host",
        "amqp://user:{}\u2100@host:x",  # urlsplit shows the whole authority for such characters
        "amqp://user:a@{}@host",
        "amqp://user:a/{}@host",
        "amqp://user:{}/b@host",
        "amqp://user:1/{}@host",
        "amqp://user:1?{}@host",
        "amqp://user:1?{}=1@host",
        "amqp://user:a#{}@host",
        "amqp://user:[{}]@host:x",
        "amqp://user:{}@host?heartbeat=soon",
        "amqp://user:{}@host?hartbeat=1",
        "amqp://user:{}@host?heartbeat=1&heartbeat=2",
        "amqp://user:{}@host?cafile=ca.pem",
        "amqp://host?password={}",
        "amqps://host?keyfile_password={}",
        "amqp+unix://user:{}@/vhost",
        "amqp+unix://user:{}@host/?unix_socket=/x",
    ],
)
def test_password_is_in_no_error_when_a_url_is_refused(url: str) -> None:
    error = refusal_of_url(url.format(SENTINEL))
    assert SENTINEL not in f"{error} {error!r} {error.option} {''.join(traceback.format_exception(error))}"


@given(st.text(), st.text(), st.text())
def test_password_is_in_no_error_when_it_is_not_escaped(before: str, after: str, rest: str) -> None:
    shown = ""
    try:
        ConnectionSettings.from_url(f"amqp://user:{before}{SENTINEL}{after}@host{rest}")
    except ConfigurationError as error:
        shown = f"{error!r} {error.option} {''.join(traceback.format_exception(error))}"
    assert SENTINEL not in shown


def test_url_is_shown_without_the_password_when_an_option_is_refused() -> None:
    text = str(refusal_of_url(f"amqp://app:{SENTINEL}@a,b:5673/shop?hartbeat=20"))
    assert text == "amqp://app:***@a,b:5673/...: unknown option 'hartbeat'; did you mean 'heartbeat'?"
