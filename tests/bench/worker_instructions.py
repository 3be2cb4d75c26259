"""Counts the instructions that a call costs a worker, with callgrind. Run it after `cargo xtask setup`:

    .venv/bin/python tests/bench/worker_instructions.py [--calls 4000] [--in-flight 1] [--tree ANOTHER_WORKTREE]

It starts a worker without a host, and is its only client. The profile of the counted calls stays in the current
directory, one file per thread. Under valgrind, a call takes longer than the worker waits to batch answers, so it writes
each answer separately, even with many calls in flight.
"""

import argparse
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".venv/stubs"))

import grpc  # noqa: E402
import snakepit_bridge_pb2 as pb  # noqa: E402
import snakepit_bridge_pb2_grpc as rpc  # noqa: E402

PROFILE = "worker-instructions.out"
#: At least the size of the progress file that a host creates.
PROGRESS_BYTES = 256 * 1024
WARM_UP_CALLS = 300
INTEGER = 2


class Caller:
    """Makes calls to the tool `add` on one multiplexed stream."""

    def __init__(self, socket: Path) -> None:
        # grpcio measures the bandwidth by pings, and names the authority after the path, which the worker rejects.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.default_authority", "localhost")]
        self.batches: queue.SimpleQueue[pb.CallBatch | None] = queue.SimpleQueue()
        channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self.replies = rpc.BridgeServiceStub(channel).Multiplex(iter(self.batches.get, None))
        self.last_id = 0

    def call(self, count: int) -> None:
        """Start calls in one message, and wait for their answers."""
        starts = []
        for _ in range(count):
            self.last_id += 1
            numbers = {"a": self.last_id, "b": 1}
            arguments = [
                pb.CallArgument(name=name, value=pb.CallValue(type=INTEGER, json=b"%d" % number))
                for name, number in numbers.items()
            ]
            starts.append(pb.CallStart(id=self.last_id, tool_name="add", timeout_us=60_000_000, arguments=arguments))
        self.batches.put(pb.CallBatch(calls=starts))
        while count:
            for reply in next(self.replies).replies:
                assert reply.value.json, reply
                count -= 1


def start(tree: Path, directory: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a worker under callgrind. Return it and its socket."""
    socket, progress = directory / "worker.sock", directory / "progress"
    progress.write_bytes(bytes(PROGRESS_BYTES))
    paths = [tree / "snakepit-python/python", tree / "tests/adapters"]
    environment = {
        **os.environ,
        "SNAKEPIT_SOCKET": str(socket),
        "SNAKEPIT_PROGRESS": str(progress),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={PROFILE}", "--separate-threads=yes"]
    main = "import sys; from snakepit_bridge.worker import main; sys.exit(main())"
    command = [*callgrind, "--quiet", sys.executable, "-c", main, "--adapter", "bench_tools:BenchAdapter"]
    worker = subprocess.Popen(command, env=environment)
    while not socket.exists():
        if worker.poll() is not None:
            sys.exit("the worker has ended before it served")
        time.sleep(0.05)
    return worker, socket


def main() -> None:
    """Count, and print the instructions per call."""
    parser = argparse.ArgumentParser(description="Count the instructions that a call costs a worker.")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the worktree whose worker is counted")
    arguments = parser.parse_args()
    for old in Path().glob(f"{PROFILE}*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as directory:
        worker, socket = start(arguments.tree.resolve(), Path(directory))
        caller = Caller(socket)

        def control(action: str) -> None:
            command = ["callgrind_control", action, str(worker.pid)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        rounds = max(1, arguments.calls // arguments.in_flight)
        for _ in range(max(1, WARM_UP_CALLS // arguments.in_flight)):
            caller.call(arguments.in_flight)
        control("--zero")
        for _ in range(rounds):
            caller.call(arguments.in_flight)
        control("--dump")
        worker.send_signal(signal.SIGTERM)
        caller.batches.put(None)
        worker.wait()
    calls, total = rounds * arguments.in_flight, 0
    # The first dump contains the counted calls. The second one, at exit, contains the shutdown.
    for profile in sorted(Path().glob(f"{PROFILE}.1-*")):
        found = re.search(r"^(?:totals|summary): (\d+)", profile.read_text(), re.MULTILINE)
        count = int(found[1]) if found else 0
        total += count
        print(f"thread {profile.name.rsplit('-', 1)[1]}: {count / calls:,.0f} instructions per call  ({profile})")
    print(f"all threads: {total / calls:,.0f} instructions per call")


if __name__ == "__main__":
    main()
