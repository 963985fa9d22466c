"""What went wrong in a body, without the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.errors import DecodeFailed

if TYPE_CHECKING:
    from pydantic_core import ValidationError

__all__ = ["ValidationFailed", "schema_words", "validation_failed"]

#: How many errors a text lists.
_SHOWN: Final = 5
#: pydantic makes all details of an error, or none; those of a million would take hundreds of megabytes.
_MAX_DETAILED: Final = 1000
#: Parts of a schema that can hold anything, and nothing that appears in the path of an error.
_SKIPPED: Final = frozenset({"default", "metadata"})


class ValidationFailed(DecodeFailed):
    """A body is not what the model says.

    Its text has paths and error types, such as "Expected a valid Order: items.0.price: decimal_parsing". It never has
    values, and in paths `*` stands for the keys of dicts and whatever else came from the body.

    Attributes:
        error_count: How many errors pydantic found.
        errors: Path and pydantic's error type of the first five, or of none when there are more than a thousand.
    """

    def __init__(self, title: str, error_count: int, errors: tuple[tuple[str, str], ...]) -> None:
        self.error_count = error_count
        self.errors = errors
        details = [f"{path}: {kind}" if path else kind for path, kind in errors]
        if error_count > len(errors):
            details.append(f"{'and ' if errors else ''}{error_count - len(errors)} {'more' if errors else 'errors'}")
        super().__init__(f"Expected a valid {title}: {'; '.join(details)}")


def validation_failed(error: ValidationError, words: frozenset[str]) -> ValidationFailed:
    """Describes a `ValidationError`, whose own text quotes what it refuses.

    Args:
        error: The error. The result holds no reference to it.
        words: What may appear in paths; see `schema_words`.

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
    """Collects the words of a core schema: names, aliases and tags, and more that does no harm.

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
