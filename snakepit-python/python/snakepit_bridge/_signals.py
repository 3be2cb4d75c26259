"""The signals of a worker: interrupts cancelled calls, and undoes changes by tools and forks.

Calls run on the main thread. When a call is cancelled, another thread sends the main thread a signal, and the handler
in this module interrupts the call. If a tool replaces one of these handlers, it is restored when the call ends. A fork
gets Python's default signal handling.
"""

from __future__ import annotations

# The C module behind `signal`. Importing `signal` would import `enum` and much of the standard library.
import _signal  # type: ignore[import-not-found]
import os
import sys

from snakepit_bridge import _native
from snakepit_bridge._owner import OWNER, WORKER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from snakepit_bridge._event_loop import EventLoop

#: Functions of `signal` whose effects are checked at the end of a call.
_WATCHED = ("signal", "siginterrupt", "set_wakeup_fd", "pthread_sigmask", "setitimer", "alarm")

_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)

#: The files of the import system.
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")

#: Packages whose code is safe to interrupt. Code of `__main__` runs before and after a tool.
_INTERRUPTIBLE = ("snakepit_bridge", "__main__")

#: The maximum length of a chain of exceptions that is followed through `__context__`.
_MAX_CONTEXTS = 100


class Signals:
    """Protects the signals that the worker depends on.

    Args:
        worker: The native runtime.
        loop: The event loop of the calls.
    """

    def __init__(self, worker: _native.Worker, loop: EventLoop) -> None:
        self._worker = worker
        self._loop = loop
        self._number: int = worker.interrupt_signal
        self._names = {self._number: "SIGURG", _signal.SIGINT: "SIGINT", _signal.SIGTERM: "SIGTERM"}
        #: The original functions of `signal`.
        self._original: dict[str, Callable[..., Any]] = {name: getattr(_signal, name) for name in _WATCHED}
        #: Signal masks of threads during a fork.
        self._masks: dict[int, Any] = {}
        self._is_changed = False
        #: Signals that a call changed, and may have restored itself.
        self._touched: set[int] = set()
        #: The handlers to restore after calls. Empty until `install`.
        self._baseline: dict[int, Any] = {}
        self._wakeup = -1
        # Patched before the adapter imports these functions from `signal`.
        for name in _WATCHED:
            self._watch(name)

    def install(self) -> None:
        """Install the handlers, after the adapter was imported. Called on the main thread."""
        if _signal.getsignal(self._number) not in (_signal.SIG_DFL, _signal.SIG_IGN):
            _warn("the adapter handles SIGURG, which cancels calls; its handler is replaced")
        self._handlers = {
            self._number: self._interrupt,
            # Ctrl-C reaches the whole foreground process group, but only the host stops workers. A handler that does
            # nothing, because child programs would inherit an ignored signal.
            _signal.SIGINT: self._ignore,
        }
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._baseline = {number: _signal.getsignal(number) for number in _signal.valid_signals()}
        self._wakeup = self._current_wakeup()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def restore(self) -> None:
        """Undo a call's changes to signals, and log them. Called if there are any."""
        if not self._is_changed:
            return
        self._is_changed = False
        change, mask, timer = (self._original[name] for name in ("signal", "pthread_sigmask", "setitimer"))
        for number, handler in self._baseline.items():
            left = _signal.getsignal(number)
            if left is not handler:
                self._touched.add(number)
                # `None` stands for a handler of C code, such as the runtime's handler of SIGTERM.
                if handler is not None:
                    change(number, handler)
                if not is_of_debugger(left):
                    self._warn_about_handler(number)
        while self._touched:
            # Necessary even if the tool restored the handler in Python's own table.
            self._worker.restore_signal(self._touched.pop())
        if self._current_wakeup() != self._wakeup:
            self._set_wakeup(self._wakeup)
        if mask(_signal.SIG_SETMASK, self._mask) != self._mask:
            _warn("a tool blocked signals and did not unblock them; the worker did")
        for which in _TIMERS:
            if timer(which, 0)[0] > 0:
                _warn("a tool left an alarm or timer running; the worker stopped it")

    def _current_wakeup(self) -> int:
        descriptor: int = self._original["set_wakeup_fd"](-1)
        self._set_wakeup(descriptor)
        return descriptor

    def _set_wakeup(self, descriptor: int) -> None:
        try:
            # A full pipe needs no warning: it already wakes the loop.
            self._original["set_wakeup_fd"](descriptor, warn_on_full_buffer=False)
        except (OSError, ValueError):
            # The descriptor was closed, for example by a tool that closed the loop.
            self._original["set_wakeup_fd"](-1)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Runs on the main thread between two bytecodes, so the checked state cannot change before the exception is
        # raised.
        worker = self._worker
        if self._loop.is_concurrent:
            self._interrupt_blocking(frame)
            return
        if not worker.interrupt_due() or is_cleaning_up(sys.exception()):
            return
        if self._loop.is_starting or is_importing(frame):
            # An interruption would leave an imported module or a starting loop half initialized. The signal is repeated
            # soon.
            worker.defer_interrupt()
            return
        is_cancelled = self._loop.interrupt(frame)
        if is_cancelled is None:
            worker.defer_interrupt()
        elif not is_cancelled:
            worker.note_interruption(is_interruptible(frame, self._loop.modules))
            raise _native.call_cancelled()("the call was cancelled")

    def _interrupt_blocking(self, frame: FrameType | None) -> None:
        # The event loop cancels the tasks of cancelled calls. Only a call that blocks it needs an exception. The signal
        # is repeated while a cancelled call has not ended.
        if self._loop.is_starting or is_cleaning_up(sys.exception()) or is_importing(frame):
            return
        call = self._loop.blocking_call(frame)
        if call is not None:
            call.note_interruption(is_interruptible(frame, self._loop.modules))
            raise _native.call_cancelled()("the call was cancelled")

    @staticmethod
    def _ignore(signum: int, frame: FrameType | None) -> None:
        pass

    def _watch(self, name: str) -> None:
        plain, worker = self._original[name], self._worker

        def watched(*args: Any, **options: Any) -> Any:
            result = plain(*args, **options)
            number = int(args[0]) if name in ("signal", "siginterrupt") else None
            if OWNER.get() is WORKER and self._baseline:
                # A task that outlives calls makes permanent changes.
                self._remember(number)
            else:
                if number is not None:
                    self._touched.add(number)
                self._is_changed = True
                worker.request_restore()
            return result

        watched.__name__ = watched.__qualname__ = name
        watched.__doc__ = plain.__doc__
        setattr(_signal, name, watched)
        module = sys.modules.get("signal")
        # `signal` re-exports some of these functions. Its other functions call them through `_signal`.
        if module is not None and getattr(module, name, None) is plain:
            setattr(module, name, watched)

    def _remember(self, number: int | None) -> None:
        if number is None:
            self._wakeup = self._current_wakeup()
        else:
            self._baseline[number] = _signal.getsignal(number)
            self._worker.remember_signal(number)

    def _warn_about_handler(self, number: int) -> None:
        if number not in self._names:
            _warn(
                f"a tool left a handler of signal {number} ({_signal.strsignal(number)}); "
                "the worker restored the previous one"
            )
            return
        _warn(
            f"a tool replaced the handler of {self._names[number]}, which the worker needs to cancel calls or to stop; "
            "the worker restored it"
        )

    # A signal must not reach the child before its default handlers are installed: the worker's handlers would swallow
    # it.

    def _before_fork(self) -> None:
        mask = self._original["pthread_sigmask"]
        self._masks[_thread_id()] = mask(_signal.SIG_BLOCK, (_signal.SIGTERM, _signal.SIGINT, self._number))

    def _after_fork_in_parent(self) -> None:
        saved = self._masks.pop(_thread_id(), None)
        if saved is not None:
            self._original["pthread_sigmask"](_signal.SIG_SETMASK, saved)

    def _after_fork_in_child(self) -> None:
        change = self._original["signal"]
        for number, default in ((self._number, _signal.SIG_DFL), (_signal.SIGINT, _signal.default_int_handler)):
            if _signal.getsignal(number) is self._handlers[number]:
                change(number, default)
        if _signal.getsignal(_signal.SIGTERM) is _signal.SIG_DFL:
            # Python's table shows the default, but the runtime's handler is still installed.
            change(_signal.SIGTERM, _signal.SIG_DFL)
        self._after_fork_in_parent()


def _thread_id() -> int:
    from _thread import get_ident

    return get_ident()


def is_interruptible(frame: FrameType | None, modules: frozenset[str]) -> bool:
    """Return whether code of the adapter or this package runs, rather than a library that it called."""
    name = None if frame is None else frame.f_globals.get("__name__")
    return name in modules or (isinstance(name, str) and name.partition(".")[0] in _INTERRUPTIBLE)


def is_of_debugger(handler: object) -> bool:
    """Return whether a debugger installed a handler, to stop the running code again. It never removes the handler."""
    bdb = sys.modules.get("bdb")
    return bdb is not None and isinstance(getattr(handler, "__self__", None), bdb.Bdb)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether this code runs inside an import."""
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def is_cleaning_up(error: BaseException | None) -> bool:
    """Return whether a `CallCancelled` propagates through code that handles this exception.

    Such code runs `finally` blocks and `__exit__` methods.
    """
    if error is None:
        return False
    cancelled = _native.call_cancelled()
    for _ in range(_MAX_CONTEXTS):
        if error is None:
            return False
        if isinstance(error, cancelled):
            return True
        error = error.__context__
    return False


def _warn(text: str) -> None:
    stream = sys.__stderr__
    if stream is not None:
        stream.write(f"snakepit: {text}\n")
