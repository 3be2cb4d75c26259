"""Answers a call on a worker that runs several calls, with the result of its tool: a value or a stream."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from snakepit_bridge._readiness import until_done

if TYPE_CHECKING:
    from collections.abc import Callable

    from snakepit_bridge._native import ChunkSink, ConcurrentCall

#: The number of items after which an async generator that never waits lets other calls run.
_ITEMS_PER_TURN = 16


async def finish(call: ConcurrentCall, result: Any, open_streams: list[Any]) -> None:
    """Answer a call with the result of its tool. Add a stream that must be closed to `open_streams`."""
    if not _is_stream(result):
        result = await resolved(result)
    if not call.is_streaming:
        if not call.set_result(result):
            open_streams.append(result)
        return
    if not _is_stream(result):
        call.put_result(result)
        return
    open_streams.append(result)
    sink = _open_stream(call)
    if hasattr(type(result), "__anext__"):
        count = 0
        async for item in result:
            if not await _put(sink, item):
                break
            count += 1
            if count % _ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)
    else:
        for item in result:
            if not await _put(sink, item):
                break
            # Each step of a synchronous generator blocks the loop.
            await asyncio.sleep(0)
    call.set_complete()


def run_plain(call: ConcurrentCall, invoke: Callable[[], Any], open_streams: list[Any]) -> Callable[[], Any] | None:
    """Run a synchronous function on its thread. Return a function if the event loop must finish the call."""
    result = invoke()
    is_async = hasattr(type(result), "__await__") or hasattr(type(result), "__anext__")
    if is_async:
        return functools.partial(finish, call, result, open_streams)
    if not call.is_streaming:
        if not call.set_result(result):
            open_streams.append(result)
    elif not _is_stream(result):
        call.put_result(result)
    else:
        open_streams.append(result)
        sink = _open_stream(call)
        for item in result:
            put = sink.put(item)
            if put is None or (not put and not sink.space().wait()):
                break
        call.set_complete()
    return None


def _open_stream(call: ConcurrentCall) -> ChunkSink:
    sink = call.open_stream()
    if sink is None:
        # The caller no longer waits.
        raise asyncio.CancelledError
    return sink


async def _put(sink: ChunkSink, item: Any) -> bool:
    """Put an item into a stream, and wait while its reader is slow. Return ``False`` at the end of the stream."""
    put = sink.put(item)
    if put is False:
        await until_done(sink.ready)
    return put is not None


async def resolved(result: Any) -> Any:
    """Return the result of an awaitable, or another value unchanged."""
    return await result if hasattr(type(result), "__await__") else result


def _is_stream(result: Any) -> bool:
    kind = type(result)
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__")
