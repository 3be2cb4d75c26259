"""An adapter with its own protobuf classes, whose stub reaches the host, and with its own decorator."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from snakepit_bridge.base_adapter import BaseAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")


def described(text: str) -> Callable[[_F], _F]:
    """Mark a method as the original's decorator does."""

    def mark(function: _F) -> _F:
        marked: Any = function
        marked._tool_metadata = SimpleNamespace(description=text, supports_streaming=False, required_variables=[])
        return function

    return mark


class RegisteringAdapter(BaseAdapter):
    """Uses the stub of the context."""

    @described("Read a variable by the stub")
    def read(self, name: str) -> str:
        sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])
        pb2 = import_module("snakepit_bridge_pb2")
        request = pb2.GetVariableRequest(session_id=self.session_id, variable_identifier=name)
        variable = self.session_context.stub.GetVariable(request).variable
        return f"{variable.name}={variable.value.value.decode()}"

    @described("Create a context for the stub")
    def tools_by_stub(self) -> list[str]:
        from snakepit_bridge import SessionContext

        with SessionContext(self.session_context.stub, self.session_id or "", {"a": "b"}) as context:
            return [*sorted(context.elixir_tools), *context.request_metadata]
