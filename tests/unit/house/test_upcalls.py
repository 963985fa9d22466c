"""Compiled classes call only those names of Python objects that a Protocol in their stub declares.

A compiled class looks such a name up at run time, where neither the C compiler nor mypy sees a name that is wrong. So
the stub of the class declares them, and these tests compare three things: the calls in the .pyx, the Protocol in the
.pyi, and the Python class that implements it.
"""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.paths import ROOT

SOURCES = ROOT / "cext" / "leveret"
PACKAGE = ROOT / "sdk" / "leveret"


@dataclass(frozen=True)
class Role:
    """A kind of object that a compiled class calls.

    Attributes:
        owner: The compiled class that calls.
        receivers: How the object is written in the .pyx. "self" is the subclass of the compiled class; then `x.name`
            counts for each `x` that is declared as the compiled class.
        protocol: The Protocol in the stub of the compiled class.
        implementers: The classes that it stands for.
    """

    owner: str
    receivers: tuple[str, ...]
    protocol: str
    implementers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.owner}-{self.protocol}"

    @property
    def places(self) -> set[tuple[str, str]]:
        return {(self.owner, receiver) for receiver in self.receivers}


ROLES = [
    Role("Stream", ("self.session",), "StreamSession", ("leveret.connection.connection.Connection",)),
    Role("Stream", ("channel",), "StreamChannel", ("leveret.connection.channel.Channel",)),
    Role("Stream", ("consumer",), "DeliverySink", ("leveret.consuming.consumer.Consumer",)),
    Role("Stream", ("publisher",), "ConfirmSink", ("leveret.publishing.publisher.CompiledPublisher",)),
    Role("Message", ("self.owner",), "MessageOwner", ("leveret.consuming.channel_deliveries.ChannelDeliveries",)),
    Role("Ticket", ("self.owner",), "TicketOwner", ("leveret.publishing.producer.Producer",)),
    Role("Publishing", ("self.producer",), "PublishingOwner", ("leveret.publishing.producer.Producer",)),
    Role("CompiledPublisher", ("self",), "PublisherUpcalls", ("leveret.publishing.producer.Producer",)),
    Role("CompiledPublisher", ("self._guard",), "Policies", ("leveret.publishing.guard.PublishGuard",)),
    Role("CompiledPublisher", ("self._breaker",), "Breaker", ("leveret.plugins.interfaces.BreakerPolicy",)),
    Role("CompiledPublisher", ("self._encoder",), "Encoder", ("leveret.codecs.encoding.BodyEncoder",)),
    Role(
        "MessageBuilder",
        ("self.publisher",),
        "Publisher",
        ("leveret.publishing.producer.Producer", "leveret.client.first_use_producer.FirstUseProducer"),
    ),
    Role("Packer", ("self.encoder",), "Encoder", ("leveret.codecs.encoding.BodyEncoder",)),
    Role("Packer", ("settings",), "Options", ("leveret.settings.producer.ProducerSettings",)),
    Role("CompiledPublisher", ("self._transport",), "Flushing", ("leveret.transport.stream.Stream",)),
    Role("ChannelDeliveries", ("decoder",), "BodyDecoding", ("leveret.codecs.decoding.BodyDecoder",)),
    Role("ChannelDeliveries", ("self.credit",), "DeliveryCredit", ("leveret.connection.credit.Credit",)),
    Role("Acknowledger", ("self.meter",), "StaleCounter", ("leveret.monitoring.meters.ConsumerMeter",)),
    Role("ReadCollector", ("self.reader",), "ByteCounter", ("leveret.wire.reader.FrameReader",)),
    Role("DeliveryBuffer", ("self",), "ConsumerUpcalls", ("leveret.consuming.consumer.Consumer",)),
    Role("DeliveryBuffer", ("self.failures",), "KeyFailures", ("leveret.consuming.failing.actions.FailureActions",)),
    Role("DeliveryBuffer", ("self.meter",), "DeliveryCounter", ("leveret.monitoring.meters.ConsumerMeter",)),
    Role("Worker", ("self.failures",), "FailureSink", ("leveret.consuming.failing.actions.FailureActions",)),
    Role("Worker", ("self.owner",), "WorkerOwner", ("leveret.consuming.workers.Workers",)),
    Role("DeliveryBuffer", ("self.ahead",), "HandledAhead", ("leveret.consuming.handler_threads.HandlerThreads",)),
    Role("HandlerThreads", ("self.failures",), "ThreadFailures", ("leveret.consuming.failing.actions.FailureActions",)),
    Role("HandlerThreads", ("self.owner",), "ThreadsOwner", ("leveret.consuming.workers.Workers",)),
]

#: Receivers that are objects of the standard library, coroutines, or values of the caller.
OTHERS = {
    "BodyCompressor": {"logger"},
    "CompiledPublisher": {"self._loop", "ticket.future"},
    "DeliveryBuffer": {"self.runnable", "waiting"},
    "HandOver": {"error", "self.queue"},
    "HandlerThreads": {"self.loop", "self.queue"},
    "Message": {"datetime"},
    "Packer": {"Outcome", "headers"},
    "Properties": {"other"},
    "Publishing": {"error", "self.error", "self.task", "task", "value"},
    "ReadCollector": {"self.loop", "self.timer"},
    "RecvBuffer": {"data"},
    "SendBuffer": {"data"},
    "SharedTimer": {"self.handle", "self.loop"},
    "Stream": {"self._loop", "self._transport"},
    "Waiter": {"self.owner.loop"},
    "Waiters": {"self.loop"},
    "Worker": {"action", "awaited", "coroutine", "current", "error", "self.current", "self.task", "stop"},
    "Writer": {"str", "value"},
}

# ---------------------------------------------------------------------------------------------- reading Cython

_PUBLISHING = re.compile(r"^(.*) -> Publishing\[(.*)\]$")
_TEXTS = re.compile(r'"""(?:.|\n)*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*')
_CLASS = re.compile(r"cdef class (\w+)(?:\((\w+)\))?")
_FUNCTION = re.compile(r" {4}(?:async def|def|cp?def(?: inline)?) [^(=]*?(\w+)\(")
_ATTRIBUTE = re.compile(r" {4}cdef (?:public |readonly )?([\w ]+?(?:\[\w+\])?\**) (\w+)$")
_CHAIN = re.compile(r"(?<![\w.\])'])[A-Za-z_]\w*(?:\.\w+)+")
_PARAMETER = re.compile(r"[(,]\s*(\w+\**) (\w+)")
_LOCAL = re.compile(r"cdef (\w+\**) (\w+(?:, \w+)*)")


@dataclass
class Compiled:
    """A compiled class.

    Attributes:
        module: Where it is.
        attributes: The types of its C attributes, by name.
        names: Its methods and properties.
        functions: Header and body of each method.
    """

    module: str
    attributes: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    functions: list[tuple[str, str]] = field(default_factory=list)


def code_of(text: str) -> str:
    """Returns Cython source without comments, with empty strings, and with each function's header on one line."""
    text = _TEXTS.sub(lambda found: "" if found[0].startswith("#") else "''", text)
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and lines[-1].count("(") > lines[-1].count(")"):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    return "\n".join(lines)


def read_bases(texts: dict[str, list[str]]) -> dict[str, str]:
    """Returns the compiled class that each of them derives from."""
    found = [_CLASS.match(line) for sources in texts.values() for text in sources for line in text.split("\n")]
    return {each[1]: each[2] for each in found if each and each[2]}


def read_class_bodies(text: str) -> dict[str, list[str]]:
    """Returns the lines of each compiled class in Cython source."""
    bodies: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in code_of(text).split("\n"):
        if found := _CLASS.match(line):
            current = bodies.setdefault(found[1], [])
        elif line and not line.startswith(" "):
            current = None
        elif current is not None:
            current.append(line)
    return bodies


def read_classes(texts: dict[str, list[str]]) -> dict[str, Compiled]:
    """Reads compiled classes from the sources of each module, the .pxd before the .pyx."""
    classes: dict[str, Compiled] = {}
    for module, sources in texts.items():
        for text in sources:
            for name, lines in read_class_bodies(text).items():
                compiled = classes.setdefault(name, Compiled(module))
                assert compiled.module == module, f"two compiled classes are called {name}"
                for line in lines:
                    if found := _FUNCTION.match(line):
                        compiled.names.add(found[1])
                        compiled.functions.append((line, ""))
                    elif line.startswith("        ") and compiled.functions:
                        header, body = compiled.functions[-1]
                        compiled.functions[-1] = (header, f"{body}{line}\n")
                    elif found := _ATTRIBUTE.match(line):
                        compiled.attributes[found[2]] = found[1]
    for name, base in read_bases(texts).items():
        classes[name].names |= classes[base].names
        classes[name].attributes |= classes[base].attributes
    return classes


def calls_of(classes: dict[str, Compiled]) -> set[tuple[str, str, str]]:
    """Finds the names that compiled classes look up in Python objects.

    Returns:
        The class that looks up, how it writes the object, and the name. For a name of a subclass: the compiled class
        that does not have it, "self", and the name.
    """
    found = set()
    for owner, compiled in classes.items():
        for header, body in compiled.functions:
            types = {"self": owner, **{name: kind for kind, name in _PARAMETER.findall(header)}}
            for kind, names in _LOCAL.findall(body):
                types.update(dict.fromkeys(names.split(", "), kind))
            for chain in _CHAIN.findall(body):
                root, *attributes = chain.split(".")
                if root in classes or root == "leveret":
                    continue  # `Ticket.__new__(Ticket)`, and an import
                kind, written = types.get(root, "object"), root
                for attribute in attributes:
                    if kind == "object":
                        found.add((owner, written, attribute))
                        break
                    if kind not in classes or attribute in classes[kind].names:
                        break
                    if attribute not in classes[kind].attributes:
                        found.add((kind, "self", attribute))
                        break
                    kind, written = classes[kind].attributes[attribute], f"{written}.{attribute}"
    return found


@cache
def compiled_classes() -> dict[str, Compiled]:
    texts = {}
    for path in sorted(SOURCES.rglob("*.pyx")):
        module = ".".join(["leveret", *path.relative_to(SOURCES).with_suffix("").parts])
        pxd = path.with_suffix(".pxd")
        texts[module] = [source.read_text() for source in (pxd, path) if source.exists()]
    return read_classes(texts)


# ---------------------------------------------------------------------------------------------- reading Python


@cache
def classes_in(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}


def source_of(module: str) -> Path:
    """Returns the stub of a compiled module, or the source of another."""
    path = ROOT / "sdk" / Path(*module.split("."))
    return next(
        found for found in (path.with_suffix(".pyi"), path.with_suffix(".py"), path / "__init__.py") if found.exists()
    )


Member = ast.FunctionDef | ast.AsyncFunctionDef | None


def members_of(node: ast.ClassDef) -> dict[str, Member]:
    """Returns methods, and None for attributes and properties."""
    members: dict[str, Member] = {}
    for child in ast.walk(node):
        if isinstance(child, ast.AnnAssign | ast.Assign | ast.AugAssign):
            for target in child.targets if isinstance(child, ast.Assign) else [child.target]:
                if isinstance(target, ast.Name) and child in node.body:
                    members.setdefault(target.id, None)
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    members.setdefault(target.attr, None)
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in child.decorator_list}
            members[child.name] = None if decorators & {"property", "cached_property"} else child
    return members


def signature_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns arguments and result as text; positional-only ones are not told from others."""
    arguments = ast.unparse(function.args).replace(", /", "")
    result = "" if function.returns is None else ast.unparse(function.returns)
    signature = f"{'async ' if isinstance(function, ast.AsyncFunctionDef) else ''}({arguments}) -> {result}"
    # A publishing is awaited as the result of a coroutine is.
    return _PUBLISHING.sub(r"async \1 -> \2", signature)


def protocol_of(role: Role) -> dict[str, Member]:
    """Returns the members of the Protocol that the stub declares."""
    stub = source_of(compiled_classes()[role.owner].module)
    assert role.protocol in classes_in(stub), f"{stub.name} has no Protocol {role.protocol}"
    node = classes_in(stub)[role.protocol]
    assert "Protocol" in {ast.unparse(base) for base in node.bases}
    return members_of(node)


def implemented_by(name: str) -> dict[str, Member]:
    """Returns what a class and its bases define."""
    module, _, class_name = name.rpartition(".")
    found: dict[str, Member] = {}
    kind: Any = getattr(importlib.import_module(module), class_name)
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("leveret."):
            found |= members_of(classes_in(source_of(base.__module__))[base.__name__])
    return found


# ---------------------------------------------------------------------------------------------- the tests


def test_each_name_that_is_called_has_a_role() -> None:
    known = {place for role in ROLES for place in role.places}
    known |= {(owner, receiver) for owner, receivers in OTHERS.items() for receiver in receivers}
    unknown = {call for call in calls_of(compiled_classes()) if call[:2] not in known}
    assert unknown == set(), "give the receiver a role, and declare the name in the stub's Protocol"


def test_no_role_is_left_over() -> None:
    called = {call[:2] for call in calls_of(compiled_classes())}
    left = {(owner, receiver) for owner, receivers in OTHERS.items() for receiver in receivers} - called
    assert left == set()


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_the_protocol_declares_what_is_called_and_nothing_else(role: Role) -> None:
    called = {name for owner, written, name in calls_of(compiled_classes()) if (owner, written) in role.places}
    assert set(protocol_of(role)) == called


@pytest.mark.parametrize(
    ("role", "implementer"), [(role, name) for role in ROLES for name in role.implementers], ids=str
)
def test_implementers_have_each_declared_name_with_that_signature(role: Role, implementer: str) -> None:
    members = implemented_by(implementer)
    for name, declared in protocol_of(role).items():
        assert name in members, f"{implementer} has no {name}, which {role.owner} calls"
        member = members[name]
        if declared is None or member is None:
            assert declared is member is None, f"{name} is a method on one side and an attribute on the other"
        else:
            assert signature_of(member) == signature_of(declared), name


BASE = '''
cdef class Base:
    """Calls self.not_this_one()."""

    def known(self):
        return self.known()

    cdef int start(self, Other other, thing, *,
                   bint really) except -1:
        cdef Base another = other.base
        self.known()  # self.nor_this_one()
        self.of_subclass(self.value, "self.nor_this_text()")
        self.helper.call(1)
        another.of_subclass_too()
        thing.given()
        other.base.helper.deep()
        self.lines.append(1)
        return self.count.bit_length()
'''
BASE_PXD = """
cdef class Base:
    cdef public object helper
    cdef object value
    cdef list lines
    cdef unsigned long count

    cdef int start(self, Other other, thing, *, bint really) except -1

cdef class Other:
    cdef Base base
"""


def test_calls_are_found_in_cython() -> None:
    assert calls_of(read_classes({"m": [BASE_PXD, BASE]})) == {
        ("Base", "self", "of_subclass"),
        ("Base", "self", "of_subclass_too"),
        ("Base", "self.helper", "call"),
        ("Base", "thing", "given"),
        ("Base", "other.base.helper", "deep"),
    }


def test_a_protocol_is_compared_with_methods_as_they_are_written() -> None:
    tree = ast.parse("class A:\n    async def f(self, a: int, /, *, b: str = '') -> None: ...\n    x: int\n")
    (node,) = tree.body
    assert isinstance(node, ast.ClassDef)
    members = members_of(node)
    assert members["x"] is None
    assert isinstance(members["f"], ast.AsyncFunctionDef)
    assert signature_of(members["f"]) == "async (self, a: int, *, b: str='') -> None"
