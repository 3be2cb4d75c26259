"""Session state over plain gRPC, as on docs/clients.md. The argument is the host's address."""

import sys

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf.any_pb2 import Any


def number(json):
    return Any(type_url="type.googleapis.com/snakepit.float", value=json)


bridge = rpc.BridgeServiceStub(grpc.insecure_channel(sys.argv[1]))
bridge.InitializeSession(pb.InitializeSessionRequest(session_id="bob"))
bridge.RegisterVariable(
    pb.RegisterVariableRequest(
        session_id="bob", name="rate", type="float", initial_value=number(b"0.1"), constraints_json='{"max": 1}'
    )
)
watch = pb.WatchVariablesRequest(session_id="bob", variable_identifiers=["rate"], include_initial_values=True)
updates = bridge.WatchVariables(watch)
write = pb.SetVariableRequest(session_id="bob", variable_identifier="rate", value=number(b"0.2"))
print(bridge.SetVariable(write).new_version)
for update in updates:
    print(update.update_type, update.variable.version, update.variable.value.value.decode())
    if update.variable.version == 1:
        break
write = pb.SetVariableRequest(session_id="bob", variable_identifier="rate", value=number(b"0.3"), expected_version=7)
try:
    bridge.SetVariable(write)
except grpc.RpcError as error:
    print(error.code().name, error.details())
