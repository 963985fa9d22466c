"""From a value with its options to frames: what is packed once is kept for the next message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.codecs.forms import ORIGINAL_SIZE, Form, OriginalSize
from leveret.errors import EncodeFailed, PublishError
from leveret.message import Outcome
from leveret.publishing.options import pack_properties, repeats
from leveret.publishing.template import PublishTemplate, Template
from leveret.wire.encoding import FieldValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.codecs.encoding import BodyEncoder
    from leveret.publishing.options import PublishOptions
    from leveret.settings import ProducerSettings

    #: The frames of one routing key with options, by the form of the body.
    FramesByForm = dict[Form, PublishTemplate | OriginalSize]

__all__ = ["Packer", "joined"]

#: The keys of direct reply-to, which is no queue: RabbitMQ returns a mandatory reply although it delivers it.
_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to."
#: How many routing keys, templates and repeated options keep their frames.
_KEPT: Final = 1024
#: Larger properties are packed for each message, so what is kept takes a few MiB at the most.
_LARGEST_KEPT: Final = 4096


class Packer:
    """Packs the messages of one producer.

    Args:
        settings: The producer's options.
        encoder: Its serializer and compressor.
        encode: Encodes a value by them, when all bodies have one form.

    Attributes:
        frame_max: The negotiated limit of the connection; 0 before the producer is open.
        frames: Frames by routing key or by repeated options, when all bodies have one form.
    """

    def __init__(self, settings: ProducerSettings, encoder: BodyEncoder, encode: Callable[[Any], bytes]) -> None:
        self.frame_max = 0
        self.frames: dict[object, PublishTemplate] = {}
        self._frames_by_form: dict[object, FramesByForm] = {}
        self._settings = settings
        self._encoder = encoder
        self._encode = encode

    def pack(self, value: Any, routing_key: str | Template, options: PublishOptions) -> tuple[PublishTemplate, bytes]:
        """Packs a message.

        Args:
            value: What the serializer takes.
            routing_key: The routing key or a template.
            options: As the publish methods take them.

        Returns:
            Its frames and its body.

        Raises:
            EncodeFailed: The value, the routing key or an option does not fit.
            ConfigurationError: There is no such option.
            PublishError: The producer is not open.
        """
        if self._encoder.form is None:
            return self._pack_form(value, routing_key, options)
        frames = self._frames_of(routing_key, options, self._encoder.form)
        given = None if frames.misfit is None else self._encoder.given(value, frames.misfit)
        return frames, self._encode(value) if given is None else given

    def check(self, routing_key: str | Template, options: PublishOptions) -> PublishTemplate | None:
        """Validates a routing key and options.

        Returns:
            Their frames when all bodies have one form, or None.

        Raises:
            EncodeFailed: As `pack`.
            ConfigurationError: As `pack`.
            PublishError: As `pack`.
        """
        if self._encoder.form is not None:
            return self._frames_of(routing_key, options, self._encoder.form)
        self._make(*joined(routing_key, options), Form(""))
        return None

    def raw(self, routing_key: str, raw_properties: bytes) -> PublishTemplate:
        """Makes the frames of a message whose properties are packed already."""
        return self._make(routing_key, {}, Form(""), raw_properties, timed=False)

    def check_open(self) -> None:
        """Raises when the producer was never open.

        Raises:
            PublishError: The outcome is NOT_SENT.
        """
        if not self.frame_max:
            raise PublishError("the producer is not open; use `async with`", outcome=Outcome.NOT_SENT)

    # ------------------------------------------------------------------ bodies of one form

    def _frames_of(self, routing_key: str | Template, options: PublishOptions, form: Form) -> PublishTemplate:
        if not options and isinstance(routing_key, Template):
            frames = routing_key.frames_for(self._encoder)
            if frames is not None:
                return frames
        key = _key(routing_key, options)
        frames = self.frames.get(key) if key is not None else None
        if frames is None:
            frames = self._make(*joined(routing_key, options), form)
            if key is not None and len(frames.raw_properties) <= _LARGEST_KEPT:
                _keep(self.frames, key, frames)
        return frames

    # ------------------------------------------------------------------ bodies of several forms

    def _pack_form(
        self, value: Any, routing_key: str | Template, options: PublishOptions
    ) -> tuple[PublishTemplate, bytes]:
        """Packs a message whose body has one of several forms; keeps its frames by that form."""
        kept_under = _key(routing_key, options)
        forms = self._frames_by_form.get(kept_under) if kept_under is not None else None
        key, options = joined(routing_key, options)
        encoding = options.get("content_encoding")
        misfit = self._misfit(options)
        body, form, original_size = self._encoder.pack(value, compress=encoding is None, misfit=misfit)
        kept = forms.get(form) if forms is not None else None
        if isinstance(kept, PublishTemplate):
            return kept, body
        if kept is not None:
            return self._make(key, options, form, kept.of(original_size)), body
        sized = original_size >= 0
        frames = self._make(key, options, form, self._properties(options, form, original_size) if sized else None)
        if kept_under is not None and len(frames.raw_properties) <= _LARGEST_KEPT:
            if forms is None:
                forms = {}
                _keep(self._frames_by_form, kept_under, forms)
            forms[form] = OriginalSize(lambda size: self._properties(options, form, size)) if sized else frames
        return frames, body

    # ------------------------------------------------------------------ making frames

    def _properties(self, options: PublishOptions, form: Form, original_size: int | None = None) -> bytes:
        defaults: dict[str, Any] = {"content_type": form.content_type, "delivery_mode": self._settings.delivery_mode}
        if original_size is None:
            return pack_properties(options, **defaults)
        compressed: PublishOptions = {
            **options,
            "content_encoding": form.content_encoding,
            "headers": {**(options.get("headers") or {}), ORIGINAL_SIZE: FieldValue("l", original_size)},
        }
        return pack_properties(compressed, **defaults)

    def _make(
        self,
        routing_key: str,
        options: PublishOptions,
        form: Form,
        raw_properties: bytes | None = None,
        *,
        timed: bool = True,
    ) -> PublishTemplate:
        self.check_open()
        mandatory: object = options.get("mandatory", self._settings.mandatory)
        if not isinstance(mandatory, bool):
            raise EncodeFailed(f"mandatory is True or False, not {type(mandatory).__name__}")
        exchange = _text("exchange", options.get("exchange", self._settings.exchange))
        routing_key = _text("routing_key", routing_key)
        if not exchange and routing_key.startswith(_DIRECT_REPLY):
            mandatory = False
        return PublishTemplate(
            exchange,
            routing_key,
            self._properties(options, form) if raw_properties is None else raw_properties,
            mandatory=mandatory,
            frame_max=self.frame_max,
            misfit=self._misfit(options),
            timed=timed and self._settings.sent_at_header,
        )

    def _misfit(self, options: PublishOptions) -> str | None:
        """Compares the content type and encoding of these options with the serializer's; see `BodyEncoder.misfit`."""
        if "content_type" in options or "content_encoding" in options:
            return self._encoder.misfit(options.get("content_type"), options.get("content_encoding"))
        return None


def joined(routing_key: str | Template, options: PublishOptions) -> tuple[str, PublishOptions]:
    """Returns the routing key and options of a template, with these options over its own."""
    if isinstance(routing_key, Template):
        return routing_key.routing_key, {**routing_key.options, **options} if options else routing_key.options
    return routing_key, options


def _keep(cache: dict[object, Any], key: object, packed: object) -> None:
    if len(cache) >= _KEPT:
        # Probably keys that never repeat: starting over bounds the memory.
        cache.clear()
    cache[key] = packed


def _key(routing_key: str | Template, options: PublishOptions) -> object:
    """What the frames of these are kept under; None when they are not kept."""
    if not options:
        key: object = routing_key  # at run time it may be of any type
        return key if isinstance(key, str | Template) else None
    return repeats(*joined(routing_key, options))


def _text(name: str, value: object) -> str:
    """A name as plain text; members of a StrEnum are text as well."""
    if not isinstance(value, str):
        raise EncodeFailed(f"{name} is text, not {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)
