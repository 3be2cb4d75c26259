"""Stubs of the bridge service, for adapters that bring their own protobuf classes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snakepit_bridge.errors import HostToolError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snakepit_bridge._native import Call

#: The service whose methods a stub has.
_SERVICE = "BridgeService"


class HostStub:
    """A stub for requests to the host: ``stub.GetVariable(request)``.

    Requests and answers are messages of the adapter's own protobuf module, which was generated from the definition of
    the protocol. Only unary methods are available.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def __getattr__(self, rpc: str) -> Any:
        """Return the method of this name."""
        if not rpc[:1].isupper():
            raise AttributeError(f"the stub has no attribute `{rpc}`; its methods have the names of RPCs")

        def method(request: Any, timeout: float | None = None, metadata: object = None, **options: object) -> Any:
            # The deadline and the headers of the call apply.
            del timeout, metadata, options
            return self._send(rpc, request)

        method.__name__ = rpc
        return method

    def _send(self, rpc: str, request: Any) -> Any:
        service = request.DESCRIPTOR.file.services_by_name.get(_SERVICE)
        described = None if service is None else service.methods_by_name.get(rpc)
        if described is None:
            raise UnsupportedError(
                f"`{rpc}` of the stub cannot send a `{request.DESCRIPTOR.full_name}`: the protobuf module of the "
                f"message describes no such method of `{_SERVICE}`"
            )
        if getattr(described, "client_streaming", False) or getattr(described, "server_streaming", False):
            raise UnsupportedError(f"`{rpc}` streams, which the stub does not support; use the methods of the context")
        from google.protobuf.message_factory import GetMessageClass

        answer = self._call.request_encoded(rpc, request.SerializeToString())
        message: Any = GetMessageClass(described.output_type)
        return message.FromString(answer)


class StubCall:
    """The call of a context that an adapter creates for a stub. It reaches only host tools.

    Args:
        stub: A stub of the bridge service.
        session_id: The id of the session.
        metadata: The metadata of the request.
    """

    worker_id = ""
    traceparent = tracestate = None
    cancelled = False

    def __init__(self, stub: Any, session_id: str, metadata: Mapping[str, str]) -> None:
        self.stub = stub
        self.session_id = session_id
        self.metadata = dict(metadata)

    def time_remaining(self) -> float | None:
        return None

    def host_tools(self) -> dict[str, dict[str, Any]]:
        messages = _messages()
        tools = self.stub.GetExposedElixirTools(messages.GetExposedElixirToolsRequest(session_id=self.session_id)).tools
        return {tool.name: _description(tool) for tool in tools}

    def call_host_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        if name not in self.host_tools():
            raise NotFoundError(f"host tool `{name}` not found")
        from snakepit_bridge.serialization import TypeSerializer, type_of

        messages = _messages()
        request = messages.ExecuteElixirToolRequest(session_id=self.session_id, tool_name=name)
        for key, value in arguments.items():
            encoded, _ = TypeSerializer.encode_any(value, type_of(value))
            request.parameters[key].CopyFrom(encoded)
        answer = self.stub.ExecuteElixirTool(request)
        if not answer.success:
            raise HostToolError(answer.error_message, name)
        return TypeSerializer.decode_any(answer.result, answer.binary_result or None)

    def cleanup_session(self, force: bool) -> bool:
        request = _messages().CleanupSessionRequest(session_id=self.session_id, force=force)
        return bool(self.stub.CleanupSession(request).success)

    def __getattr__(self, name: str) -> Any:
        """Explain that this call has no host."""
        # Inspection and copying ask for special names.
        if name.startswith("__"):
            raise AttributeError(f"`{type(self).__name__}` has no attribute `{name}`", name=name, obj=self)
        raise UnsupportedError(
            f"`{name}` needs the context of a call; a `SessionContext` for a stub has only the host tools"
        )


def _description(tool: Any) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": _names(tool.parameters),
        "supports_streaming": tool.supports_streaming,
    }


def _names(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {"name": parameter.name, "type": parameter.type, "required": parameter.required} for parameter in parameters
    ]


def _messages() -> Any:
    """Return the protobuf module of the adapter."""
    try:
        return import_module("snakepit_bridge_pb2")
    except ImportError as error:
        raise UnsupportedError(
            "a `SessionContext` for a stub needs the module `snakepit_bridge_pb2`; generate it from "
            "snakepit_bridge.proto by `python -m grpc_tools.protoc`"
        ) from error
