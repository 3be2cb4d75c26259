"""A tool that is brief, and now and then takes its worker down."""

import os
import signal

from snakepit_bridge import BaseAdapter, tool


class Deadly(BaseAdapter):
    @tool
    def count(self, i: int, victim: int = -1, padding: int = 0) -> str:
        """Returns the number, then some padding. Kills the worker instead if the number is the victim's."""
        if i == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(i) + " " * padding
