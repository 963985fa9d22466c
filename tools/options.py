#!/usr/bin/env python3
"""Writes the list of all options into docs/settings.md, from the classes of `leveret.settings` and their docstrings.

Run it in the environment that has Leveret: `.venv/bin/python tools/options.py`. A test checks that the page is up
to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from leveret import settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
MARKED = re.compile(r"(<!-- options -->\n).*?(<!-- options:end -->)", re.DOTALL)
#: The classes, and the places besides code where their options can be set.
CLASSES: dict[type, str] = {
    settings.ConnectionSettings: "URL, `LEVERET_<OPTION>`, `[leveret.connection]`",
    settings.TLSSettings: "`LEVERET_TLS_<OPTION>`, `[leveret.connection.tls]`, and some in an `amqps` URL",
    settings.ProducerSettings: "`LEVERET_PRODUCER_<OPTION>`, `[leveret.producer]`",
    settings.ConsumerSettings: "`LEVERET_CONSUMER_<OPTION>`, `[leveret.consumer]`",
    settings.MonitoringSettings: "`LEVERET_MONITORING_<OPTION>`, `[leveret.monitoring]`",
    settings.PluginSettings: (
        "`LEVERET_PLUGINS_ALLOW` (`allow`), `LEVERET_PLUGINS_BLOCK`, `LEVERET_PLUGINS_STRICT`, `[leveret.plugins]`"
    ),
    settings.GcSettings: "code only",
}


def descriptions(cls: type) -> dict[str, str]:
    """Returns the description of each attribute from the docstring of a settings class."""
    text = inspect.getdoc(cls) or ""
    part = re.search(r"^Attributes:\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", part[1] if part else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", description) for name, description in found}


def default_of(field: dataclasses.Field[Any], made: object) -> str:
    """Returns the default of an option as text for the page."""
    value = getattr(made, field.name)
    if isinstance(value, settings.Secret):
        value = value.reveal()
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "empty"
    if isinstance(value, bool) or value is None:
        return f"`{value}`"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    return f'`"{value}"`' if isinstance(value, str) else "empty"


def table(cls: type, where: str) -> str:
    """Returns a heading, the places where options of a class can be set, and a row for each option."""
    said = descriptions(cls)
    made = cls()
    lines = [f"### {cls.__name__}", "", f"Set by: code, {where}." if where != "code only" else "Set by: code only.", ""]
    lines += ["| option | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        text = said[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | {default_of(field, made)} | {text} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """Returns the page with the list between its markers."""
    text = "\n\n".join(table(cls, where) for cls, where in CLASSES.items())
    page, count = MARKED.subn(lambda match: f"{match[1]}{text}\n{match[2]}", page)
    if count != 1:
        raise ValueError("the page has no place for the options: <!-- options --> and <!-- options:end -->")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
