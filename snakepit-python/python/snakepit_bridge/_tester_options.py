"""The calls of a tester with options."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snakepit_bridge._tester_calls import CallControl, RunningCall
    from snakepit_bridge.chunks import StreamChunk
    from snakepit_bridge.testing import ToolTester


class TesterCalls:
    """The calls of a tester with fixed options. Created by :meth:`ToolTester.options`."""

    def __init__(self, tester: ToolTester, timeout: float | None) -> None:
        self._tester = tester
        self._timeout = timeout

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
        """Call a tool and return its result. Arguments may be a mapping, keywords, or both.

        Raises:
            DeadlineExceededError: The timeout passed. The code of the tool has ended.
        """
        tester, control = self._tester, self._control(name)
        return tester._run(tester._call_step(name, {**(arguments or {}), **more}, control))

    async def call_async(self, name: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
        """Call a tool as :meth:`call` does, without blocking the event loop of the test.

        Cancelling the task cancels the call. The task ends when the code of the tool has ended.
        """
        tester, control = self._tester, self._tester._new_control(name, self._timeout)
        return await tester._run_async(tester._call_step(name, {**(arguments or {}), **more}, control), control)

    def stream(
        self, name: str, arguments: Mapping[str, Any] | None = None, /, *, limit: int | None = None, **more: Any
    ) -> list[StreamChunk]:
        """Call a tool that streams, and return its chunks.

        Args:
            name: The name of the tool.
            arguments: Arguments of the tool.
            limit: The number of chunks after which to cancel the call. Necessary for tools that never end.
            more: Arguments of the tool as keywords.
        """
        tester = self._tester
        # The end of the stream may have to interrupt the tool.
        control = self._control(name) if limit is None else tester._new_control(name, self._timeout)
        return tester._run(tester._stream_step(name, {**(arguments or {}), **more}, limit, control))

    async def stream_async(
        self, name: str, arguments: Mapping[str, Any] | None = None, /, *, limit: int | None = None, **more: Any
    ) -> list[StreamChunk]:
        """Call a tool as :meth:`stream` does, without blocking the event loop of the test."""
        tester, control = self._tester, self._tester._new_control(name, self._timeout)
        step = tester._stream_step(name, {**(arguments or {}), **more}, limit, control)
        return await tester._run_async(step, control)

    def start(self, name: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> RunningCall:
        """Start a call on another thread, so that the test can cancel it.

        Calls of one tester run one after another, unless the adapter allows several.
        """
        from snakepit_bridge._tester_calls import RunningCall

        tester, control = self._tester, self._tester._new_control(name, self._timeout)
        record = tester._new_record(name)
        step = tester._call_step(name, {**(arguments or {}), **more}, control, record)
        return RunningCall(control, tester._own_thread().submit(tester._base.copy().run, step), record)

    def _control(self, name: str) -> CallControl | None:
        tester = self._tester
        # On the main thread, SIGINT cancels the call.
        is_main = threading.current_thread() is threading.main_thread()
        is_needed = is_main or self._timeout is not None or tester._concurrent is not None
        return tester._new_control(name, self._timeout) if is_needed else None
