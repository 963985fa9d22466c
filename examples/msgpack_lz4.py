"""Orders as MessagePack in LZ4 frames, after `pip install leveret leveret-msgpack leveret-lz4`."""

from __future__ import annotations

import sys

import leveret

URL = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost"
TOPOLOGY = leveret.Topology().exchange("hutch", "fanout").queue("carrots").bind("carrots", "hutch")


async def main() -> None:
    async with leveret.connect(URL) as client:
        await client.declare(TOPOLOGY)
        async with client.producer(exchange="hutch", serializer="msgpack", compressor="lz4") as producer:
            await producer.publish({"id": 1, "carrots": ["nantaise"] * 1000})
        async with client.consumer("carrots") as consumer:
            async for message in consumer:
                print(message.content_type, message.content_encoding, len(message.value["carrots"]))
                message.ack()
                break
        await client.delete_queue("carrots")
        await client.delete_exchange("hutch")


leveret.run(main())
