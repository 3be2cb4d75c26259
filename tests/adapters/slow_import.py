"""An adapter module that starts a process during its import, and then sleeps."""

import os
import subprocess
import time
from pathlib import Path

_child = subprocess.Popen(["sleep", "600"])
_note = Path(os.environ["SNAKEPIT_TEST_PIDS"], str(os.getpid()))
_unfinished = _note.with_suffix(".new")
_unfinished.write_text(str(_child.pid))
_unfinished.rename(_note)
time.sleep(600)


class Adapter:
    pass
