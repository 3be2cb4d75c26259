"""Clients with expired and cancelled requests keep their connection, and the stream and watch on it continue.

Arguments: the host's address and pid. The host has the adapter `unlucky:UnluckyTools`. Prints `ok` at the end.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import grpc
import snakepit_bridge_pb2 as pb
import snakepit_bridge_pb2_grpc as rpc
from google.protobuf import any_pb2

from snakepit_bridge import DeadlineExceededError
from snakepit_bridge.client import Client


def check_streams_continue(chunks: Iterator[object], watch: Iterator[object]) -> None:
    """Checks that the stream and the watch still deliver."""
    for _ in range(3):
        next(chunks)
    next(watch)


def check_package(address: str, timeout: float) -> None:
    """Reads a large variable in many threads, with a timeout that most reads miss."""
    with Client(address) as client:
        session = client.session("package")
        session["large"] = "x" * 2_000_000
        session["n"] = 0
        chunks = client.stream("count", n=1_000_000, pause=0.01)
        watch = session.watch("n")
        next(chunks)
        short_timeout = session.options(timeout=timeout)

        def read() -> None:
            for _ in range(20):
                with contextlib.suppress(DeadlineExceededError):
                    assert len(short_timeout["large"]) == 2_000_000

        threads = [threading.Thread(target=read) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        session["n"] = 1
        check_streams_continue(chunks, watch)
        chunks.close()
        watch.close()


def encode(type_name: str, json: str) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/snakepit.{type_name}", value=json.encode())


def check_grpcio(address: str, pid: int) -> None:
    """Makes requests that expire or are cancelled while the host is stopped, or that are cancelled immediately."""
    with grpc.insecure_channel(address) as channel:
        stub = rpc.BridgeServiceStub(channel)
        stub.InitializeSession(pb.InitializeSessionRequest(session_id="grpcio"))
        variable = pb.RegisterVariableRequest(
            session_id="grpcio", name="n", type="integer", initial_value=encode("integer", "0")
        )
        stub.RegisterVariable(variable)
        parameters = {"n": encode("integer", "1000000"), "pause": encode("float", "0.01")}
        request = pb.ExecuteToolRequest(tool_name="count", parameters=parameters, stream=True)
        chunks = stub.ExecuteStreamingTool(request)
        watch = stub.WatchVariables(pb.WatchVariablesRequest(session_id="grpcio", include_initial_values=True))
        next(chunks)
        next(watch)
        sleep = pb.ExecuteToolRequest(tool_name="sleep", parameters={"seconds": encode("float", "30")})
        for timeout in (0.1, 30.0):
            os.kill(pid, signal.SIGSTOP)
            calls = [stub.ExecuteTool.future(sleep, timeout=timeout) for _ in range(500)]
            if timeout == 0.1:
                codes = [call.code() for call in calls]
                assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}, codes
            else:
                # The timeout of this later request shows that the requests before it were sent.
                assert stub.Ping.future(pb.PingRequest(), timeout=0.3).exception() is not None
                for call in calls:
                    call.cancel()
            os.kill(pid, signal.SIGCONT)
            assert stub.Ping(pb.PingRequest(message="alive"), timeout=20).message
        for _ in range(1000):
            stub.Ping.future(pb.PingRequest()).cancel()
        stub.SetVariable(
            pb.SetVariableRequest(session_id="grpcio", variable_identifier="n", value=encode("integer", "1"))
        )
        check_streams_continue(chunks, watch)


if __name__ == "__main__":
    for seconds in (0.0005, 0.002, 0.01):
        check_package(sys.argv[1], seconds)
    check_grpcio(sys.argv[1], int(sys.argv[2]))
    print("ok")
