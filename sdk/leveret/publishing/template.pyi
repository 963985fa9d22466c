from __future__ import annotations

from typing import final

from leveret.codecs.encoding import BodyEncoder
from leveret.publishing.options import PublishOptions

__test__: dict[str, str]
__pyx_capi__: dict[str, object]

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
    @property
    def misfit(self) -> str | None: ...
    def __init__(
        self,
        exchange: str,
        routing_key: str,
        raw_properties: bytes = b"\x00\x00",
        *,
        mandatory: bool = False,
        frame_max: int = 131072,
        misfit: str | None = None,
        timed: bool = False,
    ) -> None: ...
    def marked(self, resent: int) -> PublishTemplate: ...

@final
class Template:
    @property
    def routing_key(self) -> str: ...
    @property
    def options(self) -> PublishOptions: ...
    def __new__(cls, routing_key: str, options: PublishOptions) -> Template: ...
    def pack(self, encoder: BodyEncoder, frames: PublishTemplate) -> None: ...
    def frames_for(self, encoder: BodyEncoder) -> PublishTemplate | None: ...
