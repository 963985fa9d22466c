"""Settings come from environment variables and TOML files, under the names that they have in code."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

from leveret.errors import ConfigurationError
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    Endpoint,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Secret,
    Settings,
    TLSSettings,
    load,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_environment_sets_options_when_variables_have_the_prefix() -> None:
    environ = {
        "LEVERET_URL": "amqps://app@a/shop?heartbeat=20",
        "LEVERET_PASSWORD": "rabbit",
        "LEVERET_HEARTBEAT": "5",
        "LEVERET_TCP_NODELAY": "off",
        "LEVERET_ENDPOINTS": "b, [::1]:5000",
        "LEVERET_TLS_SERVER_HOSTNAME": "rabbit.example",
        "HOME": "/home/app",
    }
    settings = ConnectionSettings.from_env(environ)
    assert (settings.username, settings.password, settings.virtual_host) == ("app", Secret("rabbit"), "shop")
    assert (settings.heartbeat, settings.tcp_nodelay) == (5.0, False)
    assert settings.endpoints == (Endpoint("b", 5671), Endpoint("::1", 5000))
    assert settings.tls == TLSSettings(server_hostname="rabbit.example")


def test_environment_is_the_process_s_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTED_HEARTBEAT", "7")
    assert ConnectionSettings.from_env(prefix="TESTED_").heartbeat == 7.0


def test_environment_sets_producers_and_consumers_when_variables_are_in_their_families() -> None:
    environ = {
        "LEVERET_PRODUCER_DELIVERY_MODE": "transient",
        "LEVERET_PRODUCER_CONFIRM_TIMEOUT": "2.5",
        "LEVERET_CONSUMER_ACCEPT": "application/json, text/plain",
        "LEVERET_CONSUMER_PRIORITY": "-3",
        "LEVERET_HEARTBEAT": "7",
    }
    assert ProducerSettings.from_env(environ) == ProducerSettings(delivery_mode=1, confirm_timeout=2.5)
    assert ConsumerSettings.from_env(environ) == ConsumerSettings(
        accept=("application/json", "text/plain"), priority=-3
    )
    assert ConnectionSettings.from_env(environ).heartbeat == 7.0


def test_plugins_come_from_the_environment_when_variables_are_set() -> None:
    environ = {"LEVERET_PLUGINS_ALLOW": "msgpack, lz4", "LEVERET_PLUGINS_BLOCK": "lz4", "LEVERET_PLUGINS_STRICT": "yes"}
    assert PluginSettings.from_env(environ) == PluginSettings(allow=("msgpack", "lz4"), block=("lz4",), strict=True)
    assert PluginSettings.from_env({"LEVERET_PLUGINS_ALLOW": "none"}) == PluginSettings(allow=())
    assert PluginSettings.from_env({"LEVERET_PLUGINS_ALLOW": ""}) == PluginSettings(allow=None)
    assert MonitoringSettings.from_env({"LEVERET_MONITORING_SINKS": "prometheus"}).sinks == ("prometheus",)


@pytest.mark.parametrize(
    "name", ["PLUGINS", "PLUGINS_X", "BUILD", "ANNOTATE", "PRODUCER_X", "CONSUMER_X", "MONITORING_X"]
)
def test_variable_is_left_alone_when_it_belongs_to_others(name: str) -> None:
    assert ConnectionSettings.from_env({f"LEVERET_{name}": "x"}) == ConnectionSettings()


@pytest.mark.parametrize(
    ("kind", "variable", "value", "option", "text"),
    [
        (
            ConnectionSettings,
            "LEVERET_HARTBEAT",
            "1",
            "LEVERET_HARTBEAT",
            "unknown option 'LEVERET_HARTBEAT'; did you mean 'LEVERET_HEARTBEAT'?",
        ),
        (PluginSettings, "LEVERET_PLUGINS_X", "1", "LEVERET_PLUGINS_X", "unknown option"),
        (PluginSettings, "LEVERET_PLUGINS_CHOOSE", "1", "LEVERET_PLUGINS_CHOOSE", "unknown option"),
        (PluginSettings, "LEVERET_PLUGINS_STRICT", "maybe", "strict", "LEVERET_PLUGINS_STRICT: strict is 'maybe'"),
        (PluginSettings, "LEVERET_PLUGINS_ALLOW", "a,,b", "allow", "LEVERET_PLUGINS_ALLOW: item 2: allow has 0 bytes"),
        (MonitoringSettings, "LEVERET_MONITORING_X", "1", "LEVERET_MONITORING_X", "unknown option"),
        (ConnectionSettings, "LEVERET_TLS", "1", "LEVERET_TLS", "unknown option"),
        (ConnectionSettings, "LEVERET_TLS_X", "1", "LEVERET_TLS_X", "unknown option"),
        (ConnectionSettings, "LEVERET_HEARTBEAT", "x", "heartbeat", "LEVERET_HEARTBEAT: heartbeat is 'x'"),
        (ConnectionSettings, "LEVERET_ENDPOINTS", "a:b", "endpoints", "number 1 is not"),
        (ConnectionSettings, "LEVERET_URL", "http://x", "url", "environment: the URL must start with"),
        (ConnectionSettings, "LEVERET_TLS_CAFILE", "gone", "cafile", "there is no file 'gone'"),
        (ProducerSettings, "LEVERET_PRODUCER_X", "1", "LEVERET_PRODUCER_X", "unknown option"),
        (ConsumerSettings, "LEVERET_CONSUMER_PREFETCH", "0", "prefetch", "LEVERET_CONSUMER_PREFETCH: prefetch is 0"),
    ],
)
def test_error_names_the_variable_when_it_is_refused(
    kind: Any, variable: str, value: str, option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind.from_env({variable: value})
    assert text in str(caught.value)
    assert caught.value.option == option


def test_tls_variables_are_refused_when_the_url_is_plain() -> None:
    with pytest.raises(ConfigurationError, match="need an amqps:// URL"):
        ConnectionSettings.from_env({"LEVERET_URL": "amqp://host", "LEVERET_TLS_MINIMUM_VERSION": "TLSv1.3"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.toml"


def test_file_sets_all_three_when_it_has_their_tables(file: Path) -> None:
    file.write_text(
        """
        [leveret.connection]
        url = "amqps://app@a/shop?heartbeat=20"
        password = "rabbit"
        endpoints = ["b", "c:5000"]
        connect_timeout = 5
        [leveret.connection.tls]
        minimum_version = "TLSv1.3"
        [leveret.producer]
        exchange = "orders"
        delivery_mode = "transient"
        [leveret.consumer]
        prefetch = 500
        accept = ["application/json"]
        """
    )
    settings = load(file)
    connection = settings.connection
    assert (connection.username, connection.password, connection.virtual_host) == ("app", Secret("rabbit"), "shop")
    assert connection.endpoints == (Endpoint("b", 5671), Endpoint("c", 5000))
    assert (connection.heartbeat, connection.connect_timeout) == (20.0, 5.0)
    assert connection.tls == TLSSettings(minimum_version="TLSv1.3")
    assert settings.producer == ProducerSettings(exchange="orders", delivery_mode=1)
    assert settings.consumer == ConsumerSettings(prefetch=500, accept=("application/json",))


def test_file_keeps_defaults_when_it_says_nothing(file: Path) -> None:
    file.write_text("[tool.leveret]\n")
    assert load(str(file), "tool.leveret") == Settings()


def test_file_turns_tls_on_when_it_has_an_empty_tls_table(file: Path) -> None:
    file.write_text("[leveret.connection.tls]\n")
    assert load(file).connection == ConnectionSettings(tls=TLSSettings())


@pytest.mark.parametrize(
    ("content", "option", "text"),
    [
        ("", "section", "there is no table [leveret]"),
        ("leveret = 1", "section", "there is no table [leveret]"),
        ("[leveret.conection]", "conection", "[leveret]: unknown option 'conection'; did you mean 'connection'?"),
        ("[leveret]\nproducer = 1", "producer", "[leveret]: producer must be a table"),
        ("[leveret.connection]\nhartbeat = 1", "hartbeat", "[leveret.connection]: unknown option 'hartbeat'"),
        ("[leveret.connection]\nheartbeat = '1'", "heartbeat", "[leveret.connection]: heartbeat is of type str"),
        ("[leveret.connection]\nheartbeat = nan", "heartbeat", "heartbeat is nan s"),
        ("[leveret.connection]\nurl = 'http://x'", "url", "[leveret.connection]: the URL must start with"),
        ("[leveret.connection]\nendpoints = 'a'", "endpoints", "must be a list of text"),
        ("[leveret.connection]\nendpoints = [1]", "endpoints", "item 1: endpoints is of type int"),
        ("[leveret.connection]\ntls = true", "tls", "tls"),
        ("[leveret.connection.tls]\nca = 'x'", "ca", "[leveret.connection.tls]: unknown option 'ca'"),
        ("[leveret.producer]\nconfirms = 1", "confirms", "[leveret.producer]: confirms is of type int"),
        ("[leveret.consumer]\nprefetch = 0", "prefetch", "[leveret.consumer]: prefetch is 0"),
        ("[leveret.consumer]\nprefetch = 1900-01-01", "prefetch", "prefetch is of type date"),
    ],
)
def test_error_names_file_table_and_option_when_a_file_is_refused(
    file: Path, content: str, option: str, text: str
) -> None:
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert text in str(caught.value)
    assert caught.value.option == option


@pytest.mark.parametrize("content", [b"[leveret", b"\xff", b"[a]\n[a]\n", b"a = " + 5000 * b"9"])
def test_error_is_chained_when_a_file_is_not_toml(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is not TOML") as caught:
        load(file)
    assert isinstance(caught.value.__cause__, ValueError)


def test_error_names_the_file_when_it_cannot_be_read(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"app\.toml: cannot be read: No such file") as caught:
        load(file)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


SENTINEL = "5entine1"


def test_password_is_in_no_error_when_a_file_is_refused(file: Path) -> None:
    for line in (f'password = "{SENTINEL}', f'password = ["{SENTINEL}"]', f'pasword = "{SENTINEL}"'):
        file.write_text(f"[leveret.connection]\n{line}\n")
        with pytest.raises(ConfigurationError) as caught:
            load(file)
        assert SENTINEL not in "".join(traceback.format_exception(caught.value))
