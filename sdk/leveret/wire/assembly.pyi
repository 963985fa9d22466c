from __future__ import annotations

from typing import final

__test__: dict[str, str]

# Both are used by compiled code only: `FrameReader`.

@final
class Assembly: ...

@final
class Assemblies:
    @property
    def counted_bytes(self) -> int: ...
    def __new__(cls) -> Assemblies: ...
    def __len__(self) -> int: ...
