"""AMQP's numbers are spelled once for Python; the compiled modules and the error classes agree with them."""

from __future__ import annotations

import re

import pytest
from pamqp import commands as pamqp_commands
from pamqp import exceptions as pamqp_exceptions
from tests.support.paths import ROOT

from leveret import errors
from leveret.protocol import commands
from leveret.wire import numbers

SOURCES = ROOT / "cext" / "leveret"
#: How the enums of the compiled modules begin: class ids, and method ids with the name of their class in front.
ENUM_MEMBER = re.compile(r"^    ((?:CONNECTION|CHANNEL|BASIC)(?:_[A-Z_]+)?) = ([0-9]+)$", re.MULTILINE)


def compiled() -> dict[str, int]:
    return {
        name: int(number)
        for path in SOURCES.rglob("*.p[yx][xd]")
        for name, number in ENUM_MEMBER.findall(path.read_text())
    }


def test_compiled_enums_agree() -> None:
    found = compiled()
    assert found.keys() >= {"BASIC", "BASIC_PUBLISH", "BASIC_DELIVER", "BASIC_ACK", "BASIC_NACK"}
    assert {name: getattr(numbers, name) for name in found} == found


@pytest.mark.parametrize("name", [name for name in vars(numbers) if re.match(r"(CONNECTION|CHANNEL|BASIC)_", name)])
def test_methods_are_those_of_the_catalogue(name: str) -> None:
    if name in numbers.REPLY_CODES.values():
        return
    class_name, _, method = name.partition("_")
    index = getattr(numbers, class_name) << 16 | getattr(numbers, name)
    expected = f"{class_name.lower()}.{method.lower().replace('_', '-')}"
    assert commands.spec_of(pamqp_commands.INDEX_MAPPING[index]).name == expected


def test_reply_codes_are_those_of_the_catalogue() -> None:
    theirs = {code: vars(error)["name"] for code, error in pamqp_exceptions.CLASS_MAPPING.items()}
    ours = {code: name.replace("_", "-") for code, name in numbers.REPLY_CODES.items()}
    assert ours == theirs | {200: "REPLY-SUCCESS"}
    hard = {
        code
        for code, error in pamqp_exceptions.CLASS_MAPPING.items()
        if issubclass(error, pamqp_exceptions.AMQPHardError)
    }
    assert hard == numbers.HARD_REPLY_CODES


@pytest.mark.parametrize(
    ("error", "reply_code"),
    [
        (errors.ProtocolError, numbers.INTERNAL_ERROR),
        (errors.LocalProtocolError, numbers.COMMAND_INVALID),
        (errors.RemoteProtocolError, numbers.COMMAND_INVALID),
        (errors.FrameError, numbers.FRAME_ERROR),
        (errors.TableSyntaxError, numbers.SYNTAX_ERROR),
    ],
)
def test_error_classes_agree(error: type[errors.ProtocolError], reply_code: int) -> None:
    assert error.reply_code == reply_code
