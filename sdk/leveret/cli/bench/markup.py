"""Writes HTML and SVG. Text is escaped where it becomes part of a tag, so no name from a broker or file is markup."""

from __future__ import annotations

from html import escape
from typing import Final

from leveret.errors import printable

__all__ = ["Markup", "tag"]

#: Elements that HTML closes by itself.
_VOID: Final = frozenset({"br", "meta", "path", "rect", "line", "circle"})
_LONGEST_TEXT: Final = 2000


class Markup(str):
    """Text that is markup already: what `tag` made, or a style sheet of ours."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """Writes an element.

    Args:
        name: The element's name.
        *children: Markup as it is; other text is escaped, and its control characters made visible. None is left out.
        **attributes: Attributes. A trailing underscore is dropped, other underscores are hyphens; None is left out.

    Returns:
        The element, which is well-formed as HTML and as XML.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(f"{value:g}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{pairs}/>")
    content = "".join(child if isinstance(child, Markup) else _text(child) for child in children if child is not None)
    return Markup(f"<{name}{pairs}>{content}</{name}>")


def _text(text: str) -> str:
    return escape(printable(text, _LONGEST_TEXT))
