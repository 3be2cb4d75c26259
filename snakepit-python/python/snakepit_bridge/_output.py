"""What a worker leaves behind for the call it runs: its output, and Python's stacks should a fatal signal arrive."""

from __future__ import annotations

import io
import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from snakepit_bridge import _native


def keep(worker: _native.Worker) -> None:
    """Have what the thread of the calls prints attributed to the call that runs, and stacks kept outside of stderr."""
    main = get_ident()

    class CallOutput(io.FileIO):
        """A standard stream that also tells the runtime what is written into it."""

        def write(self, data: io.ReadableBuffer, /) -> int:  # type: ignore[name-defined]
            written = super().write(data)
            # Other threads may work for earlier calls. A fork is kept apart by the runtime.
            if written and get_ident() == main:
                worker.note_output(bytes(memoryview(data)[:written]))
            return written

    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        # Without a file behind it there is nothing to read for a host.
        if not isinstance(stream, io.TextIOWrapper):
            continue
        raw = CallOutput(descriptor, "wb", closefd=False)
        raw.name = stream.name
        unbuffered = isinstance(stream.buffer, io.RawIOBase)
        wrapped = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            write_through=unbuffered,
            # Prints reach the host line by line, not whenever a buffer is full.
            line_buffering=True,
        )
        stream.flush()
        setattr(sys, name, wrapped)
        setattr(sys, f"__{name}__", wrapped)
    _keep_stacks(worker)


def _keep_stacks(worker: _native.Worker) -> None:
    descriptor = worker.open_stacks()
    if descriptor is None:
        return
    import faulthandler

    faulthandler.enable(file=descriptor)
    # The stacks of a fork are none of the worker's.
    os.register_at_fork(after_in_child=faulthandler.enable)
