"""An adapter module that leaves a note when its interpreter ends in order."""

import atexit
import os
import time
from pathlib import Path

from snakepit_bridge import BaseAdapter, tool


@atexit.register
def _leave_note() -> None:
    # As long as large libraries take to be torn down.
    time.sleep(float(os.environ.get("SNAKEPIT_TEST_SLOW_END", "0")))
    Path(os.environ["SNAKEPIT_TEST_NOTES"], str(os.getpid())).write_text("ended in order")


class Adapter(BaseAdapter):
    @tool
    def ping(self) -> str:
        return "pong"
