"""The grpcio client of docs/clients.md. The argument is the host's address."""

import json
import sys

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf.any_pb2 import Any


def value(kind, value):
    return Any(type_url=f"type.googleapis.com/snakepit.{kind}", value=json.dumps(value).encode())


# For `unix:` addresses, gRPC derives an authority from the path, which HTTP/2 servers reject.
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.default_authority", "localhost")])
bridge = rpc.BridgeServiceStub(channel)
bridge.InitializeSession(pb.InitializeSessionRequest(session_id="alice"))
numbers = {"a": value("integer", 1), "b": value("float", 2.5)}
request = pb.ExecuteToolRequest(session_id="alice", tool_name="add", parameters=numbers)
answer = bridge.ExecuteTool(request, timeout=5)
print(json.loads(answer.result.value) if answer.success else answer.error_message)
request = pb.ExecuteToolRequest(tool_name="count", parameters={"n": value("integer", 3)})
print([json.loads(chunk.data) for chunk in bridge.ExecuteStreamingTool(request, timeout=5) if chunk.data])
