"""Runs the functions of an adapter around the life of a worker: ``lifespan``, ``process_init``, ``process_exit``."""

from __future__ import annotations

import sys

from snakepit_bridge import _current
from snakepit_bridge._plan import AdapterError, one_line
from snakepit_bridge.base_adapter import TOOL_ATTRIBUTE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from snakepit_bridge._event_loop import EventLoop

    #: A step of the shutdown: its name, and a function that may return an awaitable.
    Step = tuple[str, Callable[[], Any]]


#: The time limit for stopping an adapter whose start failed, in seconds.
FAILED_START_LIMIT = 5.0


def end_children() -> None:
    """Terminate the processes that calls left in pools, because Python waits for them before it exits."""
    # The module is loaded only if a call has used it.
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is None:
        return
    for child in processes.active_children():
        try:
            child.terminate()
        except Exception as error:  # Code of a tool may have changed the object.
            sys.stderr.write(f"snakepit: cannot end the process {child!r}: {error}\n")


class Lifecycle:
    """The life of an adapter in one worker.

    Args:
        adapter: The adapter class.
        loop: The event loop of the worker. All coroutines of the adapter run on it.
        given: The arguments of the adapter, as JSON values.

    Raises:
        AdapterError: No function takes one of the arguments, or a function needs another one.
    """

    def __init__(self, adapter: type, loop: EventLoop, given: Mapping[str, Any] = {}) -> None:
        self._adapter = adapter
        self._loop = loop
        self._lifespan = self._hook("lifespan")
        self._init = self._hook("process_init")
        self._exit = self._hook("process_exit")
        #: The steps of the shutdown, in the order in which their counterparts started.
        self._steps: list[Step] = []
        has_constructor = any(getattr(adapter, name) is not getattr(object, name) for name in ("__init__", "__new__"))
        self._arguments: dict[str, dict[str, Any]] = {}
        if given or has_constructor or self._lifespan is not None or self._init is not None:
            self._arguments = self._assigned(given)
        #: Creates an object of the adapter for a call.
        self.factory: Callable[[], object] = adapter
        if self._arguments.get("__init__"):
            self.factory = _Factory(adapter, self._arguments["__init__"])

    def _assigned(self, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the arguments of each function that may take some.

        Raises:
            AdapterError: No function takes one of the arguments, or a function needs another one.
        """
        # Imported late, because most adapters have no arguments.
        from snakepit_bridge import _adapter_arguments

        receivers = {
            name: _adapter_arguments.receiver_of_hook(name, hook, self._adapter)
            for name, hook in (("lifespan", self._lifespan), ("process_init", self._init))
            if hook is not None
        }
        constructor = _adapter_arguments.receiver_of_class(self._adapter)
        if constructor is not None:
            receivers["__init__"] = constructor
        _adapter_arguments.check_names(given, receivers.values(), self._adapter)
        return {name: receiver.converted(given) for name, receiver in receivers.items()}

    def start(self, stop_limit: float | None = None) -> None:
        """Enter ``lifespan``, run ``process_init``, and create an object as each call does.

        Args:
            stop_limit: The time limit for stopping if the start fails, in seconds. Only for the main thread of a
                worker.

        Raises:
            AdapterError: One of them failed, with the ``__cause__`` of this error. All started parts were stopped.
        """
        try:
            self._start()
        except BaseException:
            self.stop(stop_limit)
            raise

    def _start(self) -> None:
        name = "lifespan"
        try:
            if self._lifespan is not None:
                self._enter(self._lifespan(**self._arguments["lifespan"]))
            name = "process_init"
            if self._init is not None:
                self._awaited(self._init(**self._arguments["process_init"]))
            if self._exit is not None:
                self._steps.append(("process_exit", self._exit))
        except BaseException as error:
            raise AdapterError(
                f"{name} of adapter `{self._adapter.__qualname__}` failed: {_described(error)}"
            ) from error
        try:
            self.factory()
        except BaseException as error:
            raise AdapterError(
                f"adapter `{self._adapter.__qualname__}` cannot be constructed: {_described(error)}; each call creates "
                "an object of this class"
            ) from error

    def stop(self, limit: float | None = None) -> None:
        """Run ``process_exit`` and leave ``lifespan``. Write their errors to stderr.

        Args:
            limit: The time limit for both together, in seconds. Only for the main thread of a worker, because it
                needs SIGALRM.
        """
        if not self._steps:
            return
        import time

        deadline = None if limit is None else time.monotonic() + limit
        while self._steps:
            name, step = self._steps.pop()
            remaining = None if deadline is None else deadline - time.monotonic()
            try:
                if remaining is not None and remaining <= 0:
                    raise TimeoutError("the time to stop was over before it began")
                self._run_within(step, remaining)
            except BaseException as error:
                self._report(name, error)

    def _hook(self, name: str) -> Callable[..., Any] | None:
        hook: Any = getattr(self._adapter, name, None)
        # A tool may have the name of a hook.
        if not callable(hook) or hasattr(getattr(hook, "__func__", hook), TOOL_ATTRIBUTE):
            return None
        function: Callable[..., Any] = hook
        return function

    def _enter(self, manager: Any) -> None:
        kind = type(manager)
        if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
            from snakepit_bridge._held_context import HeldContext

            held = HeldContext(manager)
            value = self._loop.run(held.enter(), keep_tasks=True)
            self._steps.append(("lifespan", held.leave))
        elif hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
            value = manager.__enter__()
            self._steps.append(("lifespan", lambda: manager.__exit__(None, None, None) and None))
        else:
            raise TypeError(
                f"it returned `{_type_name(kind)}`, which is not a context manager; decorate it with "
                "`contextlib.contextmanager` or `contextlib.asynccontextmanager`"
            )
        if value is None or value is manager:
            return
        if not hasattr(type(value), "keys"):
            raise TypeError(f"it yielded `{_type_name(type(value))}`, expected a mapping with names as keys")
        for key in value.keys():  # noqa: SIM118  Any mapping.
            setattr(_current.process(), key, value[key])

    def _awaited(self, result: Any, limit: float | None = None) -> None:
        if result is None:
            return
        import inspect

        if inspect.isawaitable(result):
            if limit is not None:
                import asyncio

                result = asyncio.wait_for(result, limit)
            self._loop.run(result, keep_tasks=True)

    def _run_within(self, step: Callable[[], Any], limit: float | None) -> None:
        if limit is None:
            self._awaited(step())
            return
        import time

        began = time.monotonic()
        with _Alarm(limit):
            result = step()
        self._awaited(result, limit - (time.monotonic() - began))

    def _report(self, name: str, error: BaseException) -> None:
        import traceback

        details = "".join(traceback.format_exception(error))
        sys.stderr.write(
            f"snakepit: {name} of adapter `{self._adapter.__qualname__}` failed: {_described(error)}\n{details}"
        )


class _Factory:
    """Creates objects of an adapter with arguments."""

    def __init__(self, adapter: type, arguments: dict[str, Any]) -> None:
        self._adapter = adapter
        self._arguments = arguments

    def __call__(self) -> object:
        return self._adapter(**self._arguments)


class _Alarm:
    """Raises ``TimeoutError`` in the main thread if its block takes longer than the limit.

    Restores the handler and the timer of SIGALRM.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        import signal

        def ring(signum: int, frame: object) -> None:  # noqa: ARG001
            raise TimeoutError(f"it did not end within {self._limit:.1f} s, the rest of the time to stop")

        # `None` if the handler was not installed from Python.
        self._handler = signal.signal(signal.SIGALRM, ring) or signal.SIG_DFL
        self._timer = signal.setitimer(signal.ITIMER_REAL, self._limit)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        signal.setitimer(signal.ITIMER_REAL, *self._timer)


def _described(error: BaseException) -> str:
    return one_line(f"{_type_name(type(error))}: {error}")


def _type_name(kind: type) -> str:
    # Imported late to keep the start fast.
    from snakepit_bridge import _failures

    return _failures.type_name(kind)
