"""Exceptions and settings, all of them, go to other processes (pickle), are copied, and become dicts."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest

import leveret
from leveret import BatchResult, ErrorPolicy, Outcome, Quorum, Retry
from leveret.errors import ConfirmTimeout, LeveretError, PublishError, again
from leveret.settings import (
    ConnectionSettings,
    Endpoint,
    PluginSettings,
    Secret,
    Settings,
    TLSSettings,
)
from leveret.settings.names import CheckedNames
from leveret.settings.rules import Options

PASSWORD = "5entine1"


def _modules() -> list[Any]:
    found = pkgutil.walk_packages(leveret.__path__, "leveret.")
    return [importlib.import_module(module.name) for module in found if not module.name.endswith("__main__")]


def _classes(base: type) -> list[type]:
    found = {
        each
        for module in _modules()
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, base) and each.__module__.startswith("leveret")
    }
    return sorted(found, key=lambda each: each.__qualname__)


def _made(kind: type[LeveretError]) -> LeveretError:
    """An exception with something in every field."""
    values: dict[str, Any] = {
        "outcome": Outcome.UNKNOWN,
        "distributions": ("one 1.0", "other 2.0"),
        "attempts": 3,
        "retry_after": 1.5,
        "delivery_tag": 7,
        "reply_code": 404,
        "class_id": 50,
        "method_id": 10,
    }
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    fields = {it.name: values.get(it.name, "text") for it in parameters if it.kind is it.KEYWORD_ONLY}
    positional = [it.name for it in parameters if it.kind is it.POSITIONAL_OR_KEYWORD]
    made = kind(*(values.get(name, "what went wrong") for name in positional or ["message"]), **fields)
    made.note = "set later"  # type: ignore[attr-defined]
    return made


ERRORS = _classes(LeveretError)


def test_all_errors_are_found() -> None:
    assert len(ERRORS) >= 40
    assert {"ConfirmTimeout", "ExchangeNotFound", "PluginConflictError", "NotOpened"} <= {it.__name__ for it in ERRORS}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_text_and_fields(kind: type[LeveretError]) -> None:
    error = _made(kind)
    others = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (*others, copy.copy(error), copy.deepcopy(error), again(error)):
        assert type(other) is kind
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
        assert other is not error


def test_an_error_can_be_raised_in_another_process_s_name() -> None:
    try:
        raise ConfirmTimeout("late", outcome=Outcome.UNKNOWN, delivery_tag=9, stage="confirm")
    except PublishError as error:
        other = pickle.loads(pickle.dumps(error))
    with pytest.raises(TimeoutError, match=r"^late$") as caught:
        raise other
    assert (caught.value.delivery_tag, caught.value.stage) == (9, "confirm")  # type: ignore[attr-defined]


OPTIONS = [kind for kind in _classes(Options) if kind not in (Options,) and not inspect.isabstract(kind)]


def test_all_settings_are_found() -> None:
    names = {"ConnectionSettings", "ConsumerSettings", "Endpoint", "GcSettings", "MonitoringSettings"}
    names |= {"PluginSettings", "ProducerSettings", "Settings", "TLSSettings"}
    assert names <= {kind.__name__ for kind in OPTIONS}


VALUES: list[Any] = [
    *(kind() for kind in OPTIONS),
    ConnectionSettings(password=Secret(PASSWORD), endpoints=(Endpoint("a"), Endpoint("b"))),
    ConnectionSettings(tls=TLSSettings(), password=Secret(PASSWORD)),
    PluginSettings(choose={"json": "leveret-pydantic"}, allow=["one"]),
    Settings(connection=ConnectionSettings(password=Secret(PASSWORD))),
    Quorum(delivery_limit=5, arguments={"x-queue-leader-locator": "balanced"}),
    Retry(delay=1, max_attempts=3),
    BatchResult(count=1, confirmed=0, elapsed=0.5, failures={0: leveret.BackpressureError("full")}),
]


@pytest.mark.parametrize("value", VALUES, ids=[f"{type(it).__name__}-{at}" for at, it in enumerate(VALUES)])
def test_settings_are_pickled_copied_and_made_into_dicts(value: Any) -> None:
    others = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (*others, copy.copy(value), copy.deepcopy(value), dataclasses.replace(value)):
        assert type(other) is type(value)
        if not isinstance(value, BatchResult):  # errors have no equality
            assert other == value
        assert repr(other) == repr(value)
    table = dataclasses.asdict(value)
    assert table.keys() == {field.name for field in dataclasses.fields(value)}
    assert PASSWORD not in f"{value} {table}"


def test_a_pickled_password_is_there_and_is_not_shown() -> None:
    settings = pickle.loads(pickle.dumps(ConnectionSettings(password=Secret(PASSWORD))))
    assert settings.password.reveal() == PASSWORD
    assert PASSWORD not in f"{settings!r} {settings.password} {dataclasses.asdict(settings)}"


def test_what_settings_choose_cannot_be_changed() -> None:
    choose: Any = PluginSettings(choose={"json": "a"}).choose
    assert (dict(choose), choose["json"], len(choose)) == ({"json": "a"}, "a", 1)
    with pytest.raises(TypeError):
        choose["json"] = "b"


def test_classes_whose_names_are_checked_can_be_made_without_options() -> None:
    for kind in _classes(CheckedNames):
        if dataclasses.is_dataclass(kind) and not any(
            field.default is field.default_factory is dataclasses.MISSING and field.init
            for field in dataclasses.fields(kind)
        ):
            assert type(kind()) is kind


def test_policies_are_pickled() -> None:
    policy = ErrorPolicy({ValueError: Retry(delay=1)})
    assert repr(pickle.loads(pickle.dumps(policy))) == repr(policy)
