"""A wrong name of an option is a `ConfigurationError` that says which one is meant, from every source alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret import Classic, Quorum, Retry
from leveret.errors import ConfigurationError
from leveret.plugins import SerializerSpec
from leveret.publishing.options import OPTIONS, unknown_option
from leveret.settings import (
    ConnectionSettings,
    ConsumerSettings,
    Endpoint,
    GcSettings,
    MonitoringSettings,
    PluginSettings,
    ProducerSettings,
    Settings,
    TLSSettings,
    load,
)
from leveret.settings.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


#: The classes as a caller without a type checker knows them.
CONNECTION: Any = ConnectionSettings
PRODUCER: Any = ProducerSettings
CONSUMER: Any = ConsumerSettings
CONNECT: Any = leveret.connect
APP: Any = leveret.App


def refused(make: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return caught.value


def publish(**options: Any) -> None:
    raise unknown_option(options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        (ConnectionSettings, "hearbeat", "heartbeat"),
        (ConnectionSettings, "name", "client_name"),
        (ConnectionSettings, "user", "username"),
        (ConnectionSettings, "vhost", "virtual_host"),
        (ConnectionSettings, "host", "endpoints"),
        (ConnectionSettings, "ssl", "tls"),
        (TLSSettings, "ca_file", "cafile"),
        (ProducerSettings, "exchnge", "exchange"),
        (ProducerSettings, "compression", "compressor"),
        (ConsumerSettings, "prefetch_count", "prefetch"),
        (ConsumerSettings, "Concurrency", "concurrency"),
        (MonitoringSettings, "sink", "sinks"),
        (GcSettings, "treshold", "threshold"),
        (PluginSettings, "blocks", "block"),
        (Settings, "conection", "connection"),
        (Endpoint, "hsot", "host"),
        (Quorum, "delivery_limt", "delivery_limit"),
        (Classic, "ttl", "message_ttl"),
        (Retry, "dealy", "delay"),
        (SerializerSpec, "content_typ", "content_type"),
    ],
)
def test_the_option_that_is_meant_is_suggested_when_a_settings_object_is_made(
    kind: Any, wrong: str, meant: str
) -> None:
    error = refused(lambda: kind(**{wrong: 1}))
    assert str(error) == f"{kind.__name__} has no option {wrong!r}; did you mean {meant!r}?"
    assert error.option == wrong


@pytest.mark.parametrize(
    ("make", "owner"),
    [
        (lambda: CONNECTION(prefetch=5), "ConsumerSettings"),
        (lambda: CONNECTION().replace(mandatory=True), "ProducerSettings"),
        (lambda: PRODUCER(heartbeat=5), "ConnectionSettings"),
        (lambda: CONSUMER(max_body_size=5), "ConnectionSettings and ProducerSettings"),
        (lambda: leveret.connect("amqp://host", exchange="orders"), "ProducerSettings"),
        (lambda: leveret.connect("amqp://host", cafile="ca.pem"), "TLSSettings"),
        (lambda: publish(serializer="text"), "ConsumerSettings and ProducerSettings"),
    ],
    ids=["connection", "replace", "producer", "consumer", "connect", "tls", "publish"],
)
def test_the_class_that_has_the_option_is_named_when_it_is_given_elsewhere(
    make: Callable[[], object], owner: str
) -> None:
    assert str(refused(make)).endswith(f"; it is an option of {owner}")


@pytest.mark.parametrize(
    "kind", [ConnectionSettings, ProducerSettings, ConsumerSettings, TLSSettings, Settings, Quorum]
)
def test_options_are_given_by_name(kind: Any) -> None:
    error = refused(lambda: kind("amqp://guest:s3cret@localhost"))
    assert str(error).startswith(f"{kind.__name__} takes its options by name, such as {kind.__name__}(")
    assert "s3cret" not in str(error)


def test_nothing_is_suggested_when_no_option_is_like_it() -> None:
    assert str(refused(lambda: PRODUCER(qqqq=1))) == "ProducerSettings has no option 'qqqq'"


@pytest.mark.parametrize(("wrong", "meant"), [("name", "client_name"), ("hearbeat", "heartbeat")])
def test_every_source_suggests_the_same_name(wrong: str, meant: str, tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text(f"[leveret.connection]\n{wrong} = 1\n")
    sources: list[Callable[[], object]] = [
        lambda: CONNECTION(**{wrong: 1}),
        lambda: CONNECT("amqp://host", **{wrong: 1}),
        lambda: APP("amqp://host", **{wrong: 1}) if wrong != "name" else CONNECTION(name=1),
        lambda: ConnectionSettings.from_url(f"amqp://host?{wrong}=1"),
        lambda: load(file),
    ]
    for source in sources:
        assert f"did you mean {meant!r}?" in str(refused(source))
    error = refused(lambda: ConnectionSettings.from_env({f"LEVERET_{wrong.upper()}": "1"}))
    assert str(error).endswith(f"'LEVERET_{wrong.upper()}'; did you mean 'LEVERET_{meant.upper()}'?")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LEVERET_PLUGINS", "LEVERET_PLUGINS_ALLOW"),
        ("LEVERET_PLUGINS_BLOK", "LEVERET_PLUGINS_BLOCK"),
    ],
)
def test_variables_of_plugins_are_named_like_their_options(variable: str, meant: str) -> None:
    error = refused(lambda: PluginSettings.from_env({variable: "msgpack"}))
    assert str(error) == f"unknown option {variable!r}; did you mean {meant!r}?"


def test_what_has_its_own_place_in_a_url_is_no_option_of_it() -> None:
    for name in ("username", "password", "virtual_host", "endpoints", "tls"):
        error = refused(lambda name=name: ConnectionSettings.from_url(f"amqp://host?{name}=5entine1"))  # type: ignore[misc]
        assert "amqp://username:password@endpoints/virtual_host" in str(error)
        assert (error.option, "5entine1" in str(error)) == (name, False)


def test_an_argument_of_the_call_is_suggested_as_well() -> None:
    for make, meant in (
        (lambda: leveret.connect("amqp://host", plugin=None), "plugins"),
        (lambda: leveret.App("amqp://host", drain_timeot=5), "drain_timeout"),
        (lambda: leveret.App("amqp://host").consumer("q", on_eror=None), "on_error"),
    ):
        assert f"did you mean {meant!r}?" in str(refused(make))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("hedaers", "headers"), ("ttl", "expiration"), ("key", "routing_key"), ("messageid", "message_id")],
)
def test_an_option_of_publish_is_suggested(wrong: str, meant: str) -> None:
    error = refused(lambda: publish(**{wrong: 1}))
    assert str(error) == f"publish has no option {wrong!r}; did you mean {meant!r}?"


def test_options_are_still_found_when_they_are_right() -> None:
    for name in OPTIONS:
        assert suggestion(name, OPTIONS) == name


def test_settings_in_settings_are_checked() -> None:
    wrong: Any = "amqp://host"
    error = refused(lambda: Settings(connection=wrong))
    assert str(error) == "connection is of type str; it must be ConnectionSettings"
    assert Settings().replace(consumer=ConsumerSettings(prefetch=7)).consumer.prefetch == 7
