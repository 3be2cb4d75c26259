"""Adapters whose tools may run on several threads, with the names of the original Snakepit.

Calls have objects of their own, so the lock, the counters and the values of threads belong to the class. All calls of a
worker share them.
"""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from snakepit_bridge._tool_metadata import ToolMetadata
from snakepit_bridge.base_adapter import BaseAdapter, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "RequestTracker",
    "ThreadLocalStorage",
    "ThreadSafeAdapter",
    "ToolMetadata",
    "require_thread_safe",
    "thread_safe_method",
    "tool",
    "validate_thread_safety",
]

_F = TypeVar("_F", bound="Callable[..., Any]")

#: The attribute that declares a class or a function safe for several threads.
_MARK = "__thread_safe__"


class ThreadLocalStorage:
    """Values by name, separate for each thread."""

    def __init__(self) -> None:
        self._values = threading.local()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of this thread, or ``default``."""
        return vars(self._values).get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Set the value of this thread."""
        vars(self._values)[key] = value

    def delete(self, key: str) -> None:
        """Delete the value of this thread, if there is one."""
        vars(self._values).pop(key, None)

    def clear(self) -> None:
        """Delete all values of this thread."""
        vars(self._values).clear()


class RequestTracker:
    """Counts requests by thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.total_requests = 0
        #: The running requests. Idle threads have no entry.
        self.active_requests: dict[int, int] = {}
        self._threads: set[int] = set()

    def start_request(self, thread_id: int | None = None) -> int:
        """Count the start of a request. Return its number."""
        thread = threading.get_ident() if thread_id is None else thread_id
        with self.lock:
            self.total_requests += 1
            self._threads.add(thread)
            self.active_requests[thread] = self.active_requests.get(thread, 0) + 1
            return self.total_requests

    def end_request(self, thread_id: int | None = None) -> None:
        """Count the end of a request."""
        thread = threading.get_ident() if thread_id is None else thread_id
        with self.lock:
            left = self.active_requests.pop(thread, 0) - 1
            if left > 0:
                self.active_requests[thread] = left

    def get_stats(self) -> dict[str, int]:
        """Return the counters."""
        with self.lock:
            return {
                "total_requests": self.total_requests,
                "active_threads": len(self.active_requests),
                "total_active_requests": sum(self.active_requests.values()),
                "threads_seen": len(self._threads),
            }


class _Shared:
    """The parts of a class that all of its objects share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.values = ThreadLocalStorage()
        self.tracker = RequestTracker()


#: Guards the creation of a class's parts.
_creating = threading.Lock()


def _shared(adapter: type) -> _Shared:
    # In the class's own namespace, so that a subclass has its own.
    shared = vars(adapter).get("__snakepit_shared__")
    if shared is None:
        with _creating:
            shared = vars(adapter).get("__snakepit_shared__")
            if shared is None:
                shared = _Shared()
                setattr(adapter, "__snakepit_shared__", shared)  # noqa: B010
    return cast("_Shared", shared)


class ThreadSafeAdapter(BaseAdapter):
    """Base class of adapters whose tools may run on several threads of a worker.

    >>> class Counter(ThreadSafeAdapter):  # doctest: +SKIP
    ...     total = 0
    ...
    ...     @thread_safe_method
    ...     @tool
    ...     def add(self, count: int) -> int:
    ...         with self.acquire_lock():
    ...             Counter.total += count
    ...             return Counter.total
    """

    __thread_safe__ = True

    @property
    def _lock(self) -> Any:
        return _shared(type(self)).lock

    @property
    def _thread_local(self) -> ThreadLocalStorage:
        return _shared(type(self)).values

    @property
    def _tracker(self) -> RequestTracker:
        return _shared(type(self)).tracker

    @contextmanager
    def acquire_lock(self) -> Iterator[None]:
        """Hold the lock of the class for a block. A thread may hold it several times."""
        with self._lock:
            yield

    def get_thread_local(self, key: str, default: Any = None) -> Any:
        """Return the value of this thread, or ``default``."""
        return self._thread_local.get(key, default)

    def set_thread_local(self, key: str, value: Any) -> None:
        """Set the value of this thread. It stays until :meth:`clear_thread_local`, even for later calls."""
        self._thread_local.set(key, value)

    def clear_thread_local(self, key: str | None = None) -> None:
        """Delete one or all values of this thread."""
        if key is None:
            self._thread_local.clear()
        else:
            self._thread_local.delete(key)

    def get_stats(self) -> dict[str, Any]:
        """Return the request counters of this class, with its name."""
        return {
            "adapter_class": type(self).__name__,
            "thread_safe": self.__thread_safe__,
            "tracker": self._tracker.get_stats(),
        }

    @contextmanager
    def track_request(self, request_id: str | None = None) -> Iterator[int]:
        """Count a block as a request. Yield its number."""
        del request_id
        number = self._tracker.start_request()
        try:
            yield number
        finally:
            self._tracker.end_request()


def thread_safe_method(function: _F) -> _F:
    """Mark a method as safe for several threads, and count its calls. Works before and after ``@tool``."""

    @functools.wraps(function)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, ThreadSafeAdapter):
            return function(self, *args, **kwargs)
        with self.track_request():
            return function(self, *args, **kwargs)

    setattr(counted, _MARK, True)
    return cast("_F", counted)


def require_thread_safe(function: _F) -> _F:
    """Make a function reject an adapter, its first argument, that is not declared safe for several threads.

    Raises:
        ValueError: At each call with another adapter.
    """

    @functools.wraps(function)
    def checked(adapter: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(adapter, _MARK, False):
            raise ValueError(
                f"adapter `{type(adapter).__name__}` is not declared safe for several threads; set `{_MARK} = True`"
            )
        return function(adapter, *args, **kwargs)

    return cast("_F", checked)


def validate_thread_safety(adapter_class: type) -> bool:
    """Return whether a class is declared safe for several threads."""
    return getattr(adapter_class, _MARK, False) is True
