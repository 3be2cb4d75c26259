"""A substitute for the Python runtime that claims another version. It registers a tool on the host's socket.

The variable OTHER_BRIDGE chooses the behavior:

- `old` registers without a token.
- `VERSION PROTOCOL` registers with its token, this version and this protocol.
- `stolen VERSION PROTOCOL` first lets a process outside the launch register with the token.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.environ["SNAKEPIT_TEST_STUBS"])

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc


def register(address: str, identity: pb.WorkerIdentity | None) -> str:
    # gRPC derives an authority from the path, which HTTP/2 servers reject.
    channel = grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")])
    tools = [pb.ToolRegistration(name="other")]
    try:
        response = rpc.BridgeServiceStub(channel).RegisterTools(
            pb.RegisterToolsRequest(tools=tools, worker_id="other", identity=identity), timeout=10
        )
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return f"registered: {response.success}"


def main() -> None:
    if sys.argv[1] == "--stranger":
        address, token, version, protocol = sys.argv[2:]
        print(register(address, pb.WorkerIdentity(token=token, version=version, protocol=int(protocol))))
        return
    address = sys.argv[sys.argv.index("--elixir-address") + 1]
    if os.environ["OTHER_BRIDGE"] == "old":
        result = register(address, None)
    else:
        version, protocol = os.environ["OTHER_BRIDGE"].split()[-2:]
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(0, 1)
        token = json.loads(line)["token"]
        environ = Path(f"/proc/{os.getpid()}/environ").read_bytes()
        assert token.encode() not in environ, "the token is visible"
        assert token not in " ".join(sys.argv), "the token is visible"
        if "stolen" in os.environ["OTHER_BRIDGE"]:
            # The intermediate processes end, so the stranger is not a descendant of this process.
            stranger_command = [sys.executable, __file__, "--stranger", address, token, version, protocol]
            orphan = ["setsid", "sh", "-c", '(setsid "$@" &)', "sh", *stranger_command]
            reading, writing = os.pipe()
            subprocess.run(orphan, stdin=subprocess.DEVNULL, stdout=writing, check=True)
            os.close(writing)
            result = os.fdopen(reading).read().strip()
            again = register(address, pb.WorkerIdentity(token=token, version=version, protocol=int(protocol)))
            result += f" / then itself: {again}"
        else:
            result = register(address, pb.WorkerIdentity(token=token, version=version, protocol=int(protocol)))
    os.write(0, json.dumps({"event": "failed", "error": result}).encode() + b"\n")


if __name__ == "__main__":
    main()
