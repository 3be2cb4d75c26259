"""A foreign worker with the tools of the benchmark, written with grpc.aio and the generated stubs only.

It is as efficient as grpcio allows: coroutines on one event loop, no message limits, and one registration of the tools.
`cargo xtask setup` generates the stubs from the .proto.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf import any_pb2

LIMITS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
PREFIX = "type.googleapis.com/snakepit."
RAW = b'{"type":"bytes","binary_format":"raw"}'


class Worker(rpc.BridgeServiceServicer):
    async def Ping(self, request: pb.PingRequest, context: grpc.aio.ServicerContext) -> pb.PingResponse:
        return pb.PingResponse(message=f"pong: {request.message}")

    async def ExecuteTool(
        self, request: pb.ExecuteToolRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExecuteToolResponse:
        began = time.monotonic()
        response = pb.ExecuteToolResponse(success=True)
        if request.tool_name == "add":
            a, b = (json.loads(request.parameters[name].value) for name in ("a", "b"))
            response.result.CopyFrom(any_pb2.Any(type_url=f"{PREFIX}integer", value=json.dumps(a + b).encode()))
        elif request.tool_name == "echo_bytes":
            response.result.CopyFrom(any_pb2.Any(type_url=f"{PREFIX}bytes.binary", value=RAW))
            response.binary_result = request.binary_parameters["data"]
        else:
            return pb.ExecuteToolResponse(success=False, error_message=f"no such tool: {request.tool_name}")
        response.execution_time_ms = int((time.monotonic() - began) * 1000)
        return response

    async def ExecuteStreamingTool(self, request: pb.ExecuteToolRequest, context: grpc.aio.ServicerContext):
        if request.tool_name != "chunks":
            await context.abort(grpc.StatusCode.INTERNAL, f"no such tool: {request.tool_name}")
        for number in range(json.loads(request.parameters["n"].value)):
            yield pb.ToolChunk(data=json.dumps(number).encode())
        yield pb.ToolChunk(is_final=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter", default="")
    parser.add_argument("--elixir-address", required=True)
    parser.add_argument("--snakepit-run-id", required=True)
    args = parser.parse_args()

    server = grpc.aio.server(options=LIMITS)
    rpc.add_BridgeServiceServicer_to_server(Worker(), server)
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    await server.start()

    tools = [pb.ToolRegistration(name=name) for name in ("add", "echo_bytes")]
    tools.append(pb.ToolRegistration(name="chunks", supports_streaming=True))
    worker_id = os.environ.get("SNAKEPIT_WORKER_ID", f"python-{os.getpid()}")
    async with grpc.aio.insecure_channel(args.elixir_address, options=LIMITS) as channel:
        await rpc.BridgeServiceStub(channel).RegisterTools(
            pb.RegisterToolsRequest(tools=tools, worker_id=worker_id), timeout=10
        )
    print(f"GRPC_READY:{port}", flush=True)

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(grace=0.5)


if __name__ == "__main__":
    asyncio.run(main())
