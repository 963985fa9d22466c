from __future__ import annotations

from typing import final

__test__: dict[str, str]

@final
class PublishTemplate:
    @property
    def exchange(self) -> str: ...
    @property
    def routing_key(self) -> str: ...
    @property
    def mandatory(self) -> bool: ...
    @property
    def raw_properties(self) -> bytes: ...
    def __new__(
        cls,
        exchange: str,
        routing_key: str,
        raw_properties: bytes = b"\x00\x00",
        *,
        mandatory: bool = False,
        frame_max: int = 131072,
    ) -> PublishTemplate: ...
