from __future__ import annotations

from typing import final

from typing_extensions import Buffer

from leveret.errors import RemoteProtocolError
from leveret.wire.buffers import BodyPool
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

__test__: dict[str, str]

@final
class FrameReader:
    frame_max: int
    @property
    def server(self) -> bool: ...
    @property
    def max_body_size(self) -> int: ...
    @property
    def max_table_depth(self) -> int: ...
    @property
    def max_table_entries(self) -> int: ...
    @property
    def error(self) -> RemoteProtocolError | None: ...
    @property
    def body_pool(self) -> BodyPool | None: ...
    @property
    def received_frames(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    def __new__(
        cls,
        *,
        server: bool = False,
        protocol_header: bool = False,
        frame_max: int = 4096,
        max_body_size: int = 67108864,
        max_table_depth: int = 32,
        max_table_entries: int = 16384,
        capacity: int = 262144,
        body_pool: BodyPool | None = None,
    ) -> FrameReader: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def received(self, n: int) -> list[ContentRun | SettlementRun | MethodFrame | bytes]: ...
    def feed(self, data: Buffer) -> list[ContentRun | SettlementRun | MethodFrame | bytes]: ...
    def forget(self, channel: int) -> None: ...
    def view_bodies(self, channel: int, min_size: int) -> None: ...
