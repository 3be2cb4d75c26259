"""Calls tools with plain grpcio on one channel, and prints the outcome of each call as a line of JSON.

Usage: grpcio_client.py HOST:PORT CALL... Each CALL is MODE:TOOL:ARGUMENTS, where MODE is `unary` or `stream` and
ARGUMENTS is a JSON object.
"""

import json
import os
import sys

sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf import any_pb2


def encode(value: object) -> any_pb2.Any:
    """Encodes a string or an integer."""
    name = "string" if isinstance(value, str) else "integer"
    url = f"type.googleapis.com/snakepit.{name}"
    return any_pb2.Any(type_url=url, value=json.dumps(value).encode())


def call(stub: rpc.BridgeServiceStub, mode: str, tool: str, arguments: dict) -> dict:
    """Calls a tool and describes the outcome."""
    parameters = {name: encode(value) for name, value in arguments.items()}
    request = pb.ExecuteToolRequest(tool_name=tool, parameters=parameters)
    chunks = 0
    try:
        if mode == "unary":
            response = stub.ExecuteTool(request, timeout=30)
            return {"success": response.success, "message": response.error_message}
        for _ in stub.ExecuteStreamingTool(request, timeout=30):
            chunks += 1
        return {"success": True, "chunks": chunks}
    except grpc.RpcError as error:
        trailers = {key for key, _ in error.trailing_metadata() or ()}
        return {
            "success": False,
            "code": error.code().name,
            "message": error.details(),
            "details": "grpc-status-details-bin" in trailers,
            "chunks": chunks,
        }


def main() -> None:
    """Makes the calls."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = rpc.BridgeServiceStub(channel)
        for argument in sys.argv[2:]:
            mode, tool, arguments = argument.split(":", 2)
            sys.stdout.write(json.dumps(call(stub, mode, tool, json.loads(arguments))) + "\n")


if __name__ == "__main__":
    main()
