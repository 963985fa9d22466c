from decimal import Decimal

import leveret
from pydantic import BaseModel, Field


class Order(BaseModel):
    id: int
    total: Decimal = Field(gt=0)


async def main() -> None:
    async with leveret.connect("amqp://guest:guest@127.0.0.1:35339") as client:
        await client.declare(leveret.Topology().queue("orders"))
        async with client.producer(serializer="pydantic") as producer:
            await producer.publish(Order(id=1, total=Decimal("9.90")), "orders")
        async for message in client.consumer("orders", Order):
            print(message.value)
            message.ack()
            break


leveret.run(main())
