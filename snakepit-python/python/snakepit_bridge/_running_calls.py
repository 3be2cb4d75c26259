"""Runs the calls of a client: one value, a stream of values, or many calls."""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _checked, _native
from snakepit_bridge._attempts import Attempts
from snakepit_bridge.errors import SnakepitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from typing import Self

    from snakepit_bridge._call_options import CallOptions

#: The sentinel for the end of the items in `map_async`.
_END: Any = object()
#: The default number of calls that `map` runs at the same time.
CONCURRENCY = 16


def run(native: _native.HostClient, options: CallOptions, name: str, arguments: dict[str, Any]) -> Any:
    """Call a tool, wait for its result, and repeat the call as the options permit."""
    if not options.repeats:
        call = options.start(native, name, arguments, stream=False)
        if options.reports:
            options.deliver_until_ready(call, options.end())
        return call.result()
    attempts, timeout = Attempts(options), None
    while True:
        call = options.start(native, name, arguments, stream=False, timeout=timeout)
        if options.reports:
            options.deliver_until_ready(call, attempts.end)
        try:
            return call.result()
        except SnakepitError as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        time.sleep(pause)
        timeout = attempts.timeout()


async def run_async(native: _native.HostClient, options: CallOptions, name: str, arguments: dict[str, Any]) -> Any:
    """Do the same as `run`, without blocking the event loop."""
    attempts, timeout = Attempts(options), None
    while True:
        call = options.start(native, name, arguments, stream=False, timeout=timeout)
        await options.until_ready(call, attempts.end)
        try:
            return call.take_result()
        except SnakepitError as error:
            pause = attempts.pause_after(error) if options.repeats else None
            if pause is None:
                raise
        await asyncio.sleep(pause)
        timeout = attempts.timeout()


class Chunks:
    """An iterator over the values of a stream. Dropping it cancels the call."""

    def __init__(self, native: _native.HostClient, options: CallOptions, name: str, arguments: dict[str, Any]) -> None:
        self._options = options
        self._start: Callable[[float | None], _native.HostCall] = lambda timeout: options.start(
            native, name, arguments, stream=True, timeout=timeout
        )
        self._attempts = Attempts(options)
        #: Whether the call may be repeated after a failure. False after its first value.
        self._may_repeat = options.repeats
        self._call = self._start(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            if self._options.reports:
                self._options.deliver_until_ready(self._call, self._attempts.end)
            try:
                chunk = self._call.chunk()
            except SnakepitError as error:
                pause = self._attempts.pause_after(error) if self._may_repeat else None
                if pause is None:
                    raise
            else:
                self._may_repeat = False
                return chunk
            time.sleep(pause)
            self._call = self._start(self._attempts.timeout())

    def close(self) -> None:
        """Cancel the call."""
        self._may_repeat = False
        self._call.cancel()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None:
            call.cancel()


async def chunks_async(
    native: _native.HostClient, options: CallOptions, name: str, arguments: dict[str, Any]
) -> AsyncIterator[Any]:
    """Call a tool that streams its results, without blocking the event loop."""
    attempts, may_repeat = Attempts(options), options.repeats
    call = options.start(native, name, arguments, stream=True)
    try:
        while True:
            await options.until_ready(call, attempts.end)
            try:
                chunk = call.take_chunk()
            except StopIteration:
                return
            except SnakepitError as error:
                pause = attempts.pause_after(error) if may_repeat else None
                if pause is None:
                    raise
            else:
                may_repeat = False
                yield chunk
                continue
            await asyncio.sleep(pause)
            call = options.start(native, name, arguments, stream=True, timeout=attempts.timeout())
    finally:
        call.cancel()


def map_calls(
    native: _native.HostClient,
    options: CallOptions,
    name: str,
    items: Iterable[Mapping[str, Any]],
    concurrency: int,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Call a tool once for each item, and yield the results in order."""
    window = _Window(native, options, name, concurrency)
    try:
        for index, item in enumerate(items):
            window.begin(index, _arguments(index, item))
            # The source may be slow, so results do not wait for further items. One item is read for each result, which
            # keeps the window full.
            if window.is_full or window.is_ready:
                yield window.next_outcome(return_exceptions)
        while window.calls:
            yield window.next_outcome(return_exceptions)
    finally:
        window.cancel()


class _Window:
    """The calls of `map_calls` that run, or whose results are unread."""

    def __init__(self, native: _native.HostClient, options: CallOptions, name: str, concurrency: int) -> None:
        self.calls = deque[_MappedCall]()
        self._completions = _native.Completions()
        self._poll = select.poll()
        self._poll.register(self._completions.fileno(), select.POLLIN)
        self._concurrency = concurrency
        self._start: Callable[[int, dict[str, Any]], _MappedCall] = lambda index, arguments: _MappedCall(
            native, options, name, arguments, self._completions, index
        )

    def begin(self, index: int, arguments: dict[str, Any]) -> None:
        """Start a call."""
        self.calls.append(self._start(index, arguments))

    @property
    def is_full(self) -> bool:
        """Whether no further call may begin."""
        return len(self.calls) >= self._concurrency

    @property
    def is_ready(self) -> bool:
        """Whether the first call has ended. Restarts calls whose pause is over."""
        self._advance(wait=False)
        return self.calls[0].is_done

    def next_outcome(self, return_exceptions: bool) -> Any:
        """Wait for the first call, and return or raise its outcome."""
        while not self.calls[0].is_done:
            self._advance(wait=True)
        return self.calls.popleft().outcome(return_exceptions)

    def cancel(self) -> None:
        """Cancel all calls."""
        for mapped in self.calls:
            mapped.cancel()

    def _advance(self, *, wait: bool) -> None:
        now = time.monotonic()
        for mapped in self.calls:
            mapped.restart_after_pause(now)
        if self.calls[0].is_done:
            # The call failed to restart, so nothing would wake the poll.
            return
        paused = [mapped.resumes_at - now for mapped in self.calls if mapped.resumes_at is not None]
        if wait:
            # Rounded up, because `poll` takes whole milliseconds.
            self._poll.poll(None if not paused else max(min(paused), 0) * 1000 + 1)
        first = self.calls[0].index
        for key in self._completions.take():
            if key >= first:
                self.calls[key - first].advance()


class _MappedCall:
    """One of the calls of `map_calls`. All of them share one `Completions`."""

    def __init__(
        self,
        native: _native.HostClient,
        options: CallOptions,
        name: str,
        arguments: dict[str, Any],
        completions: _native.Completions,
        index: int,
    ) -> None:
        self.index = index
        self.is_done = False
        #: The time of the next attempt, during a pause.
        self.resumes_at: float | None = None
        self._options = options
        self._start: Callable[[float | None], _native.HostCall] = lambda timeout: options.start(
            native, name, arguments, stream=False, timeout=timeout
        )
        self._completions = completions
        self._attempts = Attempts(options)
        self._result: Any = None
        self._error: Exception | None = None
        self._begin(None)

    def _begin(self, timeout: float | None) -> None:
        try:
            self._call: _native.HostCall | None = self._start(timeout)
            self._wait: _native.Wait | None = self._call.ready(self._completions, self.index)
        except Exception as error:
            self._call = self._wait = None
            self._finish(error=error)

    def _finish(self, result: Any = None, error: Exception | None = None) -> None:
        self._result, self._error, self.is_done = result, error, True

    def restart_after_pause(self, now: float) -> None:
        """Start the next attempt if its pause is over."""
        if self.resumes_at is not None and now >= self.resumes_at:
            self.resumes_at = None
            self._begin(self._attempts.timeout())

    def advance(self) -> None:
        """Deliver the reports that have arrived, or take the result."""
        call = self._call
        if call is None or self.is_done or self.resumes_at is not None:
            return
        if self._options.reports and (reports := call.take_reports()):
            if not self._options.deliver(reports, self._attempts.end):
                call.ignore_reports()
            self._wait = call.ready(self._completions, self.index)
            return
        try:
            self._finish(call.take_result())
        except SnakepitError as error:
            pause = self._attempts.pause_after(error) if self._options.repeats else None
            if pause is None:
                self._finish(error=error)
            else:
                self.resumes_at = time.monotonic() + pause
        except Exception as error:
            self._finish(error=error)

    def outcome(self, return_exceptions: bool) -> Any:
        """Return the result, or return or raise the exception."""
        if self._error is None:
            return self._result
        if return_exceptions:
            return self._error
        raise self._error

    def cancel(self) -> None:
        """Cancel the call."""
        if self._call is not None:
            self._call.cancel()


async def map_async(
    call: Callable[[dict[str, Any]], Coroutine[Any, Any, Any]],
    items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    concurrency: int,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """Do the same as `map_calls`, without blocking the event loop."""
    room, received = asyncio.Semaphore(concurrency), asyncio.Queue[Any]()
    reader = asyncio.ensure_future(_read(_iterate(items), room, received))
    window = deque[asyncio.Task[Any]]()
    #: The wait for the next item. ``None`` at the end.
    pending: asyncio.Task[Any] | None = None
    index, has_ended = 0, False
    try:
        while True:
            if pending is None and not has_ended:
                pending = asyncio.ensure_future(received.get())
            # The source may be slow, so results do not wait for further items. Waits without taking a result, so that
            # only the cancellation of this task raises here.
            waits = [*([window[0]] if window else []), *([pending] if pending is not None else [])]
            if not waits:
                return
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # One item is read for each result, so that the window stays full.
            if pending is not None and pending.done():
                item, pending = pending.result(), None
                if isinstance(item, _SourceEnd):
                    if item.error is not None:
                        raise item.error
                    has_ended = True
                else:
                    window.append(asyncio.ensure_future(call(_arguments(index, item))))
                    index += 1
            if not window or not window[0].done():
                continue
            task = window.popleft()
            room.release()
            error = task.exception()
            if error is None:
                yield task.result()
            elif return_exceptions and isinstance(error, Exception):
                yield error
            else:
                raise error
    finally:
        tasks = [*window, reader, *([pending] if pending is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _SourceEnd:
    """The end of the items, with the exception that ended them."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def _read(
    source: AsyncIterator[Mapping[str, Any]], room: asyncio.Semaphore, received: asyncio.Queue[Any]
) -> None:
    """Read an item for each free place of the window.

    One task reads all items, because a generator may keep a timeout, a task group or a context variable from one item
    to the next.
    """
    error: BaseException | None = None
    try:
        while True:
            await room.acquire()
            item = await anext(source, _END)
            if item is _END:
                return
            received.put_nowait(item)
    except BaseException as raised:
        error = raised
        raise
    finally:
        received.put_nowait(_SourceEnd(error))


async def _iterate(
    items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
) -> AsyncIterator[Mapping[str, Any]]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def check_items(items: object, *, is_async: bool = False) -> None:
    """Check the items of `map`, which must not be one mapping or a string.

    Raises:
        InvalidTypeError: They are not a list of mappings.
    """
    if is_async and isinstance(items, AsyncIterable):
        return
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise _checked.wrong_type("items", items, "a list of mappings, each with the arguments of one call")


def _arguments(index: int, item: object) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise _checked.wrong_type(f"items[{index}]", item, "a mapping with the arguments of one call")
    return dict(item)
