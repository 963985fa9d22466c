"""Compiled classes of consuming call what their stubs declare of Python objects, all of it and nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from leveret.codecs.decoding import BodyDecoder
from leveret.consuming.consumer import Consumer
from leveret.consuming.failure_actions import FailureActions
from leveret.consuming.workers import Workers

ROOT = Path(__file__).parents[2]


def source(module: str) -> str:
    return (ROOT / "cext" / "leveret" / "consuming" / f"{module}.pyx").read_text()


def declared(module: str, protocol: str) -> dict[str, list[str]]:
    """The methods of a Protocol in a stub, with the names of their parameters."""
    tree = ast.parse((ROOT / "sdk" / "leveret" / "consuming" / f"{module}.pyi").read_text())
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == protocol]
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
    return {method.name: [each.arg for each in [*method.args.posonlyargs, *method.args.args][1:]] for method in methods}


def called(module: str, target: str) -> set[str]:
    """The methods that a compiled module calls on one of its attributes."""
    return set(re.findall(rf"\b{re.escape(target)}\.(\w+)\(", source(module)))


def own_calls(module: str) -> set[str]:
    """The methods that a compiled module calls on itself and does not define: its subclass has them."""
    text = source(module)
    defined = set(re.findall(r"^    (?:def|cp?def [\w ]*?) ?(\w+)\(", text, re.MULTILINE))
    return called(module, "self") - defined


@pytest.mark.parametrize(
    ("module", "protocol", "target", "implementation"),
    [
        ("delivery_buffer", "_Failures", "self.failures", FailureActions),
        ("worker", "_Failures", "self.failures", FailureActions),
        ("worker", "_Owner", "self.owner", Workers),
    ],
)
def test_what_is_called_on_a_part_is_declared_and_there(
    module: str, protocol: str, target: str, implementation: type
) -> None:
    methods = declared(module, protocol)
    assert called(module, target) == set(methods)
    for name, parameters in methods.items():
        assert list(inspect.signature(getattr(implementation, name)).parameters)[1:] == parameters


def test_what_is_called_on_the_subclass_is_declared_and_there() -> None:
    methods = declared("delivery_buffer", "_Upcalls")
    # `ordered_by` is a function that the consumer was given.
    assert own_calls("delivery_buffer") - {"ordered_by"} == set(methods)
    for name, parameters in methods.items():
        assert name in vars(Consumer)
        assert list(inspect.signature(getattr(Consumer, name)).parameters)[1:] == parameters


def test_what_is_used_of_the_decoder_is_declared_and_there() -> None:
    methods = declared("channel_deliveries", "_Decoder")
    assert set(re.findall(r"\bdecoder\.(\w+)", source("channel_deliveries"))) == set(methods)
    for name, parameters in methods.items():
        assert list(inspect.signature(getattr(BodyDecoder, name)).parameters)[1:] == parameters
