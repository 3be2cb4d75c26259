"""The event loop of a worker, created when the first coroutine runs. See :class:`EventLoop`."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _owner
from snakepit_bridge._failures import BrokenRuntimeError
from snakepit_bridge._owner import OWNER, WORKER
from snakepit_bridge._watches import Watches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from types import FrameType

    from snakepit_bridge._native import ChunkSink

#: The open loops of this package.
_LOOPS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[RunningLoop]] = weakref.WeakKeyDictionary()

#: Worker tasks on other loops. asyncio itself only has weak references to tasks.
_TASKS_ON_OTHER_LOOPS: set[asyncio.Task[Any]] = set()

#: The time within which cancelled tasks must end, in seconds.
_END_WITHIN = 2.0

#: The maximum number of warnings about coroutine functions that leave tasks behind, and of those about callbacks.
_MAX_WARNINGS = 100

#: The maximum number of turns for callbacks that a call left behind, because they may schedule more.
_MAX_TURNS = 10

#: The method that runs a callback. Its frame shows the owner of a callback whose exception left the loop.
_RUN_CALLBACK = asyncio.Handle._run.__code__


class _FromThread(functools.partial[Any]):
    """A callback that another thread scheduled. A worker task may wait for it."""


class RunningLoop:
    """Runs the awaitables of one call at a time, and cleans up after each call."""

    def __init__(
        self,
        on_worker_task: Callable[[], object] | None = None,
        context: contextvars.Context | None = None,
        modules: frozenset[str] = frozenset(),
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._on_worker_task = on_worker_task
        self._task: asyncio.Future[Any] | None = None
        #: Whether `run` is running, which cancels its task instead of being interrupted.
        self._is_running = False
        self._is_cancel_requested = False
        self._is_cancel_delivered = False
        #: The callback that ran at the last interrupt. See `_callback_at`.
        self._interrupted_callback: object | None = None
        #: The context of the current call, once it has run a coroutine, and the owner of its tasks.
        self._context: contextvars.Context | None = None
        self._owner: object | None = None
        self._worker_context = contextvars.copy_context() if context is None else context.copy()
        self._worker_context.run(OWNER.set, WORKER)
        #: Tasks that outlive calls.
        self._worker_tasks: set[asyncio.Task[Any]] = set()
        self._warned: set[object] = set()
        self._report_count = 0
        # The type of a task factory differs between Python versions.
        factory: Any = self._make_task
        self._loop.set_task_factory(factory)
        _LOOPS[self._loop] = weakref.ref(self)
        self._watches = Watches(self._loop, modules)
        loop: Any = self._loop
        loop.call_soon_threadsafe = functools.partial(
            _schedule_from_any_thread, threading.get_ident(), loop.call_soon_threadsafe
        )
        self._remember()

    def run(self, awaitable: Awaitable[Any], *, keep_tasks: bool = False) -> Any:
        """See :meth:`EventLoop.run`."""
        loop = self._loop
        self._is_cancel_requested = self._is_cancel_delivered = False
        self._is_running = True
        try:
            # A tool that ran its own loop leaves the thread without one.
            try:
                asyncio.set_event_loop(loop)
            except Exception as error:
                raise _broken(error) from error
            task = self._task = self._start(awaitable, self._worker_context if keep_tasks else self._call_context())
            _owner.running = WORKER if keep_tasks else self._owner
            if self._is_cancel_requested:
                # The interrupt came before the task existed.
                loop.call_soon(self._cancel, task)
            self._run_until_done(task)
        except BaseException:
            # An exception left the loop: SystemExit in a callback of the call, or an interruption outside the task. If
            # the task has ended, its result counts. Otherwise, it must not run in the next call.
            if self._task is None:
                raise
            if not self._task.done():
                self._task.cancel()
                self._run_until_done(self._task)
                raise
        finally:
            self._task = self._interrupted_callback = _owner.running = None
            self._is_running = False
            if keep_tasks:
                self._remember()
                if self._has_work():
                    self._notify_worker_task()
        return task.result()

    def end_call(self, may_wait: bool = True) -> bool | None:
        """See :meth:`EventLoop.end_call`."""
        loop = self._loop
        if loop.is_closed():
            # The next coroutine creates a new loop.
            self._context = self._owner = None
            return True
        self._restore()
        leftovers = {task for task in asyncio.all_tasks(loop) if task not in self._worker_tasks}
        # Without worker tasks, every open generator belongs to the call.
        generators = [] if self._worker_tasks else list(getattr(loop, "_asyncgens", ()))
        if not may_wait and (leftovers or generators):
            return None
        ended = True
        _owner.running = self._owner
        try:
            if leftovers or generators:
                ended = self._end(leftovers, generators)
            self._end_callbacks()
        finally:
            self._context = self._owner = _owner.running = None
        return ended

    def turn(self) -> float | None:
        """See :meth:`EventLoop.turn`."""
        loop: Any = self._loop
        if loop.is_closed():
            return None
        # An owner that differs from those of all calls, so that output is not attributed to a call.
        _owner.running = self
        try:
            self._turn()
        finally:
            _owner.running = None
        # Loops of other implementations do not show their callbacks, so they are polled.
        ready, scheduled = getattr(loop, "_ready", None), getattr(loop, "_scheduled", None)
        if ready is None or scheduled is None:
            return 0.01
        if ready:
            return 0.0
        return max(0.0, scheduled[0].when() - loop.time()) if scheduled else None

    def fileno(self) -> int:
        """See :meth:`EventLoop.fileno`."""
        selector = getattr(self._loop, "_selector", None)
        fileno = getattr(selector, "fileno", None)
        return -1 if fileno is None or self._loop.is_closed() else int(fileno())

    def interrupt(self, frame: FrameType | None) -> bool | None:
        """See :meth:`EventLoop.interrupt`."""
        if not self._is_running:
            return False
        task, previous = self._task, self._interrupted_callback
        if task is not None and task.done():
            return None
        callback = self._interrupted_callback = _callback_at(frame)
        if not self._is_cancel_requested:
            self._is_cancel_requested = True
            if task is not None:
                self._loop.call_soon_threadsafe(self._cancel, task)
            return True
        # A callback that still runs blocks the loop. Then only an exception can end the call.
        is_blocked = callback is not None and callback is previous
        return True if self._is_cancel_delivered else False if is_blocked else None

    def start_worker_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task that outlives the call."""
        self._notify_worker_task()
        return self._loop.create_task(coroutine, context=self._worker_context.copy())

    def is_closed(self) -> bool:
        """Return whether a tool closed the loop."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Cancel the remaining tasks and close the loop."""
        loop = self._loop
        _LOOPS.pop(loop, None)
        if loop.is_closed():
            return
        self._worker_tasks = set()
        self._end(asyncio.all_tasks(loop), [], warn=False)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    def _call_context(self) -> contextvars.Context:
        """Return the context that all coroutines of a call share, including `initialize` and `cleanup`."""
        if self._context is None:
            self._owner = object()
            self._context = contextvars.copy_context()
            self._context.run(OWNER.set, self._owner)
        return self._context

    def _start(self, awaitable: Awaitable[Any], context: contextvars.Context) -> asyncio.Future[Any]:
        if asyncio.iscoroutine(awaitable):
            return self._loop.create_task(awaitable, context=context)
        return context.run(asyncio.ensure_future, awaitable, loop=self._loop)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """Create a task. Record it as a worker task if the worker or a worker task starts it."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        context = options.get("context")
        if (OWNER.get() if context is None else context.get(OWNER)) is WORKER:
            self._worker_tasks.add(task)
            task.add_done_callback(self._worker_tasks.discard)
        return task

    def _notify_worker_task(self) -> None:
        if self._on_worker_task is not None:
            self._on_worker_task()

    def _has_work(self) -> bool:
        """Return whether the loop has work although no coroutine runs."""
        loop: Any = self._loop
        selector = getattr(loop, "_selector", None)
        # The loop itself uses one descriptor.
        watched = len(selector.get_map()) > 1 if selector is not None else True
        return bool(self._worker_tasks or watched or getattr(loop, "_scheduled", True))

    def _remember(self) -> None:
        """Record the current settings of the loop as those to restore after calls."""
        loop = self._loop
        self._settings = (loop.get_exception_handler(), loop.get_task_factory(), loop.get_debug())
        self._slow_callback_duration = getattr(loop, "slow_callback_duration", None)
        self._executor = getattr(loop, "_default_executor", None)

    def _restore(self) -> None:
        loop: Any = self._loop
        handler, factory, debug = self._settings
        if loop.get_exception_handler() is not handler:
            loop.set_exception_handler(handler)
        if loop.get_task_factory() is not factory:
            loop.set_task_factory(factory)
        if loop.get_debug() != debug:
            loop.set_debug(debug)
        if self._slow_callback_duration is not None:
            loop.slow_callback_duration = self._slow_callback_duration
        executor = getattr(loop, "_default_executor", None)
        if getattr(loop, "_executor_shutdown_called", False):
            loop._executor_shutdown_called = False
            loop._default_executor = None
        elif executor is not self._executor:
            if getattr(executor, "_thread_name_prefix", None) == "asyncio":
                # The default executor of the loop, created on first use.
                self._executor = executor
            else:
                loop._default_executor = self._executor

    def _end(self, tasks: set[asyncio.Task[Any]], generators: list[Any], *, warn: bool = True) -> bool:
        for task in tasks:
            if warn and not task.cancelling():
                self._warn(task)
            task.cancel()
        closing = [self._loop.create_task(_close(generator)) for generator in generators]
        if not tasks and not closing:
            return True
        waiting = asyncio.wait([*tasks, *closing], timeout=_END_WITHIN)
        waiter = self._loop.create_task(waiting)
        while not waiter.done():
            try:
                self._run_until_done(waiter)
            except BaseException as error:
                # The task has ended with this exception.
                sys.stderr.write(f"snakepit: a task that its call left behind ended with {type(error).__name__}\n")
        _, pending = waiter.result()
        for task in pending:
            sys.stderr.write(
                f"snakepit: {_description(task)} was cancelled with its call and has not ended within {_END_WITHIN:g} "
                "s; the worker is replaced\n"
            )
        for task in (*tasks, *closing):
            # Retrieves exceptions, so that asyncio does not log them.
            if task.done() and not task.cancelled():
                task.exception()
        return not pending

    def _end_callbacks(self) -> None:
        """Cancel the call's timers and callbacks, and remove its watches of descriptors and signals."""
        loop: Any = self._loop
        if self._watches.is_foreign:
            loop.call_soon(self._watches.end_call)
        else:
            self._watches.end_call()
        if getattr(loop, "_scheduled", None):
            self._cancel_timers()
        for _ in range(_MAX_TURNS):
            # Loops of other implementations do not show their callbacks, so they get one turn.
            ready = getattr(loop, "_ready", None)
            if ready is not None and not ready:
                return
            if ready is not None and all(handle._context.get(OWNER) is WORKER for handle in ready):
                return
            self._turn()
            self._cancel_timers()
            if ready is None:
                return
        for handle in loop._ready:
            if not _survives_call(handle):
                handle.cancel()

    def _cancel_timers(self) -> None:
        loop: Any = self._loop
        timers = getattr(loop, "_scheduled", None)
        if not timers:
            return
        kept = []
        for handle in timers:
            if not handle.cancelled() and handle._context.get(OWNER) is WORKER:
                kept.append(handle)
            else:
                handle.cancel()
                handle._scheduled = False
        if len(kept) < len(timers):
            heapq.heapify(kept)
            timers[:] = kept
            loop._timer_cancelled_count = 0

    def _turn(self) -> None:
        loop = self._loop
        loop.call_soon(loop.stop)
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            self._report(error)

    def _report(self, error: BaseException) -> None:
        self._report_count += 1
        if self._report_count <= _MAX_WARNINGS:
            sys.stderr.write(
                f"snakepit: {error!r} is ignored: the callback that raised it does not belong to the running call\n"
            )

    def _warn(self, task: asyncio.Task[Any]) -> None:
        coroutine = task.get_coro()
        kind = getattr(coroutine, "cr_code", None)
        # asyncio itself closes abandoned generators, in tasks without `cr_code`.
        if kind is None or kind in self._warned or len(self._warned) >= _MAX_WARNINGS:
            return
        self._warned.add(kind)
        sys.stderr.write(
            f"snakepit: {_description(task)} was still running when its call ended, and is cancelled; await it in the "
            "call, or start it with `snakepit_bridge.worker_task` if it is to live as long as the worker\n"
        )

    def _cancel(self, task: asyncio.Future[Any]) -> None:
        if not self._is_cancel_delivered:
            self._is_cancel_delivered = True
            task.cancel()

    def _run_until_done(self, task: asyncio.Future[Any]) -> None:
        loop = self._loop

        def stop(_: object) -> None:
            loop.stop()

        # Like `run_until_complete`, but without its frames in the traceback of a failure.
        task.add_done_callback(stop)
        try:
            # A tool, or a call that ended with SystemExit, may stop the loop.
            while not task.done():
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as error:
                    if task.done() or _owner_of(error) is _owner.running:
                        raise
                    # The exception belongs to an earlier call or to the worker.
                    self._report(error)
        except Exception as error:
            # Exceptions of tasks and callbacks do not leave the loop.
            raise _broken(error) from error
        finally:
            task.remove_done_callback(stop)


#: The method that runs the loop. Frames above it belong to the loop and its callbacks.
_RUN_LOOP = RunningLoop._run_until_done.__code__


def _callback_at(frame: FrameType | None) -> object | None:
    """Return the callback that this frame belongs to, such as a step of a task. ``None`` for code of the loop itself.

    For loops of other implementations, return the first frame of the callback.
    """
    if _is_loop_code(frame):
        return None
    outermost = None
    while frame is not None and frame.f_code is not _RUN_LOOP:
        if frame.f_code is _RUN_CALLBACK:
            callback: object = frame.f_locals["self"]
            return callback
        outermost, frame = frame, frame.f_back
    return None if _is_loop_code(outermost) else outermost


def _is_loop_code(frame: FrameType | None) -> bool:
    """Return whether the code of the loop runs. It does not block, and an exception would damage the loop."""
    # Other blocking code uses this module, too, such as `subprocess.run`.
    while frame is not None and frame.f_globals.get("__name__") == "selectors":
        frame = frame.f_back
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name == __name__ or name.partition(".")[0] == "asyncio"


def worker_task(coroutine: Coroutine[Any, Any, Any], name: str | None) -> asyncio.Task[Any]:
    """See :func:`snakepit_bridge.worker_task`."""
    loop = asyncio.get_running_loop()
    reference = _LOOPS.get(loop)
    running = None if reference is None else reference()
    if running is None:
        task: asyncio.Task[Any] = loop.create_task(coroutine)
        _TASKS_ON_OTHER_LOOPS.add(task)
        task.add_done_callback(_TASKS_ON_OTHER_LOOPS.discard)
    else:
        task = running.start_worker_task(coroutine)
    if name is not None:
        task.set_name(name)
    return task


async def drain(items: AsyncIterator[Any], sink: ChunkSink) -> None:
    """Pull an async generator into a sink, until its end or until the reader closes the stream."""
    async for item in items:
        put = sink.put(item)
        if put is None:
            return
        if not put:
            loop = asyncio.get_running_loop()
            # A thread waits, so that the loop remains responsive to cancellation.
            if not await loop.run_in_executor(None, sink.space().wait):
                return


def _schedule_from_any_thread(
    thread: int, schedule: Callable[..., asyncio.Handle], callback: Callable[..., Any], *args: Any, **options: Any
) -> asyncio.Handle:
    """Schedule a callback with `schedule`, from any thread. `thread` is the loop's thread."""
    if threading.get_ident() != thread:
        callback = _FromThread(callback)
    return schedule(callback, *args, **options)


def _survives_call(handle: Any) -> bool:
    """Return whether a callback survives the end of a call, as those of the worker and of other threads do."""
    owner = handle._context.get(OWNER)
    if owner is not None:
        return owner is WORKER
    callback = handle._callback
    # The second case is a step of a task that another thread started. Cancelling it would leave the task pending
    # forever.
    return isinstance(callback, _FromThread) or isinstance(getattr(callback, "__self__", None), asyncio.Task)


def _broken(error: Exception) -> BrokenRuntimeError:
    return BrokenRuntimeError(f"the event loop is broken: {type(error).__name__}: {error}")


def _owner_of(error: BaseException) -> object | None:
    """Return the owner of the callback that raised an exception."""
    frames = error.__traceback__
    while frames is not None:
        if frames.tb_frame.f_code is _RUN_CALLBACK:
            context: contextvars.Context = frames.tb_frame.f_locals["self"]._context
            return context.get(OWNER)
        frames = frames.tb_next
    return None


async def _close(generator: Any) -> None:
    await generator.aclose()


def _description(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
    code = getattr(coroutine, "cr_code", None)
    where = "" if code is None else f", {code.co_filename}:{code.co_firstlineno}"
    return f"task `{task.get_name()}` ({name}{where})"
