"""A short tool that can kill its worker."""

import os
import signal
import time

from snakepit_bridge import BaseAdapter, tool


class Deadly(BaseAdapter):
    @tool
    def count(self, i: int, victim: int = -1, padding: int = 0, millis: int = 0) -> str:
        """Works for a while, and returns the number with padding. If it is `victim`, kills the worker instead."""
        if millis:
            time.sleep(millis / 1000)
        if i == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(i) + " " * padding
