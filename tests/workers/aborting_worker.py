"""A foreign worker whose tools end their calls with errors.

`abort` ends with the gRPC status in its argument. `garble` streams a malformed message, and then runs for a minute.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from concurrent import futures

sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])

import grpc
import snakepit_bridge_pb2 as pb
from google.protobuf.message import Message


def serialize(message: Message | bytes) -> bytes:
    """Serializes a message. Bytes pass unchanged, which allows malformed messages."""
    return message if isinstance(message, bytes) else message.SerializeToString()


class Worker:
    def Ping(self, request: pb.PingRequest, context: grpc.ServicerContext) -> pb.PingResponse:
        return pb.PingResponse(message=f"pong: {request.message}")

    def abort(self, request: pb.ExecuteToolRequest, context: grpc.ServicerContext) -> None:
        arguments = {name: json.loads(value.value) for name, value in request.parameters.items()}
        context.abort(grpc.StatusCode[arguments["code"]], "reason " + "z" * arguments.get("length", 0))

    def ExecuteTool(self, request: pb.ExecuteToolRequest, context: grpc.ServicerContext) -> pb.ExecuteToolResponse:
        self.abort(request, context)

    def ExecuteStreamingTool(self, request: pb.ExecuteToolRequest, context: grpc.ServicerContext):
        yield pb.ToolChunk(chunk_id="1", data=b"1")
        if request.tool_name == "garble":
            yield b"\xff"
            time.sleep(60)
        self.abort(request, context)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--elixir-address", required=True)
    parser.add_argument("--snakepit-run-id", required=True)
    args = parser.parse_args()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    worker = Worker()
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    methods = {
        "Ping": unary(worker.Ping, pb.PingRequest.FromString, serialize),
        "ExecuteTool": unary(worker.ExecuteTool, pb.ExecuteToolRequest.FromString, serialize),
        "ExecuteStreamingTool": stream(worker.ExecuteStreamingTool, pb.ExecuteToolRequest.FromString, serialize),
    }
    handler = grpc.method_handlers_generic_handler("snakepit.bridge.BridgeService", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    print(f"GRPC_READY:{port}", flush=True)

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(grace=0.5).wait()


if __name__ == "__main__":
    main()
