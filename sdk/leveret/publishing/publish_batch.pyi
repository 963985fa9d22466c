from typing import Any, final

from typing_extensions import Buffer

from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer

__test__: dict[str, str]

@final
class PublishBatch:
    @property
    def channel(self) -> int: ...
    @property
    def frame_max(self) -> int: ...
    @property
    def max_body_size(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def published_bytes(self) -> int: ...
    def __new__(
        cls,
        out: SendBuffer,
        window: ConfirmWindow | None,
        *,
        held: ConfirmWindow | None = None,
        channel: int = 1,
        frame_max: int = 131072,
        max_body_size: int = 16777216,
    ) -> PublishBatch: ...
    def attach(self, out: SendBuffer, channel: int, frame_max: int) -> None: ...
    def add(
        self, template: PublishTemplate, body: Buffer, ticket: Ticket | None = None, index: int = 0, sends: int = 0
    ) -> int: ...
    def add_run(
        self,
        template: PublishTemplate,
        values: list[Any],
        start: int,
        ticket: Ticket | None,
        index: int,
        max_bytes: int,
    ) -> int: ...
    def hold(self, template: PublishTemplate, body: Buffer, ticket: Ticket | None = None, index: int = 0) -> int: ...
    def resend(self, limit: int, *, finish: bool = True) -> bool: ...
