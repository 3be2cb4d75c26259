"""Performs the calls and watches that it reads from stdin, and reports their outcomes.

Usage: endings_client.py grpcio|package HOST:PORT. The first argument is `grpcio` for plain grpcio, or `package` for the
client of the package.

Each line of stdin is JSON: a call {"id", "tool", "args", "stream", "timeout"}, a watch {"id", "watch": SESSION}, or
{"id", "cancel": true}. Each line of stdout is an event of the request with that id: {"id", "event"}. The event is a
word, the {"code", "message", "details"} of a gRPC status, or {"error"} with the class of an exception.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]
Report = Callable[[object], None]


class Grpcio:
    """Makes requests with plain grpcio."""

    def __init__(self, address: str) -> None:
        sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])
        import grpc
        import snakepit_bridge_pb2 as pb
        import snakepit_bridge_pb2_grpc as rpc
        from google.protobuf import any_pb2

        self.error, self.pb, self.any = grpc.RpcError, pb, any_pb2.Any
        self.stub = rpc.BridgeServiceStub(grpc.aio.insecure_channel(address))

    async def call(self, request: Request) -> str:
        """Calls a tool and waits for its end."""
        url = "type.googleapis.com/snakepit.string"
        arguments = {k: self.any(type_url=url, value=json.dumps(v).encode()) for k, v in request["args"].items()}
        message = self.pb.ExecuteToolRequest(tool_name=request["tool"], parameters=arguments)
        if request["stream"]:
            async for _ in self.stub.ExecuteStreamingTool(message, timeout=request["timeout"]):
                pass
            return "OK"
        response = await self.stub.ExecuteTool(message, timeout=request["timeout"])
        return "OK" if response.success else "TOOL_FAILED"

    async def watch(self, session: str, report: Report) -> str:
        """Watches a session until the watch ends."""
        await self.stub.InitializeSession(self.pb.InitializeSessionRequest(session_id=session))
        updates = self.stub.WatchVariables(self.pb.WatchVariablesRequest(session_id=session))
        await updates.initial_metadata()
        report("BEGUN")
        async for _ in updates:
            pass
        return "OK"

    def describe(self, error: Exception) -> object:
        """Describes a gRPC status."""
        if not isinstance(error, self.error):
            return {"error": repr(error)}
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        encoded = base64.b16encode(details).decode()
        return {"code": error.code().value[0], "message": error.details(), "details": encoded}


class Package:
    """Makes requests with the client of the package."""

    def __init__(self, address: str) -> None:
        from snakepit_bridge.client import Client

        self.client = Client(address)

    async def call(self, request: Request) -> str:
        """Calls a tool and waits for its end."""
        caller = self.client.options(timeout=request["timeout"])
        if request["stream"]:
            async for _ in caller.stream_async(request["tool"], **request["args"]):
                pass
        else:
            await caller.call_async(request["tool"], **request["args"])
        return "OK"

    async def watch(self, session: str, report: Report) -> str:
        """Watches a session until the watch ends."""
        watch = await asyncio.to_thread(lambda: self.client.session(session).watch())
        report("BEGUN")
        async for _ in watch:
            pass
        return "OK"

    def describe(self, error: Exception) -> object:
        """Describes an exception by its class, or as ToolFailed if it has a class of the tool."""
        from snakepit_bridge.errors import ToolFailed

        return {"error": ToolFailed.__name__ if isinstance(error, ToolFailed) else type(error).__name__}


async def main() -> None:
    """Reads requests until stdin ends."""
    client = {"grpcio": Grpcio, "package": Package}[sys.argv[1]](sys.argv[2])
    tasks: dict[int, asyncio.Task[None]] = {}

    async def run(request: Request) -> None:
        def report(event: object) -> None:
            print(json.dumps({"id": request["id"], "event": event}), flush=True)

        try:
            session = request.get("watch")
            report(await (client.watch(session, report) if session else client.call(request)))
        except Exception as error:
            report(client.describe(error))

    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await lines.readline():
        request = json.loads(line)
        if "cancel" not in request:
            tasks[request["id"]] = asyncio.create_task(run(request))
        elif request["id"] in tasks:
            tasks.pop(request["id"]).cancel()


asyncio.run(main())
