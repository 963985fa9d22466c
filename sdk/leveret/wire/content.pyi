from __future__ import annotations

from leveret.wire.buffers import SendBuffer
from leveret.wire.message import Message

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

def append_settlement(out: SendBuffer, channel: int, method_id: int, delivery_tag: int, bits: int = 0) -> None: ...
def append_deliveries(
    out: SendBuffer,
    channel: int,
    consumer_tag: str,
    first_delivery_tag: int,
    messages: list[Message],
    *,
    frame_max: int = 131072,
) -> None: ...
def append_content(
    out: SendBuffer, method_frame: bytes, message: Message, *, channel: int, frame_max: int = 131072
) -> None: ...
