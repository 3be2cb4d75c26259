"""Functions whose worker has a life cycle, arguments, a place in its pool, nested calls and cached programs."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from snakepit_bridge import DeadlockError, current_context, worker_info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@asynccontextmanager
async def lifespan(label: str, size: int = 1) -> AsyncIterator[dict[str, Any]]:
    yield {"label": label, "size": size, "loads": 0}
    print("left", label, flush=True)


async def process_exit() -> None:
    print("exit of", worker_info().index, flush=True)


def settings() -> list[Any]:
    """Return the arguments of the adapter."""
    process = current_context().process
    return [process.label, process.size]


def place() -> dict[str, Any]:
    """Return the place of the worker, and the variables of libraries."""
    info = worker_info()
    variables = {name: os.environ.get(name) for name in _THREADS}
    return {"pool": info.pool, "index": info.index, "count": info.count, "gpu": info.gpu, **variables}


def double(x: int) -> int:
    return 2 * x


def fail(text: str) -> None:
    raise LookupError(text)


def call(name: str, arguments: dict[str, Any]) -> Any:
    """Call another tool."""
    return current_context().call_tool(name, **arguments)


async def call_later(name: str, arguments: dict[str, Any]) -> Any:
    """Call another tool without blocking the event loop."""
    return await current_context().call_tool_async(name, **arguments)


def count(n: int) -> Iterator[int]:
    """Stream numbers."""
    yield from range(n)
    if n == 3:
        raise LookupError("no more")


def sum_of(n: int, limit: int = 100) -> int:
    """Add up the results of a tool that streams."""
    total = 0
    with current_context().stream_tool("count", n=n) as numbers:
        for number in numbers:
            if number >= limit:
                break
            total += number
    return total


async def sum_later(n: int) -> int:
    """Add up the results without blocking the event loop."""
    return sum([number async for number in current_context().stream_tool("count", n=n)])


def call_once_there(path: str, name: str, arguments: dict[str, Any]) -> Any:
    """Wait for a file, and call another tool."""
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)
    return current_context().call_tool(name, **arguments)


def descend(depth: int) -> int:
    """Call this tool again until ``depth`` is 0."""
    return 0 if depth == 0 else 1 + int(current_context().call_tool("descend", depth=depth - 1))


def descend_safely(depth: int) -> str:
    """Return the error of a call chain that is too long."""
    try:
        return str(current_context().call_tool("descend", depth=depth))
    except DeadlockError as error:
        return f"DeadlockError({error.may_have_run}): {error}"


def store(value: int) -> None:
    """Store a program."""
    current_context().global_programs["model"] = pickle.dumps(value)


def use() -> list[int]:
    """Return the program and the number of times that this worker has loaded it."""
    context = current_context()

    def loads(data: bytes) -> Any:
        context.process.loads += 1
        return pickle.loads(data)

    return [context.global_programs.cached("model", loads), context.process.loads]


if __name__ == "__main__":
    sys.exit("serve this file: snakepit serve living.py")
