"""Runs the daemon's command line: ``python -m snakepit_bridge serve shop:Shop`` is ``snakepit serve shop:Shop``.

Workers run with this Python interpreter, unless ``--python`` or ``$SNAKEPIT_PYTHON`` names another one.
"""

from __future__ import annotations

import os
import sys

from snakepit_bridge._launch import PYTHON_VARIABLE, DaemonError, find_binary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: The exit code of the daemon if it cannot start.
_CANNOT_START = 5


def main() -> NoReturn:
    """Replace this process with the daemon's binary. Without arguments, it prints its help."""
    environment = dict(os.environ)
    if sys.executable and not environment.get(PYTHON_VARIABLE):
        environment[PYTHON_VARIABLE] = sys.executable
    arguments = sys.argv[1:] or ["--help"]
    try:
        # The process keeps its id and its terminal, so signals reach the daemon directly.
        os.execve(find_binary(), ["snakepit", *arguments], environment)  # noqa: S606
    except (DaemonError, OSError) as error:
        print(f"snakepit: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(_CANNOT_START)


if __name__ == "__main__":
    main()
