"""Tools of the tests of recycling."""

import os
import time

LEAK: list[bytes] = []


def pid() -> int:
    return os.getpid()


def leak(mib: int, seconds: float = 0.0) -> int:
    """Keeps memory forever, and runs for some time afterwards."""
    LEAK.append(b"x" * (mib << 20))
    time.sleep(seconds)
    return os.getpid()
