"""The signals of a worker: the interruption of calls, and what tools and forks do to them.

Calls run on the main thread. Another thread sends it a signal when a call is cancelled; the handler here decides what
that does. A tool that takes these signals away loses them again when its call ends, and a fork gets the signal handling
that Python itself would have given it.
"""

from __future__ import annotations

# What `signal` is made of; that one imports half of the standard library to give numbers names.
import _signal  # type: ignore[import-not-found]
import os
import sys

from snakepit_bridge._owner import OWNER, WORKER
from snakepit_bridge.errors import CallCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from snakepit_bridge import _native
    from snakepit_bridge._event_loop import EventLoop

#: Functions of `signal` after which the worker looks what a call has left.
_WATCHED = ("signal", "siginterrupt", "set_wakeup_fd", "pthread_sigmask", "setitimer", "alarm")

_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)

#: Files of the code that runs while a module is imported.
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")

#: Packages whose code expects to be cut; in the second, the runtime stands before and after a tool.
_OURS = ("snakepit_bridge", "__main__")

#: How far the context of an exception is followed.
_CONTEXTS = 100


class Signals:
    """Keeps the signals that the worker lives by.

    Args:
        worker: The native runtime.
        loop: The event loop of the calls.
    """

    def __init__(self, worker: _native.Worker, loop: EventLoop) -> None:
        self._worker = worker
        self._loop = loop
        self._number: int = worker.interrupt_signal
        self._names = {self._number: "SIGURG", _signal.SIGINT: "SIGINT", _signal.SIGTERM: "SIGTERM"}
        #: The functions of `signal` as they are without the watching.
        self._plain: dict[str, Callable[..., Any]] = {name: getattr(_signal, name) for name in _WATCHED}
        #: Masks of threads that are about to fork.
        self._masks: dict[int, Any] = {}
        self._is_changed = False
        #: What a call did something to, perhaps to put it back by itself.
        self._touched: set[int] = set()
        #: What calls are to find, once it is installed.
        self._found: dict[int, Any] = {}
        self._wakeup = -1
        # Before the adapter takes these functions out of `signal`.
        for name in _WATCHED:
            self._watch(name)

    def install(self) -> None:
        """Take the signals, once the adapter is imported; on the main thread."""
        if _signal.getsignal(self._number) not in (_signal.SIG_DFL, _signal.SIG_IGN):
            _warn("the adapter handles SIGURG, which cancels calls; its handler is replaced")
        self._handlers = {
            self._number: self._interrupt,
            # Ctrl-C goes to the whole foreground group; stopping is the host's to decide. A handler, for programs that
            # are started from here would inherit that the signal is ignored.
            _signal.SIGINT: self._ignore,
        }
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._found = {number: _signal.getsignal(number) for number in _signal.valid_signals()}
        self._wakeup = self._wakeup_now()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork_here, after_in_child=self._after_fork_in_child
        )

    def settle(self) -> None:
        """Undo what a call did to signals, and say so. Called when it did something."""
        if not self._is_changed:
            return
        self._is_changed = False
        change, mask, timer = (self._plain[name] for name in ("signal", "pthread_sigmask", "setitimer"))
        for number, handler in self._found.items():
            if _signal.getsignal(number) is not handler:
                self._touched.add(number)
                # Python knows of no handler that C code set up, as the runtime's own of SIGTERM.
                if handler is not None:
                    change(number, handler)
                self._warn_of(number)
        while self._touched:
            # Also after a tool that put back what Python knew of.
            self._worker.restore_signal(self._touched.pop())
        if self._wakeup_now() != self._wakeup:
            self._set_wakeup(self._wakeup)
        if mask(_signal.SIG_SETMASK, self._mask) != self._mask:
            _warn("a tool blocked signals and left it so; they are unblocked")
        for which in _TIMERS:
            if timer(which, 0)[0] > 0:
                _warn("a tool left an alarm or timer behind; it is switched off")

    def _wakeup_now(self) -> int:
        descriptor: int = self._plain["set_wakeup_fd"](-1)
        self._set_wakeup(descriptor)
        return descriptor

    def _set_wakeup(self, descriptor: int) -> None:
        try:
            # That it is full is no news: somebody is going to be woken.
            self._plain["set_wakeup_fd"](descriptor, warn_on_full_buffer=False)
        except (OSError, ValueError):
            # It was closed, as by a tool that closed the loop.
            self._plain["set_wakeup_fd"](-1)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Runs on the main thread between two steps of whatever it does, so the answer is true while it counts.
        worker = self._worker
        if not worker.interrupt_due() or _is_cleaning_up():
            return
        if self._loop.is_starting or _is_importing(frame):
            # A module that is cut stays half imported for good, and a loop half made. The next knock comes soon.
            worker.defer_interrupt()
        elif not self._loop.interrupt():
            worker.note_cut(self._is_own(frame))
            raise CallCancelled("the call was cancelled")

    @staticmethod
    def _ignore(signum: int, frame: FrameType | None) -> None:
        pass

    def _is_own(self, frame: FrameType | None) -> bool:
        """Whether code of the adapter runs, or of this package, and not of a library that it called."""
        name = None if frame is None else frame.f_globals.get("__name__")
        return name in self._loop.modules or (isinstance(name, str) and name.partition(".")[0] in _OURS)

    def _watch(self, name: str) -> None:
        plain, worker = self._plain[name], self._worker

        def watched(*args: Any, **options: Any) -> Any:
            result = plain(*args, **options)
            number = int(args[0]) if name in ("signal", "siginterrupt") else None
            if OWNER.get() is WORKER and self._found:
                # A task that outlives calls.
                self._remember(number)
            else:
                if number is not None:
                    self._touched.add(number)
                self._is_changed = True
                worker.unsettle()
            return result

        watched.__name__ = watched.__qualname__ = name
        watched.__doc__ = plain.__doc__
        setattr(_signal, name, watched)
        module = sys.modules.get("signal")
        # What that has as it is in `_signal`; the rest of its functions look there when they are called.
        if module is not None and getattr(module, name, None) is plain:
            setattr(module, name, watched)

    def _remember(self, number: int | None) -> None:
        if number is None:
            self._wakeup = self._wakeup_now()
        else:
            self._found[number] = _signal.getsignal(number)
            self._worker.remember_signal(number)

    def _warn_of(self, number: int) -> None:
        if number not in self._names:
            _warn(f"a tool left a handler of signal {number} ({_signal.strsignal(number)}) behind; it is taken back")
            return
        _warn(
            f"a tool replaced the handler of {self._names[number]}, which the worker needs; it is put back. Until then "
            "its calls could not be cancelled, or the worker not be stopped, as they should"
        )

    # A signal must not reach the child before it has the handling of its own: the runtime's would swallow it.

    def _before_fork(self) -> None:
        mask = self._plain["pthread_sigmask"]
        self._masks[_thread_id()] = mask(_signal.SIG_BLOCK, (_signal.SIGTERM, _signal.SIGINT, self._number))

    def _after_fork_here(self) -> None:
        saved = self._masks.pop(_thread_id(), None)
        if saved is not None:
            self._plain["pthread_sigmask"](_signal.SIG_SETMASK, saved)

    def _after_fork_in_child(self) -> None:
        change = self._plain["signal"]
        for number, default in ((self._number, _signal.SIG_DFL), (_signal.SIGINT, _signal.default_int_handler)):
            if _signal.getsignal(number) is self._handlers[number]:
                change(number, default)
        if _signal.getsignal(_signal.SIGTERM) is _signal.SIG_DFL:
            # Python's table says so, the system's does not yet.
            change(_signal.SIGTERM, _signal.SIG_DFL)
        self._after_fork_here()


def _thread_id() -> int:
    from _thread import get_ident

    return get_ident()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _is_cleaning_up() -> bool:
    """Whether a cancellation is on its way through the interrupted code, as in `finally` and `__exit__`."""
    error = sys.exception()
    for _ in range(_CONTEXTS):
        if error is None:
            return False
        if isinstance(error, CallCancelled):
            return True
        error = error.__context__
    return False


def _warn(text: str) -> None:
    stream = sys.__stderr__
    if stream is not None:
        stream.write(f"snakepit: {text}\n")
