"""Describes pydantic's errors without quoting the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.errors import DecodeFailed

if TYPE_CHECKING:
    from pydantic_core import ValidationError

__all__ = ["ValidationFailed", "schema_words", "validation_failed"]

#: The most errors in a text.
_SHOWN: Final = 5
#: With more errors than this no details are read: pydantic makes all of them at once, which takes much memory.
_MAX_DETAILED: Final = 1000
#: Parts of a schema that can have any value, and do not occur in paths of errors.
_SKIPPED: Final = frozenset({"default", "metadata"})


class ValidationFailed(DecodeFailed):
    """A body does not fit the model.

    The text has paths and error types, such as "Expected a valid Order: items.0.price: decimal_parsing". It never has
    values. In paths `*` stands for keys of dicts and other parts that come from the body.

    Attributes:
        error_count: The number of errors that pydantic found.
        errors: Path and pydantic's error type of the first five errors; empty when there are more than a thousand.
    """

    def __init__(self, title: str, error_count: int, errors: tuple[tuple[str, str], ...]) -> None:
        self.error_count = error_count
        self.errors = errors
        details = [f"{path}: {kind}" if path else kind for path, kind in errors]
        if error_count > len(errors):
            details.append(f"{'and ' if errors else ''}{error_count - len(errors)} {'more' if errors else 'errors'}")
        super().__init__(f"Expected a valid {title}: {'; '.join(details)}")


def validation_failed(error: ValidationError, words: frozenset[str]) -> ValidationFailed:
    """Describes a `ValidationError` without its text, which quotes the body.

    Args:
        error: The error. The result does not refer to it.
        words: The words that may appear in paths; see `schema_words`.

    Returns:
        The error to raise.
    """
    count = error.error_count()
    shown: list[tuple[str, str]] = []
    if count <= _MAX_DETAILED:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        for each in details[:_SHOWN]:
            path = ".".join(str(part) if isinstance(part, int) or part in words else "*" for part in each["loc"])
            shown.append((path, each["type"]))
    return ValidationFailed(error.title, count, tuple(shown))


def schema_words(schema: Any) -> frozenset[str]:
    """Collects the words of a core schema: names, aliases and tags, among others.

    Args:
        schema: A model's core schema.

    Returns:
        All strings in it and the names of all classes.
    """
    words: set[str] = set()
    waiting = [schema]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            words.add(each)
        elif isinstance(each, type):
            words.add(each.__name__)
        elif isinstance(each, dict | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            if isinstance(each, dict):
                waiting += [key for key in each if isinstance(key, str)]
                waiting += [value for key, value in each.items() if key not in _SKIPPED]
            else:
                waiting += each
    return frozenset(words)
