from __future__ import annotations

from collections.abc import Callable
from typing import final

__test__: dict[str, str]

@final
class BodyCompressor:
    @property
    def encoding(self) -> str: ...
    @property
    def compressed(self) -> int: ...
    @property
    def incompressible(self) -> int: ...
    @property
    def original_bytes(self) -> int: ...
    @property
    def compressed_bytes(self) -> int: ...
    def __new__(
        cls,
        compress: Callable[[bytes], bytes],
        *,
        name: str,
        origin: str,
        encoding: str,
        threshold: int,
        ratio: float,
        max_size: int,
        max_uncompressed: int,
    ) -> BodyCompressor: ...
    def compress(self, body: bytes) -> bytes | None: ...
    def counters(self) -> dict[str, int]: ...
