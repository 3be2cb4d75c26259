"""A tool that is brief, and now and then takes its worker down."""

import os
import signal
import time

from snakepit_bridge import BaseAdapter, tool


class Deadly(BaseAdapter):
    @tool
    def count(self, i: int, victim: int = -1, padding: int = 0, millis: int = 0) -> str:
        """Works for a while, then returns the number and some padding; the victim kills its worker instead."""
        if millis:
            time.sleep(millis / 1000)
        if i == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(i) + " " * padding
