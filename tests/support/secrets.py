"""Looks for a secret in everything that a program may log of an error."""

from __future__ import annotations

import traceback

#: A password that nothing else looks like.
PASSWORD = "sentinel-password"


def assert_not_shown(error: BaseException, secret: str = PASSWORD, *, in_locals: bool = True) -> None:
    """Fails when the secret is in the error's text, its traceback, or a local variable of ours as a debugger shows it.

    The errors that it was raised from are looked at too.

    Args:
        error: The error.
        secret: What to look for.
        in_locals: False where the caller's own text, such as a URL, is still an argument.
    """
    seen: set[int] = set()
    errors = [error]
    while errors:
        each = errors.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        errors += [other for other in (each.__cause__, each.__context__) if other is not None]
        for text in (str(each), repr(each), *traceback.format_exception(each)):
            assert secret not in text
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if in_locals and "leveret" in frame.f_globals.get("__name__", "").split(".")[0]:
                for name, value in frame.f_locals.items():
                    assert secret not in repr(value), f"{name} in {frame.f_code.co_qualname}"
