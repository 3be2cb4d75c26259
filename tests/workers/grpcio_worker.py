"""A foreign worker, written with grpcio and the generated stubs only.

It behaves like workers of the original Snakepit: it cannot cancel calls, because they run in threads, and it registers
its tools with the host before every call. `cargo xtask setup` generates the stubs from the .proto.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf import any_pb2, wrappers_pb2

LIMITS = [("grpc.max_send_message_length", 100 << 20), ("grpc.max_receive_message_length", 100 << 20)]
PREFIX = "type.googleapis.com/"


def decode(value: any_pb2.Any) -> object:
    """Decodes a value of this project's JSON types, or a protobuf StringValue."""
    name = value.type_url.removeprefix(PREFIX)
    if name == "google.protobuf.StringValue":
        try:
            return wrappers_pb2.StringValue.FromString(value.value).value
        except Exception:
            return json.loads(value.value)
    return json.loads(value.value)


def encode(value: object) -> any_pb2.Any:
    """Encodes a value as one of this project's JSON types."""
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "map"}
    name = names.get(type(value), "null")
    return any_pb2.Any(type_url=f"{PREFIX}snakepit.{name}", value=json.dumps(value).encode())


class Worker(rpc.BridgeServiceServicer):
    def __init__(self, host: rpc.BridgeServiceStub) -> None:
        self.host = host
        self.events: queue.Queue[pb.TelemetryEvent] = queue.Queue()
        self.controls: list[str] = []

    def tools(self) -> dict:
        return {
            "add": lambda a, b: a + b,
            "echo": lambda **arguments: arguments,
            "fail": self.fail,
            "sleep_for": lambda seconds: time.sleep(seconds),
            "whoami": lambda: {"pid": os.getpid()},
            "call_host": self.call_host,
            "ask_host": self.ask_host,
            "emit": self.emit,
            "controls": lambda: self.controls,
        }

    def emit(self, name: str) -> None:
        measurements = {"count": pb.TelemetryValue(int_value=1), "share": pb.TelemetryValue(float_value=0.5)}
        self.events.put(pb.TelemetryEvent(event_parts=name.split("."), measurements=measurements))

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def call_host(self, tool_name: str, arguments: dict) -> object:
        # The session context of the original sends strings as StringValue, and other values as bare JSON in a Value.
        parameters = {}
        for name, value in arguments.items():
            parameters[name] = any_pb2.Any()
            if isinstance(value, str):
                parameters[name].Pack(wrappers_pb2.StringValue(value=value))
            else:
                parameters[name].type_url = f"{PREFIX}google.protobuf.Value"
                parameters[name].value = json.dumps(value).encode()
        request = pb.ExecuteElixirToolRequest(tool_name=tool_name, parameters=parameters)
        response = self.host.ExecuteElixirTool(request)
        if not response.success:
            raise RuntimeError(response.error_message)
        return decode(response.result)

    def ask_host(self) -> dict:
        """Makes requests of many kinds, and returns their statuses."""
        requests = {
            "Ping": pb.PingRequest(),
            "Heartbeat": pb.HeartbeatRequest(session_id="none"),
            "GetExposedElixirTools": pb.GetExposedElixirToolsRequest(),
            "ExecuteTool": pb.ExecuteToolRequest(tool_name="echo"),
            "ListTools": pb.ListToolsRequest(),
            "ListWorkers": pb.ListWorkersRequest(),
            "RestartWorkers": pb.RestartWorkersRequest(),
            "GetPoolStatus": pb.GetPoolStatusRequest(),
            "ListSessions": pb.ListSessionsRequest(),
            "GetSessionStats": pb.GetSessionStatsRequest(),
        }
        statuses = {}
        for rpc_name, request in requests.items():
            try:
                getattr(self.host, rpc_name)(request, timeout=10)
                statuses[rpc_name] = "OK"
            except grpc.RpcError as error:
                statuses[rpc_name] = error.code().name
        return statuses

    def call_back(self, session_id: str) -> None:
        """Registers the session and the tools, as workers of the original do before every call."""
        try:
            self.host.InitializeSession(pb.InitializeSessionRequest(session_id=session_id))
        except grpc.RpcError as error:
            if session_id:
                raise RuntimeError(f"no session: {error}") from error
        tools = [pb.ToolRegistration(name=name, description=f"the tool {name}") for name in self.tools()]
        tools.append(pb.ToolRegistration(name="count", supports_streaming=True))
        request = pb.RegisterToolsRequest(session_id=session_id, tools=tools, worker_id=f"python-{id(self)}")
        response = self.host.RegisterTools(request)
        if not response.success and "duplicate_tool" not in response.error_message:
            raise RuntimeError(f"registration rejected: {response.error_message}")

    def Ping(self, request: pb.PingRequest, context: grpc.ServicerContext) -> pb.PingResponse:
        return pb.PingResponse(message=f"pong: {request.message}")

    def StreamTelemetry(self, controls, context: grpc.ServicerContext):
        """Sends the events of `emit`, and records the controls of the host."""

        def read() -> None:
            for control in controls:
                self.controls.append(str(control).replace("\n", " ").strip())

        threading.Thread(target=read, daemon=True).start()
        while context.is_active():
            try:
                yield self.events.get(timeout=0.1)
            except queue.Empty:
                continue

    def ExecuteTool(self, request: pb.ExecuteToolRequest, context: grpc.ServicerContext) -> pb.ExecuteToolResponse:
        began = time.monotonic()
        try:
            self.call_back(request.session_id)
            arguments = {name: decode(value) for name, value in request.parameters.items()}
            result = self.tools()[request.tool_name](**arguments)
        except Exception as error:
            return pb.ExecuteToolResponse(success=False, error_message=str(error))
        milliseconds = int((time.monotonic() - began) * 1000)
        return pb.ExecuteToolResponse(success=True, result=encode(result), execution_time_ms=milliseconds)

    def ExecuteStreamingTool(self, request: pb.ExecuteToolRequest, context: grpc.ServicerContext):
        self.call_back(request.session_id)
        if request.tool_name != "count":
            context.abort(grpc.StatusCode.INTERNAL, f"no such tool: {request.tool_name}")
        for number in range(decode(request.parameters["n"])):
            yield pb.ToolChunk(chunk_id=f"count-{number + 1}", data=json.dumps({"number": number}).encode())
        yield pb.ToolChunk(is_final=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter", default="")
    parser.add_argument("--elixir-address", required=True)
    parser.add_argument("--snakepit-run-id", required=True)
    parser.add_argument("--ready", choices=["stdout", "file"], default="stdout")
    args = parser.parse_args()

    host = rpc.BridgeServiceStub(grpc.insecure_channel(args.elixir_address, options=LIMITS))
    host.Ping(pb.PingRequest(message="worker"), timeout=10)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=LIMITS)
    rpc.add_BridgeServiceServicer_to_server(Worker(host), server)
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    if args.ready == "stdout":
        print(f"GRPC_READY:{port}", flush=True)
    else:
        ready = Path(os.environ["SNAKEPIT_READY_FILE"])
        temporary = ready.with_suffix(".new")
        temporary.write_text(str(port))
        temporary.rename(ready)

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(grace=0.5).wait()
    # A normal exit would wait for threads that run tools.
    os._exit(0)


if __name__ == "__main__":
    main()
