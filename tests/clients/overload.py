"""The scenario of exhausted memory for the client of the package. `unlucky.py` runs it."""

import asyncio
import tempfile
from pathlib import Path

from snakepit_bridge import OverloadedError
from snakepit_bridge.client import Client


def exhausted_memory_rejects_calls_and_ends_no_other(address: str, _: int) -> None:
    """The host rejects calls that exceed the memory of the connection, and other calls continue."""

    async def flood(client: Client, folder: Path) -> None:
        async with asyncio.timeout(60):
            paths = [folder / name for name in "ab"]
            running = [asyncio.create_task(client.call_async("sleep", seconds=2, path=str(path))) for path in paths]
            while not all(path.exists() for path in paths):
                await asyncio.sleep(0.01)
            # Both workers are busy, so these calls wait in the queue with their arguments.
            sizes = [3 << 20, 3 << 20, *[3 << 20] * 4, *[200_000] * 200, *[1] * 50]
            calls = [client.call_async("length", data=bytes(size)) for size in sizes]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert await asyncio.gather(*running) == ["slept", "slept"]
            rejected = [error for error in outcomes if isinstance(error, OverloadedError)]
            assert all(not error.may_have_run and error.retry_after for error in rejected), rejected[:3]
            assert len(rejected) > 150
            for size, outcome in zip(sizes, outcomes, strict=True):
                assert outcome == size or outcome in rejected, outcome
            # Calls of one byte need no reservation.
            assert outcomes[-50:] == [1] * 50, outcomes[-50:]

    with Client(address) as client, tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            path = Path(folder) / str(number)
            path.mkdir()
            asyncio.run(flood(client.options(idempotent=number == 1), path))
