"""The asynchronous client of docs/clients.md. The argument is the host's address."""

import asyncio
import sys

from snakepit_bridge import AsyncClient


async def main() -> None:
    async with AsyncClient(sys.argv[1]) as client:
        await client.wait_ready(timeout=30)
        print(await client.call("add", a=1, b=2.5))
        print([number async for number in client.stream("count", n=3)])
        sums = client.map("add", [{"a": 1, "b": 2}, {"a": 3, "b": 4}], concurrency=8)
        print([total async for total in sums])

        session = await client.session("bob", ttl=3600, metadata={"user": "bob"})
        await session.set("rate", 0.1)
        print(await session.update("rate", lambda rate: rate * 2))
        async with await session.watch("rate", initial=True) as updates:
            async for update in updates:
                print(update.kind, update.variable.value)
                break
        await session.delete()


asyncio.run(main())
