"""Makes all kinds of RPCs with plain grpcio and gzip compression. Prints `ok` at the end.

Usage: gzip_client.py HOST:PORT. The host has the showcase adapter.
"""

import json
import sys

import grpc
import pytest
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf import any_pb2

#: A text that compresses well.
TEXT = "snake" * 20_000


def encode(type_name: str, value: object) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/snakepit.{type_name}", value=json.dumps(value).encode())


def unary(stub: rpc.BridgeServiceStub) -> None:
    request = pb.ExecuteToolRequest(tool_name="echo", parameters={"text": encode("string", TEXT)})
    response = stub.ExecuteTool(request, timeout=30)
    assert response.success
    assert json.loads(response.result.value)["text"] == TEXT
    rejected = pb.ExecuteToolRequest(tool_name="no_such_tool", parameters={"text": encode("string", TEXT)})
    with pytest.raises(grpc.RpcError) as raised:
        stub.ExecuteTool(rejected, timeout=30)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def server_stream(stub: rpc.BridgeServiceStub) -> None:
    request = pb.ExecuteToolRequest(tool_name="count", parameters={"n": encode("integer", 2000)}, stream=True)
    chunks = list(stub.ExecuteStreamingTool(request, timeout=30))
    assert chunks[-1].is_final
    assert [json.loads(chunk.data) for chunk in chunks if chunk.data] == list(range(1, 2001))


def watch_stream(stub: rpc.BridgeServiceStub) -> None:
    stub.InitializeSession(pb.InitializeSessionRequest(session_id="zipped"), timeout=30)
    register = pb.RegisterVariableRequest(session_id="zipped", name="text", type="string")
    register.initial_value.CopyFrom(encode("string", TEXT))
    assert stub.RegisterVariable(register, timeout=30).success
    watch = pb.WatchVariablesRequest(session_id="zipped", include_initial_values=True)
    watch.variable_identifiers.append("text")
    updates = stub.WatchVariables(watch, timeout=30)
    assert json.loads(next(updates).variable.value.value) == TEXT
    updates.cancel()


def bidirectional_stream(stub: rpc.BridgeServiceStub) -> None:
    def batches() -> object:
        for number in range(1, 21):
            value = pb.CallValue(type=pb.CALL_VALUE_TYPE_STRING, json=json.dumps(TEXT).encode())
            argument = pb.CallArgument(name="text", value=value)
            call = pb.CallStart(id=number, tool_name="echo", arguments=[argument])
            yield pb.CallBatch(calls=[call])

    replies = [reply for batch in stub.Multiplex(batches(), timeout=30) for reply in batch.replies]
    assert sorted(reply.id for reply in replies) == list(range(1, 21))
    assert all(json.loads(reply.value.json)["text"] == TEXT for reply in replies), replies[0]


def main() -> None:
    with grpc.insecure_channel(sys.argv[1], compression=grpc.Compression.Gzip) as channel:
        stub = rpc.BridgeServiceStub(channel)
        unary(stub)
        server_stream(stub)
        watch_stream(stub)
        bidirectional_stream(stub)
    sys.stdout.write("ok\n")


if __name__ == "__main__":
    main()
