"""From bytes to messages: the frame reader."""

from __future__ import annotations

from collections import deque

from . import corpus
from .former import find


class Decode:
    """All frames of a read, in one call."""

    params = (["deliver", "publish"], list(corpus.BODY_SIZES))
    param_names = ("method", "body")
    operation = "message"
    operations = corpus.MESSAGES

    def setup(self, method: str, body: str) -> None:
        self.reader = find("FrameReader")(server=method == "publish", frame_max=corpus.FRAME_MAX)
        make = corpus.publishings if method == "publish" else corpus.deliveries
        self.data = make(corpus.MESSAGES, corpus.BODY_SIZES[body])

    def time_feed(self, method: str, body: str) -> None:
        self.reader.feed(self.data)


class DecodeSplit:
    """The same deliveries in reads of a fixed size, so that frames are cut."""

    params = (1_500, 65_536)
    param_names = ("read_bytes",)
    operation = "message"
    operations = corpus.MESSAGES

    def setup(self, read_bytes: int) -> None:
        self.reader = find("FrameReader")(frame_max=corpus.FRAME_MAX)
        data = corpus.deliveries(corpus.MESSAGES, 1024)
        self.pieces = [data[at : at + read_bytes] for at in range(0, len(data), read_bytes)]

    def time_feed(self, read_bytes: int) -> None:
        for piece in self.pieces:
            self.reader.feed(piece)


class DecodeLargeBody:
    """One body of 8 MiB, assembled from frames of 128 KiB."""

    operation = "MiB"
    operations = 8

    def setup(self) -> None:
        self.reader = find("FrameReader")(frame_max=corpus.FRAME_MAX)
        data = corpus.deliveries(1, 8 * 1024 * 1024)
        self.pieces = [data[at : at + 262_144] for at in range(0, len(data), 262_144)]

    def time_feed(self) -> None:
        for piece in self.pieces:
            self.reader.feed(piece)


#: The largest size of each, in bytes.
_BODIES = {
    "64 KiB": 65_536,
    "256 KiB": 262_144,
    "166 to 256 KiB": 262_144,
    "1 MiB": 1_048_576,
    "0.65 to 1 MiB": 1_048_576,
    "4 MiB": 4_194_304,
    "2.6 to 4 MiB": 4_194_304,
}


class DecodeBodyViews:
    """Bodies of one size, or from 0.65 of it to all of it, as bytes or as views of pooled memory; the latest are held.

    One reader serves all samples, as on a connection, so the state of malloc after earlier bodies counts.
    """

    params = (["bytes", "views"], list(_BODIES), [0, 8])
    param_names = ("form", "body", "held")
    operation = "message"
    operations = 8

    def setup(self, form: str, body: str, held: int) -> None:
        self.reader = find("FrameReader")(frame_max=corpus.FRAME_MAX)
        if form == "views":
            if not hasattr(self.reader, "view_bodies"):
                raise NotImplementedError("this version has no views of bodies")
            self.reader.view_bodies(1, 1)
        largest = _BODIES[body]
        sizes = [largest - (i * largest // 20 if "to" in body else 0) for i in range(self.operations)]
        self.pieces: list[bytes] = []
        for data in (corpus.deliveries(1, size) for size in sizes):
            self.pieces += [data[at : at + 262_144] for at in range(0, len(data), 262_144)]
        self.bodies: deque[object] = deque(maxlen=held)
        self.time_feed(form, body, held)

    def time_feed(self, form: str, body: str, held: int) -> None:
        keep = self.bodies.append
        for piece in self.pieces:
            for run in self.reader.feed(piece):
                keep(run.messages[0].body)


class DecodeConfirms:
    """basic.ack methods, each for one message."""

    operation = "confirm"
    operations = corpus.MESSAGES

    def setup(self) -> None:
        self.reader = find("FrameReader")()
        self.data = corpus.confirms(corpus.MESSAGES)

    def time_feed(self) -> None:
        self.reader.feed(self.data)


class Tables:
    """Field tables, both ways."""

    params = tuple(corpus.TABLES)
    param_names = ("table",)
    operation = "table"
    operations = 1

    def setup(self, table: str) -> None:
        self.table = corpus.TABLES[table]
        self.encode, self.decode = find("encode_table"), find("decode_table")
        self.raw = self.encode(self.table)

    def time_encode(self, table: str) -> None:
        self.encode(self.table)

    def time_decode(self, table: str) -> None:
        self.decode(self.raw)


class Properties:
    """Message properties, both ways."""

    params = tuple(corpus.PROPERTIES)
    param_names = ("properties",)
    operation = "message"
    operations = 1

    def setup(self, properties: str) -> None:
        self.values = corpus.PROPERTIES[properties]
        self.make, self.decode = find("Properties"), find("decode_properties")
        self.raw = self.make(**self.values).encode()

    def time_encode(self, properties: str) -> None:
        self.make(**self.values).encode()

    def time_decode(self, properties: str) -> None:
        self.decode(self.raw)
