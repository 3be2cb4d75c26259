"""An adapter module that writes a file when its interpreter exits normally."""

import atexit
import os
import time
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool


@atexit.register
def _write_note() -> None:
    # Simulates the exit of large libraries.
    time.sleep(float(os.environ.get("SNAKEPIT_TEST_SLOW_END", "0")))
    Path(os.environ["SNAKEPIT_TEST_NOTES"], str(os.getpid())).write_text("ended in order")


class Adapter(BaseAdapter):
    @tool
    def ping(self) -> str:
        return "pong"
