from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, final

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

PROPERTY_NAMES: tuple[str, ...]

def decode_properties(raw: bytes, *, max_depth: int = 32, max_entries: int = 16384) -> Properties: ...

@final
class Properties:
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any] | None
    delivery_mode: int | None
    priority: int | None
    correlation_id: str | None
    reply_to: str | None
    expiration: str | None
    message_id: str | None
    timestamp: datetime | int | None
    type: str | None
    user_id: str | None
    app_id: str | None
    cluster_id: str | None
    def __new__(
        cls,
        *,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        delivery_mode: int | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expiration: str | None = None,
        message_id: str | None = None,
        timestamp: datetime | int | None = None,
        type: str | None = None,  # noqa: A002
        user_id: str | None = None,
        app_id: str | None = None,
        cluster_id: str | None = None,
    ) -> Properties: ...
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    def encode(self) -> bytes: ...
