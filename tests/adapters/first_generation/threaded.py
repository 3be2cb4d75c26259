"""The style of the original's threaded showcase: `thread_safe_method` around `@tool`, shared state, a threaded base."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from snakepit_bridge.base_adapter_threaded import (
    ThreadSafeAdapter,
    require_thread_safe,
    thread_safe_method,
    tool,
    validate_thread_safety,
)
from snakepit_bridge.logging_config import configure_logging, get_logger

configure_logging()
logger = get_logger(__name__)


@dataclass
class Model:
    """A stand-in for a model."""

    name: str
    factor: int


class ThreadedAdapter(ThreadSafeAdapter):
    """Counts words."""

    __thread_safe__ = True

    def __init__(self) -> None:
        super().__init__()
        self.model = Model("words", 2)
        self.log: list[str] = []

    def set_session_context(self, context: Any) -> None:
        self._session_context = context

    def initialize(self) -> None:
        logger.debug("initialize in %s", threading.current_thread().name)

    @thread_safe_method
    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:
        if context and not self._session_context:
            self._session_context = context
        return self.call_tool(tool_name, **arguments)

    @thread_safe_method
    @tool(description="Count the words of a text")
    def count(self, text: str, times: int = 1) -> dict[str, Any]:
        cache = self.get_thread_local("cache", {})
        cached = text in cache
        cache[text] = len(text.split()) * self.model.factor * times
        self.set_thread_local("cache", cache)
        with self.acquire_lock():
            self.log.append(text)
            active = self._tracker.get_stats()["total_active_requests"]
        return {"words": cache[text], "cached": cached, "active": active, "session": self.session_id}

    # The other order of the decorators.
    @tool(description="Return the counters")
    @thread_safe_method
    def stats(self) -> dict[str, Any]:
        logger.warning("stats of %s", self.session_id)
        with self.track_request(request_id="inner"):
            return {**self.get_stats(), "valid": validate_thread_safety(type(self)), "checked": checked(self)}

    @tool(description="Forget the cache")
    @thread_safe_method
    def forget(self) -> str:
        self.clear_thread_local("cache")
        self.clear_thread_local()
        return "forgotten"


@require_thread_safe
def checked(adapter: Any) -> bool:
    """Return True, for adapters that are declared thread-safe."""
    return isinstance(adapter, ThreadSafeAdapter)
