from __future__ import annotations

from typing import Any

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

def decode_table(data: bytes, *, max_depth: int = 32, max_entries: int = 16384) -> dict[str, Any]: ...
def decode_arguments(
    types: str, payload: bytes, *, max_depth: int = 32, max_entries: int = 16384
) -> tuple[Any, ...]: ...
