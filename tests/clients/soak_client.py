"""A Python client under load: calls and streams from several threads until standard input closes.

Arguments: the host's address, and a number that no other client of the run has. Prints one JSON object per line: the
outcomes since the line before, and the violations. A client that is killed loses less than a second of them.
"""

import json
import sys
import threading
import time
from collections import Counter

from snakepit_bridge.client import Client
from snakepit_bridge.errors import SnakepitError

DEADLINE, GRACE = 3.0, 3.0
THREADS = 4


class Load:
    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        # The end of the last moment in which this whole process stood still.
        self.froze_until = 0.0

    def watch_for_freezes(self) -> None:
        before = time.monotonic()
        while not self.stopping.wait(0.1):
            now = time.monotonic()
            if now - before > 1.0:
                self.froze_until = now
            before = now

    def report(self) -> None:
        with self.lock:
            line = json.dumps({"outcomes": self.outcomes, "violations": self.violations})
            self.outcomes, self.violations = Counter(), []
        print(line, flush=True)

    def report_regularly(self) -> None:
        while not self.stopping.wait(0.5):
            self.report()

    def run(self, number: int) -> None:
        nonce = (int(sys.argv[2]) * THREADS + number + 1) << 32
        while not self.stopping.is_set():
            nonce += 1
            began = time.monotonic()
            outcome = self.one(nonce)
            took = time.monotonic() - began
            with self.lock:
                self.outcomes[outcome] += 1
                if took > DEADLINE + GRACE and self.froze_until < began:
                    self.violations.append(f"a call took {took:.1f} s and ended as {outcome}")

    def one(self, nonce: int) -> str:
        expected = nonce * 31 + 7
        calls = self.client.options(timeout=DEADLINE)
        try:
            if nonce % 4:
                got = calls.call("mark_async", nonce=nonce, millis=nonce % 3 * 5)
                right = got == expected
            else:
                got = list(calls.stream("numbers", nonce=nonce, n=200))
                right = got == list(range(expected, expected + 200))
        except SnakepitError as error:
            return type(error).__name__
        if not right:
            with self.lock:
                self.violations.append(f"nonce {nonce} got {str(got)[:200]}")
        return "ok"


def main() -> None:
    load = Load(sys.argv[1])
    threads = [threading.Thread(target=load.watch_for_freezes), threading.Thread(target=load.report_regularly)]
    threads += [threading.Thread(target=load.run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    load.stopping.set()
    for thread in threads:
        thread.join()
    load.client.close()
    load.report()


main()
