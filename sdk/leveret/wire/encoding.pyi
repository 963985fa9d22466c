from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

class FieldValue:
    type: str
    value: Any
    def __init__(self, type: str, value: Any) -> None: ...  # noqa: A002
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Writer: ...

def encode_table(table: Mapping[str, Any] | None) -> bytes: ...
def encode_method(
    channel: int,
    class_id: int,
    method_id: int,
    types: str,
    values: tuple[Any, ...],
    name: str = "",
    fields: tuple[str, ...] = (),
) -> bytes: ...
