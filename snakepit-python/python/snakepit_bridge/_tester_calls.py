"""Calls of a tester that have a deadline, or that the test cancels."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _native, _signals
from snakepit_bridge.errors import CallCancelled, CallCancelledError, DeadlineExceededError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import FrameType

    from snakepit_bridge._call_record import CallRecord
    from snakepit_bridge._event_loop import EventLoop

#: The seconds between two interruptions of a call that does not end.
_INTERVAL = 0.1


class CallControl:
    """The deadline and the cancellation of one call. Interrupts its code as a worker does.

    Args:
        runner: The runtime of the call.
        loop: The event loop of the tools.
        tool: The name of the tool.
        timeout: The seconds within which the call must end.
    """

    def __init__(
        self,
        runner: _native.LocalRunner | _native.ConcurrentLocalRunner,
        loop: EventLoop,
        tool: str,
        timeout: float | None,
    ) -> None:
        self._runner: Any = runner
        self._loop = loop
        self._tool = tool
        self._timeout = timeout
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._is_main = False
        self._has_ended = threading.Event()
        self._is_late = False
        #: Whether SIGINT has cancelled the call, as Ctrl+C does.
        self._is_stopped = False
        #: Whether an exception was raised in the thread, which may be pending.
        self._is_interrupted = False
        self.native = _native.LocalControl(timeout)

    def cancel(self) -> None:
        """Cancel the call, unless it has ended. Returns before the code of the tool has ended."""
        if self.native.cancel():
            self._spawn(0)

    def run(self, call: Callable[[], Any]) -> Any:
        """Run the call on this thread.

        Raises:
            DeadlineExceededError: The deadline passed.
            CallCancelledError: The test cancelled the call.
            KeyboardInterrupt: SIGINT cancelled the call.
        """
        with self._lock:
            self._thread = threading.get_ident()
            self._is_main = threading.current_thread() is threading.main_thread()
        restore = self._handle_signals() if self._is_main else None
        if self._timeout is not None:
            self._spawn(self._timeout)
        try:
            try:
                return call()
            finally:
                self._end()
        except CallCancelled:
            raise self._error() from None
        finally:
            # An exception of another thread may have interrupted it.
            self._end()
            if restore is not None:
                restore()
            if self._is_stopped:
                raise KeyboardInterrupt from None

    def _end(self) -> None:
        with self._lock:
            self._thread = None
        self._has_ended.set()
        if self._is_interrupted:
            self._is_interrupted = False
            # A pending exception must not reach the test. Removing it with a null exception would leave CPython 3.11
            # with a flag that only an exception clears, and with that flag, traced code never continues.
            with contextlib.suppress(CallCancelled):
                _run_code()

    def _error(self) -> Exception:
        if self._is_late or (self.native.is_overdue and not self.native.is_cancelled):
            return DeadlineExceededError(
                f"deadline of tool `{self._tool}` exceeded while running, after the caller's timeout of "
                f"{self._timeout} s; raise the timeout or make the tool faster"
            )
        return CallCancelledError(f"call of tool `{self._tool}` was cancelled")

    def _spawn(self, delay: float) -> None:
        threading.Thread(target=self._interrupt_after, args=(delay,), name="snakepit-cancel", daemon=True).start()

    def _interrupt_after(self, delay: float) -> None:
        if self._has_ended.wait(delay):
            return
        if delay:
            self._is_late = True
            self.native.cancel()
        while not self._has_ended.wait(_INTERVAL if self._interrupt() else 0.01):
            pass

    def _interrupt(self) -> bool:
        """Interrupt the call once. Return ``False`` if the interruption was deferred."""
        with self._lock:
            if self._thread is None:
                return True
            if self._is_main:
                # The handler runs on the main thread, and also ends a blocking system call.
                import signal

                signal.pthread_kill(self._thread, signal.SIGURG)
                return True
            frame = sys._current_frames().get(self._thread)
            interrupts = self._must_interrupt(frame, _exception_of(self._thread))
            if interrupts:
                self._is_interrupted = True
                _raise_in(self._thread, CallCancelled)
            return interrupts is not None

    def _handle_signals(self) -> Callable[[], object]:
        import signal

        def handle(signum: int, frame: FrameType | None) -> None:
            del signum
            if self._must_interrupt(frame, sys.exception()):
                raise CallCancelled("the call was cancelled")

        def stop(signum: int, frame: FrameType | None) -> None:
            if self._is_stopped:
                # The tool ignores its cancellation.
                signal.default_int_handler(signum, frame)
            self._is_stopped = True
            self.cancel()

        handlers: dict[signal.Signals, Any] = {signal.SIGURG: signal.signal(signal.SIGURG, handle)}
        # The event loop would ignore an exception that the default handler raises in it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = signal.signal(signal.SIGINT, stop)

        def restore() -> None:
            for number, handler in handlers.items():
                # `None` stands for a handler of native code, which Python cannot restore.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

        return restore

    def _must_interrupt(self, frame: FrameType | None, error: BaseException | None) -> bool | None:
        """Return whether an exception must interrupt the call. ``None`` if it must be tried again soon.

        Args:
            frame: The running code.
            error: The exception that it handles.
        """
        if not self._runner.interrupt_due() or _signals.is_cleaning_up(error):
            return False
        if self._loop.is_starting or _signals.is_importing(frame):
            return None
        is_cancelled = self._loop.interrupt(frame)
        return None if is_cancelled is None else not is_cancelled


def _exception_of(thread: int) -> BaseException | None:
    """Return the exception that a thread handles."""
    found: Any = sys._current_exceptions().get(thread)
    # Before Python 3.12, a tuple of its class, the exception, and its traceback.
    error: BaseException | None = found[1] if isinstance(found, tuple) else found
    return error


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in another thread when it next runs Python code."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _run_code() -> None:
    """Do nothing, but in Python code, which raises a pending exception of another thread."""


class RunningCall:
    """A call that runs on another thread. Created by :meth:`ToolTester.start`.

    >>> call = tester.start("train", epochs=100)  # doctest: +SKIP
    >>> call.cancel()  # doctest: +SKIP
    >>> call.result()  # doctest: +SKIP
    Traceback (most recent call last):
    snakepit_bridge.errors.CallCancelledError: call of tool `train` was cancelled
    """

    def __init__(self, control: CallControl, future: Future[Any], record: CallRecord) -> None:
        self._control = control
        self._future = future
        #: The progress and the output so far.
        self.record = record

    def cancel(self) -> None:
        """Cancel the call as a caller does. Returns immediately; :meth:`result` waits for the end of the tool.

        Code of a synchronous function is interrupted when it next runs Python code, so a blocking system call ends
        first. A worker interrupts that call, too.
        """
        self._control.cancel()

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end of the call, and return its result or raise its error.

        Args:
            timeout: The seconds to wait. Does not cancel the call.

        Raises:
            TimeoutError: The call has not ended within ``timeout``.
            CallCancelledError: The call was cancelled. Otherwise raises as :meth:`ToolTester.call` does.
        """
        return self._future.result(timeout)
