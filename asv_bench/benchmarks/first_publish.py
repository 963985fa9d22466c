"""Scripts that connect, publish one persistent JSON message, wait for its confirm and close, each with another client.

Each takes the URL of a broker that has the queue `q`, and runs in a process of its own.
"""

from __future__ import annotations

__all__ = ["PROGRAMS"]

_LEVERET = """
import sys
import leveret

async def main():
    async with leveret.connect(sys.argv[1]) as client, client.producer() as producer:
        await producer.publish({"id": 1}, "q")

leveret.run(main())
"""

_PIKA = """
import json, sys
import pika

connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.confirm_delivery()
properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
channel.basic_publish("", "q", json.dumps({"id": 1}).encode(), properties, mandatory=True)
connection.close()
"""

_AIO_PIKA = """
import asyncio, json, sys
import aio_pika

async def main():
    async with await aio_pika.connect_robust(sys.argv[1]) as connection:
        channel = await connection.channel()
        body = json.dumps({"id": 1}).encode()
        message = aio_pika.Message(body, content_type="application/json", delivery_mode=2)
        await channel.default_exchange.publish(message, "q")

asyncio.run(main())
"""

#: The scripts by the module that each needs.
PROGRAMS = {"leveret": _LEVERET, "pika": _PIKA, "aio_pika": _AIO_PIKA}
