from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, final, type_check_only

from leveret.codecs.compressing import BodyCompressor
from leveret.codecs.encoding import BodyEncoder
from leveret.errors import EncodeFailed
from leveret.publishing.message_ids import MessageIds
from leveret.publishing.options import PublishOptions
from leveret.publishing.template import PublishTemplate, Template
from leveret.settings import ProducerSettings

__test__: dict[str, str]

OPTIONS: frozenset[str]
ORIGINAL_SIZE_HEADER: str
PROPERTY_NAMES: tuple[str, ...]
SENT_AT_HEADER: str

@final
class Scratch: ...

@final
class Packer:
    frame_max: int
    @property
    def one_form(self) -> bool: ...
    @property
    def ids(self) -> MessageIds | None: ...
    def __new__(cls, settings: ProducerSettings, encoder: BodyEncoder, encode: Callable[[Any], bytes]) -> Packer: ...
    def pack(
        self, value: Any, routing_key: str | Template, options: PublishOptions
    ) -> tuple[PublishTemplate, bytes]: ...
    def check(self, routing_key: str | Template, options: PublishOptions) -> PublishTemplate | None: ...
    def raw(self, routing_key: str, raw_properties: bytes) -> PublishTemplate: ...
    def check_open(self) -> None: ...

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class Encoder(Protocol):
    """`Packer.encoder`, which encodes values and compares content types: `BodyEncoder`."""

    content_type: str | None
    part: tuple[Callable[[Any], bytes], str] | None
    compressor: BodyCompressor | None
    def given(self, value: object, misfit: str | None) -> bytes | None: ...
    def misfit(self, content_type: object, content_encoding: object) -> str | None: ...
    def choose(self, value: Any) -> tuple[Callable[[Any], bytes], str]: ...
    def failed(self, error: BaseException, value: object) -> EncodeFailed: ...
    def not_bytes(self, body: object) -> EncodeFailed: ...

@type_check_only
class Options(Protocol):
    """What a `Packer` reads of its producer's options."""

    exchange: str
    mandatory: bool
    delivery_mode: int
    sent_at_header: bool
    message_ids: bool
