"""The Python client of the soak test: calls and streams from several threads until stdin closes.

Arguments: the host's address, and a number that differs from that of every other client of the run. Prints reports as
lines of JSON: the calls that ended since the previous report, and violations. A kill loses the reports of at most one
second.
"""

import json
import sys
import threading
import time
from typing import Any

from snakepit_bridge.client import Client
from snakepit_bridge.errors import SnakepitError

#: The timeout of every call, and the time that a call may take beyond it, in seconds.
DEADLINE, GRACE = 3.0, 3.0
THREADS = 4


class Load:
    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.succeeded = 0
        self.failures: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self.lock = threading.Lock()
        self.is_stopping = threading.Event()
        # The monotonic time at which the process last resumed after it was stopped.
        self.resumed_at = 0.0

    def watch_for_freezes(self) -> None:
        before = time.monotonic()
        while not self.is_stopping.wait(0.1):
            now = time.monotonic()
            if now - before > 1.0:
                self.resumed_at = now
            before = now

    def report(self) -> None:
        with self.lock:
            report = {"succeeded": self.succeeded, "failures": self.failures, "violations": self.violations}
            self.succeeded, self.failures, self.violations = 0, [], []
        print(json.dumps(report), flush=True)

    def report_regularly(self) -> None:
        while not self.is_stopping.wait(0.5):
            self.report()

    def run(self, number: int) -> None:
        nonce = (int(sys.argv[2]) * THREADS + number + 1) << 32
        while not self.is_stopping.is_set():
            nonce += 1
            began, began_at = time.monotonic(), time.time()
            error = self.call(nonce)
            took = time.monotonic() - began
            with self.lock:
                if error is None:
                    self.succeeded += 1
                else:
                    self.failures.append({"class": type(error).__name__, "message": str(error), "began": began_at})
                if took > DEADLINE + GRACE and self.resumed_at < began:
                    self.violations.append(f"a call took {took:.1f} s and ended as {error!r}")

    def call(self, nonce: int) -> SnakepitError | None:
        """Makes a call or reads a stream. Returns its error, or None."""
        expected = nonce * 31 + 7
        calls = self.client.options(timeout=DEADLINE)
        try:
            if nonce % 4:
                result = calls.call("mark_async", nonce=nonce, millis=nonce % 3 * 5)
                is_right = result == expected
            else:
                result = list(calls.stream("numbers", nonce=nonce, n=200))
                is_right = result == list(range(expected, expected + 200))
        except SnakepitError as error:
            return error
        if not is_right:
            with self.lock:
                self.violations.append(f"nonce {nonce} returned {str(result)[:200]}")
        return None


def main() -> None:
    load = Load(sys.argv[1])
    threads = [threading.Thread(target=load.watch_for_freezes), threading.Thread(target=load.report_regularly)]
    threads += [threading.Thread(target=load.run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    load.is_stopping.set()
    for thread in threads:
        thread.join()
    load.client.close()
    load.report()


main()
