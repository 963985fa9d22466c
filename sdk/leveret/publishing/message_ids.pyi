from __future__ import annotations

from typing import Self, final

__test__: dict[str, str]

@final
class MessageIds:
    def __new__(cls) -> MessageIds: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
