"""AMQP's numbers, each spelled once: class ids, method ids, argument bits and reply codes.

They are those of AMQP 0-9-1 (section 1.1 for reply codes, 1.4 to 1.9 for classes and methods) and of RabbitMQ's
extensions (basic.nack). A method id has the name of its class in front, as in the enums of the compiled modules.
`protocol.commands` has the whole catalogue with arguments and types; this module has what the code compares with.
"""

from __future__ import annotations

from typing import Final

# Classes.
CONNECTION: Final = 10
CHANNEL: Final = 20
BASIC: Final = 60

# Methods of a class.
CONNECTION_TUNE: Final = 30
CHANNEL_OPEN: Final = 10
CHANNEL_OPEN_OK: Final = 11
CHANNEL_CLOSE: Final = 40
CHANNEL_CLOSE_OK: Final = 41
BASIC_CONSUME: Final = 20
BASIC_PUBLISH: Final = 40
BASIC_RETURN: Final = 50
BASIC_DELIVER: Final = 60
BASIC_GET_OK: Final = 71
BASIC_ACK: Final = 80
BASIC_REJECT: Final = 90
BASIC_NACK: Final = 120

# Bits of an argument octet: basic.reject has `requeue` alone, basic.nack has `multiple` before it.
REJECT_REQUEUE: Final = 1
NACK_REQUEUE: Final = 2

#: AMQP 0-9-1 section 4.2.3: every peer must take frames of this size, also before connection.tune.
FRAME_MIN_SIZE: Final = 4096
#: An empty frame of type 8 on channel 0 (AMQP 0-9-1 section 4.2.7).
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

# Reply codes.
REPLY_SUCCESS: Final = 200
CONTENT_TOO_LARGE: Final = 311
NO_CONSUMERS: Final = 313
NO_ROUTE: Final = 312
CONNECTION_FORCED: Final = 320
INVALID_PATH: Final = 402
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
FRAME_ERROR: Final = 501
SYNTAX_ERROR: Final = 502
COMMAND_INVALID: Final = 503
CHANNEL_ERROR: Final = 504
UNEXPECTED_FRAME: Final = 505
RESOURCE_ERROR: Final = 506
NOT_ALLOWED: Final = 530
NOT_IMPLEMENTED: Final = 540
INTERNAL_ERROR: Final = 541

#: The names of the reply codes, as brokers write them in reply texts.
REPLY_CODES: Final[dict[int, str]] = {
    code: name for name, code in list(globals().items()) if type(code) is int and 200 <= code <= 599
}
#: The reply codes of hard errors, which close the connection; those of soft errors close the channel (section 1.1).
HARD_REPLY_CODES: Final = frozenset(
    {
        CONNECTION_FORCED,
        INVALID_PATH,
        FRAME_ERROR,
        SYNTAX_ERROR,
        COMMAND_INVALID,
        CHANNEL_ERROR,
        UNEXPECTED_FRAME,
        RESOURCE_ERROR,
        NOT_ALLOWED,
        NOT_IMPLEMENTED,
        INTERNAL_ERROR,
    }
)
