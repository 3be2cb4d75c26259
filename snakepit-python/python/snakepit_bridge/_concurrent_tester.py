"""Runs the calls of a tester concurrently, as a worker with several places does."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from snakepit_bridge import _native
from snakepit_bridge._owner import OWNER, CallOwner
from snakepit_bridge._tester_calls import CallControl
from snakepit_bridge.errors import CallCancelled

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from snakepit_bridge._event_loop import EventLoop
    from snakepit_bridge._lifecycle import Lifecycle
    from snakepit_bridge._plan import Plan


class ConcurrentTester:
    """The event loop of the calls, in a separate thread.

    Args:
        plan: The plan of the adapter.
        loop: The event loop.
        life: The start and the end of the adapter, which run on the event loop.
        context: The context of the adapter, of which each call gets a copy.

    Raises:
        BaseException: The exception of an adapter that cannot start.
    """

    def __init__(self, plan: Plan, loop: EventLoop, life: Lifecycle, context: contextvars.Context) -> None:
        loop.is_concurrent = True
        loop.context = context
        self.runner = _native.ConcurrentLocalRunner(plan, "worker-under-test")
        self._errors: dict[int, BaseException] = {}
        self._life = life
        self._loop = loop
        self._has_started = threading.Event()
        self._error: BaseException | None = None
        #: The control of its calls.
        self.control_class = ConcurrentControl
        self._thread = threading.Thread(target=context.run, args=(self._serve,), name="snakepit-loop", daemon=True)
        self._thread.start()
        self._has_started.wait()
        self._raise_error()

    def note_error(self, error: BaseException) -> None:
        """Record the exception that ends the running call."""
        owner = OWNER.get()
        if type(owner) is CallOwner:
            self._errors[owner.call.id] = error

    def take_error(self, control: CallControl | None) -> BaseException | None:
        """Return the exception that ended a call."""
        return None if control is None else self._errors.pop(control.native.id, None)

    def close(self) -> None:
        """Wait for the running calls, stop the adapter, and close the event loop."""
        self.runner.close()
        self._thread.join()
        self._raise_error()

    def _serve(self) -> None:
        try:
            self._life.start()
            self._has_started.set()
            self.runner.serve()
            self._life.stop()
        except BaseException as error:
            self._error = error
        finally:
            self.runner.close()
            self._loop.close()
            self._has_started.set()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


class ConcurrentControl(CallControl):
    """The deadline and the cancellation of one of several concurrent calls.

    The event loop cancels the task of the call. Code that blocks the event loop delays that.
    """

    _runner: _native.ConcurrentLocalRunner

    def cancel(self) -> None:
        """Cancel the call, unless it has ended. Returns before the code of the tool has ended."""
        self._runner.cancel(self.native)

    def run(self, call: Callable[[], Any]) -> Any:
        """Make the call, and wait for its end on this thread."""
        timer = None if self._timeout is None else threading.Timer(self._timeout, self._expire)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            return call()
        except CallCancelled:
            raise self._error() from None
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self) -> None:
        self._is_late = True
        self.cancel()
