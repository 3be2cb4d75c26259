"""Runs several calls of a worker concurrently, each in its own task of one event loop. See :class:`ConcurrentLoop`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import sys
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _answering, _native, _owner, _signals
from snakepit_bridge._answering import finish, resolved, run_plain
from snakepit_bridge._loop_watchdog import LoopWatchdog
from snakepit_bridge._owner import OWNER, CallOwner
from snakepit_bridge._running_loop import _MAX_TURNS, RunningLoop, _callback_at
from snakepit_bridge.errors import CallCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import ThreadPoolExecutor
    from types import FrameType

    from snakepit_bridge._native import ConcurrentCall, ConcurrentCalls
    from snakepit_bridge._plan import Plan

#: The time within which the tasks that a call left behind must end, in seconds.
_TASK_END_TIMEOUT = 2.0

#: The maximum number of times that the tasks of a call are cancelled, because they may start more.
_MAX_ROUNDS = 10

#: The time between the cancellation of a call in a thread and the first exception in it, in seconds.
_INTERRUPT_DELAY = 0.1

#: The time between two exceptions in a call that does not end, in seconds.
_REPEAT_INTERVAL = 0.9


class ConcurrentLoop(RunningLoop):
    """Runs calls concurrently. Each has its own task, context variables, subtasks, timers and callbacks."""

    #: The callback that ran at the last signal, and the earliest time of the next exception in it.
    _blocking: object | None = None
    _interrupt_at = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The calls that have ended and may have left callbacks, with the number of turns for these.
        self._ended: dict[CallOwner, int] = {}
        loop: Any = self._loop
        # asyncio's `call_later` uses `call_at`.
        for name in ("call_at", "call_later") if self._watches.is_foreign else ("call_at",):
            setattr(loop, name, functools.partial(self._schedule, getattr(loop, name)))

    def serve(self, calls: ConcurrentCalls, plan: Plan) -> None:
        """Run calls until their queue is closed and all of them have ended."""
        loop = self._loop
        asyncio.set_event_loop(loop)
        runner = _CallRunner(self, calls, plan)
        # Not set to one call, because several run. The owner in the context of the code is the call of that code.
        _owner.running = runner
        try:
            main = loop.create_task(runner.run(), name="calls", context=self._worker_context.copy())
            _hide(main)
            self._run_until_done(main)
            main.result()
        finally:
            _owner.running = None
            runner.close()

    def blocking_call(self, frame: FrameType | None) -> ConcurrentCall | None:
        """Return the call that blocks the loop although it was cancelled. ``frame`` runs when a signal arrives."""
        owner = OWNER.get()
        if type(owner) is not CallOwner or not owner.is_interruptible or not owner.call.cancelled:
            return None
        callback = _callback_at(frame)
        if callback is None or _is_runtime(frame):
            return None
        if owner.is_cancelled and owner.interrupted is not callback:
            # The call cleans up after its cancellation. If it does not end, the host kills the worker.
            return None
        now = time.monotonic()
        if callback is not self._blocking:
            self._blocking, self._interrupt_at = callback, now
            return None
        if now < self._interrupt_at:
            return None
        self._interrupt_at = now + _REPEAT_INTERVAL
        owner.interrupted = callback
        if not owner.is_cancelled:
            owner.is_cancelled = True
            if owner.task is not None and asyncio.current_task(self._loop) is not owner.task:
                # The exception ends a task or callback that the call started. Its own task does not notice that.
                self._loop.call_soon(owner.task.cancel)
        return owner.call

    def end_call_of(self, owner: CallOwner) -> None:
        """Cancel the timers and callbacks of a call, and remove its watches of descriptors and signals."""
        self._watches.end_call(owner)
        owner.cancel_timers()
        # Loops of other implementations do not show their callbacks.
        if getattr(self._loop, "_ready", None):
            if not self._ended:
                self._loop.call_soon(self._end_callbacks, context=self._worker_context)
            self._ended[owner] = _MAX_TURNS

    def _end_callbacks(self) -> None:
        """Let callbacks of ended calls run for some turns, for example to close connections, and cancel the rest."""
        ended, self._ended = self._ended, {}
        loop: Any = self._loop
        rest = []
        # One pass for all of these calls.
        for handle in loop._ready:
            owner = handle._context.get(OWNER)
            turns = ended.get(owner)
            if turns:
                self._ended[owner] = turns - 1
            elif turns is not None:
                rest.append(handle)
        if rest:
            # Without the handle of its descriptor, a connection that calls share would never receive data again.
            watching = self._watches.handles()
            for handle in rest:
                if handle not in watching:
                    handle.cancel()
        if self._ended:
            loop.call_soon(self._end_callbacks, context=self._worker_context)

    def keep_running(self) -> None:
        """Make this the running loop again if a call has run another one."""
        if asyncio._get_running_loop() is not self._loop:
            asyncio._set_running_loop(self._loop)

    def restore(self) -> None:
        """Restore the settings of the loop. Called while no call runs."""
        self._blocking = None
        self._restore()
        self._watches.end_call()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = super()._make_task(loop, coroutine, **options)
        context = options.get("context")
        owner = OWNER.get() if context is None else context.get(OWNER)
        if type(owner) is CallOwner:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task

    def _schedule(
        self,
        schedule: Callable[..., asyncio.TimerHandle],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = schedule(*args, context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if type(owner) is CallOwner:
            owner.add_timer(timer, self._loop.time())
        return timer


class _CallRunner:
    """Starts the calls of the queue, cancels them, and waits for their end."""

    def __init__(self, running: ConcurrentLoop, calls: ConcurrentCalls, plan: Plan) -> None:
        self._running = running
        self._loop = running._loop
        self._calls = calls
        self._plan = plan
        self._tools = {tool.spec["name"]: tool for tool in plan.tools}
        self._base, self._prepare = calls.contexts()
        #: The running calls by id.
        self._owners: dict[int, CallOwner] = {}
        self._threads: ThreadPoolExecutor | None = None
        if plan.threads:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(plan.threads, thread_name_prefix="snakepit-tool")

    async def run(self) -> None:
        """Run calls until the queue is closed and all of them have ended."""
        self._done = self._loop.create_future()
        self._loop.add_reader(self._calls.fileno(), self._on_signal)
        self._calls.watch(LoopWatchdog(self._loop, self._calls, self._on_signal, self._running._worker_context))
        self._on_signal()
        while not self._done.done():
            # Code of a tool may cancel all tasks of the loop. Only the end of the queue ends this one.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._done])
        self._loop.remove_reader(self._calls.fileno())

    def close(self) -> None:
        """Release the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _on_signal(self) -> None:
        self._running.keep_running()
        self._calls.clear()
        for call in self._calls.cancelled():
            owner = self._owners.get(call)
            if owner is not None:
                self._cancel(owner)
        self._start_calls()

    def _start_calls(self) -> None:
        while (call := self._calls.next()) is not None:
            owner = CallOwner(call)
            serving = self._serve(owner)
            try:
                context = self._base.copy()
                context.run(OWNER.set, owner)
                if self._prepare is not None:
                    context.run(self._prepare)
                # Without the task factory of the loop, which would record it as a task that the call left behind.
                owner.task = asyncio.Task(serving, loop=self._loop, name=call.tool, context=context)
                _hide(owner.task)
            except BaseException as error:
                # No task will end the call and release its place.
                serving.close()
                call.set_failure(error)
                call.finish()
                continue
            self._owners[call.id] = owner
        if not self._owners and self._calls.is_closed() and not self._done.done():
            self._done.set_result(None)

    def _cancel(self, owner: CallOwner) -> None:
        # A call that has not begun, or whose tool has ended, notices the cancellation itself.
        if not owner.is_interruptible or owner.is_cancelled:
            return
        owner.is_cancelled = True
        if owner.thread is not None:
            self._loop.call_later(_INTERRUPT_DELAY, self._interrupt_thread, owner)
        elif owner.task is not None:
            owner.task.cancel()

    def _interrupt_thread(self, owner: CallOwner) -> None:
        """Raise an exception in the thread of a cancelled call, and repeat that until the call ends."""
        thread = owner.thread
        if thread is None or not owner.is_interruptible:
            return
        wait = _INTERRUPT_DELAY
        ident = thread.thread
        if ident is not None and self._may_interrupt(ident):
            frame = sys._current_frames().get(ident)
            owner.call.note_interruption(_signals.is_interruptible(frame, self._plan.modules))
            thread.interrupt(CallCancelled)
            wait = _REPEAT_INTERVAL
        self._loop.call_later(wait, self._interrupt_thread, owner)

    @staticmethod
    def _may_interrupt(ident: int) -> bool:
        """Return whether an exception may be raised in the code that a thread runs."""
        frame = sys._current_frames().get(ident)
        if frame is None or _is_runtime(frame) or _signals.is_importing(frame):
            return False
        error: Any = sys._current_exceptions().get(ident)
        # A tuple before Python 3.12.
        return not _signals.is_cleaning_up(error[1] if isinstance(error, tuple) else error)

    async def _serve(self, owner: CallOwner) -> None:
        call = owner.call
        try:
            if call.begin():
                await self._run(owner, call)
        except BaseException as error:
            # The cleanup was interrupted, or this module has a bug.
            call.set_failure(error)
        owner.is_interruptible = False
        self._running.keep_running()
        try:
            if owner.context is not None and self._plan.end_output is not None:
                self._plan.end_output(owner.context)
            if not call.cancelled:
                # The caller does not wait for tasks that the call left behind.
                call.answer()
            if owner.tasks and not await self._end_tasks(owner):
                call.retire("it left tasks that do not end")
            self._running.end_call_of(owner)
        except BaseException as error:
            _report(error, f"the end of tool `{call.tool}`")
        del self._owners[call.id]
        try:
            if not self._owners:
                self._running.restore()
        except BaseException as error:
            _report(error, f"the end of tool `{call.tool}`")
        call.finish()
        # The context of the task refers to its owner. Breaking this cycle frees the memory of the call immediately.
        owner.task = None
        self._start_calls()

    async def _run(self, owner: CallOwner, call: ConcurrentCall) -> None:
        inputs = call.prepare()
        if inputs is None:
            return
        kwargs, context = inputs
        owner.context = context
        plan = self._plan
        adapter: Any = None
        function: Any = None
        #: The stream of the call, until it is closed.
        open_streams: list[Any] = []
        try:
            owner.is_interruptible = True
            if call.cancelled:
                raise asyncio.CancelledError
            adapter = plan.factory()
            if plan.has_context:
                adapter.set_session_context(context)
            if plan.has_initialize:
                await resolved(adapter.initialize())
            tool = self._tools.get(call.tool)
            if tool is None:
                if plan.executes_by_name:
                    named = {"tool_name": call.tool, "arguments": kwargs, "context": context}
                    invoke = functools.partial(adapter.execute_tool, **named)
                else:
                    invoke = functools.partial(adapter.execute_tool, call.tool, kwargs, context)
                is_plain = plan.are_dynamic_plain
            else:
                function = getattr(adapter, tool.attribute)
                invoke = functools.partial(function, **kwargs)
                is_plain = tool.is_plain
            if is_plain and self._threads is not None:
                await self._run_in_thread(owner, functools.partial(run_plain, call, invoke, open_streams))
            else:
                await finish(call, invoke(), open_streams)
        except BaseException as error:
            owner.is_interruptible = False
            if not call.cancelled:
                call.set_failure(error, function, kwargs)
        owner.is_interruptible = False
        # Cancellation does not interrupt the cleanup.
        while owner.task is not None and owner.task.cancelling():
            owner.task.uncancel()
        await self._clean_up(adapter, open_streams)

    async def _run_in_thread(self, owner: CallOwner, body: Callable[[], Any]) -> None:
        thread = owner.thread = _native.ThreadCall()
        outcome: list[tuple[BaseException | None, Any]] = []
        run = functools.partial(_in_thread, thread, body, outcome)
        try:
            await self._loop.run_in_executor(self._threads, contextvars.copy_context().run, run)
        finally:
            owner.thread = None
        error, remainder = outcome.pop()
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback refers to this frame, and both would keep the objects of the tool.
                del error
        if owner.call.cancelled:
            raise asyncio.CancelledError
        if remainder is not None:
            await remainder()

    async def _clean_up(self, adapter: Any, open_streams: list[Any]) -> None:
        for stream in open_streams:
            try:
                close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
                if close is not None:
                    await resolved(close())
            except BaseException as error:
                _report(error, repr(stream))
        if adapter is not None and self._plan.has_cleanup:
            try:
                await resolved(adapter.cleanup())
            except BaseException as error:
                _report(error, "cleanup")

    async def _end_tasks(self, owner: CallOwner) -> bool:
        """Cancel each task that a call left behind once. Return whether they ended in time."""
        end = self._loop.time() + _TASK_END_TIMEOUT
        cancelled: set[asyncio.Task[Any]] = set()
        for _ in range(_MAX_ROUNDS):
            tasks = {task for task in owner.tasks if not task.done()}
            if not tasks:
                return True
            left = end - self._loop.time()
            for task in tasks - cancelled:
                if not task.cancelling():
                    self._running._warn(task)
                elif left > _TASK_END_TIMEOUT / 2:
                    # Its own call has cancelled it, and it cleans up.
                    continue
                cancelled.add(task)
                task.cancel()
            is_complete = tasks <= cancelled
            timeout = left if is_complete else left - _TASK_END_TIMEOUT / 2
            done, pending = await asyncio.wait(tasks, timeout=max(0.0, timeout))
            for task in done:
                # Retrieves exceptions, so that asyncio does not log them.
                if not task.cancelled():
                    task.exception()
            if pending and is_complete:
                return False
        return False


def _in_thread(
    thread: _native.ThreadCall, body: Callable[[], Any], outcome: list[tuple[BaseException | None, Any]]
) -> None:
    """Run a function on its thread. Add its exception or its result to `outcome`."""
    # Exceptions do not pass through the future, which would add frames to their tracebacks, and keep them in a cycle: a
    # frame of the traceback refers to that of the executor, which refers to the future.
    try:
        outcome.append((None, thread.run(get_ident(), body)))
    except BaseException as error:
        outcome.append((error, None))


def _hide(task: asyncio.Task[Any]) -> None:
    """Remove a task from `asyncio.all_tasks`, so that a tool that cancels all other tasks does not end other calls."""
    asyncio.tasks._unregister_task(task)


def _is_runtime(frame: FrameType | None) -> bool:
    """Return whether a frame runs code of the worker, which an exception would leave in an unknown state."""
    return frame is not None and frame.f_globals.get("__name__") in (__name__, _answering.__name__)


def _report(error: BaseException, place: str) -> None:
    """Write an exception that has no caller to stderr."""
    import traceback

    details = "".join(traceback.format_exception(error))
    sys.stderr.write(f"snakepit: exception ignored in {place}:\n{details}")
