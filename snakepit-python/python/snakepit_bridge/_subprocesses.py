"""Gives each subprocess that a call starts its own pipes for its output.

The lines of subprocesses that share a pipe mix if a line takes several writes, as in a Python program with
``PYTHONUNBUFFERED``. The native runtime forwards the output of each pipe as that of the call.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from snakepit_bridge._output import Output

#: The positions of the arguments of `_posixsubprocess.fork_exec` for standard output and standard error.
_STREAMS = (9, 11)


def install(output: Output) -> None:
    """Replace the functions that start subprocesses."""
    import _posixsubprocess

    fork_exec = _posixsubprocess.fork_exec

    def start_in_call(*args: Any) -> int:
        with _Pipes(output) as pipes:
            changed = list(args)
            if len(args) > max(_STREAMS):
                for stream, position in enumerate(_STREAMS):
                    changed[position] = pipes.replace(args[position], stream)
            return fork_exec(*changed)

    _replace(_posixsubprocess, "fork_exec", start_in_call)
    subprocess: Any = sys.modules.get("subprocess")
    if subprocess is not None and hasattr(subprocess, "_fork_exec"):
        subprocess._fork_exec = start_in_call
    for name in ("posix_spawn", "posix_spawnp"):
        spawn = getattr(os, name, None)
        if spawn is not None:
            _replace(os, name, _spawn_in_call(spawn, output))
    _replace(os, "system", _system)
    exit_process = os._exit

    def exit_after_output(status: int) -> Any:
        output.forward_programs()
        exit_process(status)

    _replace(os, "_exit", exit_after_output)
    os.register_at_fork(before=output.begin_program)


def _replace(module: Any, name: str, function: Callable[..., Any]) -> None:
    original = getattr(module, name)
    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = original.__module__, original.__doc__
    setattr(module, name, function)


def _spawn_in_call(spawn: Callable[..., int], output: Output) -> Callable[..., int]:
    def spawn_in_call(path: Any, argv: Any, env: Any, /, *, file_actions: Any = (), **options: Any) -> int:
        with _Pipes(output) as pipes:
            actions: list[Any] = []
            for stream in (0, 1):
                descriptor = pipes.replace(-1, stream)
                if descriptor != -1:
                    actions.append((os.POSIX_SPAWN_DUP2, descriptor, stream + 1))
            # The file actions of the caller come last, because they may redirect the streams.
            return spawn(path, argv, env, file_actions=[*actions, *(file_actions or ())], **options)

    return spawn_in_call


def _system(command: str | bytes) -> int:
    # The C function `system` cannot redirect the output of the subprocess to a pipe.
    sys.audit("os.system", command)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", os.fsdecode(command)], os.environ)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        # The tool ignores SIGCHLD.
        return -1


class _Pipes:
    """The pipes of one subprocess, which are opened when they are needed."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pipes: dict[int, int] = {}

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        # The subprocess has inherited copies of the descriptors.
        for descriptor in self._pipes.values():
            os.close(descriptor)

    def replace(self, descriptor: int, stream: int) -> int:
        """Return the descriptor that replaces ``descriptor`` in the subprocess.

        ``stream`` is 0 for standard output and 1 for standard error. If the descriptor is -1, the subprocess inherits
        the stream.
        """
        target = stream if descriptor == -1 else descriptor - 1
        if target not in (0, 1):
            return descriptor
        pipe = self._pipes.get(target)
        if pipe is None:
            pipe = self._output.open_pipe(target)
            if pipe is None:
                self._output.begin_program()
                return descriptor
            self._pipes[target] = pipe
        return pipe
