"""Publishing, confirms and acknowledgements in bulk."""

from __future__ import annotations

from . import corpus
from .former import channel_deliveries, discarding_buffer, find, template_maker


class PublishEncode:
    """Frames of publishings into blocks; a full block is taken and dropped, as a transport would send it."""

    params = tuple(corpus.BODY_SIZES)
    param_names = ("body",)
    operation = "message"
    operations = corpus.MESSAGES

    def setup(self, body: str) -> None:
        self.out = discarding_buffer()
        self.batch = find("PublishBatch")(self.out, None)
        self.template = template_maker()(corpus.EXCHANGE.decode(), corpus.ROUTING_KEY.decode(), corpus.RAW_PROPERTIES)
        self.bodies = [bytes(corpus.BODY_SIZES[body])] * corpus.MESSAGES

    def time_add(self, body: str) -> None:
        add, template = self.batch.add, self.template
        for one in self.bodies:
            add(template, one)


class Template:
    """Packing the frames of a new routing key."""

    operation = "template"
    operations = 1

    def setup(self) -> None:
        self.make = template_maker()

    def time_make(self) -> None:
        self.make("orders", "order.created", corpus.RAW_PROPERTIES)


class Confirms:
    """Confirms of a full window; setup publishes again before each sample."""

    params = ("one by one", "multiple of 100", "one multiple", "nacked one by one")
    param_names = ("confirms",)
    operation = "message"
    operations = 20 * corpus.MESSAGES
    number = 1

    def setup(self, confirms: str) -> None:
        self.window, self.ticket = find("ConfirmWindow")(), find("Ticket")()
        self.ticket.observed = True
        batch = find("PublishBatch")(discarding_buffer(), self.window)
        template = template_maker()("orders", "order.created")
        for _ in range(self.operations):
            batch.add(template, b"", self.ticket)
        tags = range(1, self.operations + 1)
        match confirms:
            case "multiple of 100":
                entries = [(tag, True, False, False) for tag in tags[99::100]]
            case "one multiple":
                entries = [(tags[-1], True, False, False)]
            case _:
                entries = [(tag, False, confirms.startswith("nacked"), False) for tag in tags]
        self.run = find("SettlementRun").of(1, entries)

    def time_settle(self, confirms: str) -> None:
        self.window.settle(self.run)


class PublishAndConfirm:
    """1,000 publishings with a ticket for all of them, as a batch has, then one acknowledgement for all."""

    operation = "message"
    operations = corpus.MESSAGES

    def setup(self) -> None:
        self.window = find("ConfirmWindow")()
        self.batch = find("PublishBatch")(discarding_buffer(), self.window)
        self.template = template_maker()("orders", "order.created", corpus.RAW_PROPERTIES)
        self.bodies = [bytes(1024)] * corpus.MESSAGES
        self.new_ticket = find("Ticket")
        self.everything = find("SettlementRun").of(1, [(0, True, False, False)])

    def time_publish_and_confirm(self) -> None:
        add, template, ticket = self.batch.add, self.template, self.new_ticket()
        for index, body in enumerate(self.bodies):
            add(template, body, ticket, index)
        self.window.settle(self.everything)


class Acks:
    """Tracks deliveries, acknowledges them one by one, and writes basic.ack; setup makes new ones for each sample."""

    params = ("in order", "backwards", "one is slow")
    param_names = ("order",)
    operation = "message"
    operations = 20 * corpus.MESSAGES
    number = 1

    def setup(self, order: str) -> None:
        self.deliveries = channel_deliveries()
        reader = find("FrameReader")(frame_max=corpus.FRAME_MAX)
        (self.run,) = reader.feed(corpus.deliveries(self.operations, 0))
        tags = [message.delivery_tag for message in self.run.messages]
        self.hundreds = [tags[at : at + 100] for at in range(0, len(tags), 100)]
        if order == "backwards":
            self.hundreds = [hundred[::-1] for hundred in self.hundreds]
        elif order == "one is slow":
            self.hundreds[-1].append(self.hundreds[0].pop(0))

    def time_ack_and_flush(self, order: str) -> None:
        acks, flush = self.deliveries.acks, self.deliveries.flush
        acks.delivered(self.run)
        ack = acks.ack
        for hundred in self.hundreds:
            for tag in hundred:
                ack(tag)
            flush()
