"""An adapter module that starts a process during its import, and then sleeps."""

import os
import subprocess
import time
from pathlib import Path

_child = subprocess.Popen(["sleep", "600"])
_pid_file = Path(os.environ["SNAKEPIT_TEST_PIDS"], str(os.getpid()))
_temporary_file = _pid_file.with_suffix(".new")
_temporary_file.write_text(str(_child.pid))
_temporary_file.rename(_pid_file)
time.sleep(600)


class Adapter:
    pass
