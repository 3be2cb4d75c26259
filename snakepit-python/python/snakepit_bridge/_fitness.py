"""Checks whether the process can still run calls after one failed: resources that a tool exhausted or broke."""

from __future__ import annotations

import errno
import os
import sys

#: The size of a test allocation, in bytes. It fails if memory is exhausted.
_TEST_ALLOCATION = 4 << 20


class Fitness:
    """Compares the process with its state before the first call."""

    def __init__(self) -> None:
        self._descriptors = [number for number in (0, 1, 2) if _is_open(number)]
        self._had_directory = _has_directory()

    def problem(self) -> str | None:
        """Return the problem that prevents further calls, or ``None``."""
        for number in self._descriptors:
            if not _is_open(number):
                return f"descriptor {number} was closed"
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno == errno.EMFILE:
                return "it has no free descriptor"
        if self._had_directory and not _has_directory():
            return "its working directory was removed"
        try:
            bytearray(_TEST_ALLOCATION)
        except MemoryError:
            return "its memory is exhausted"
        if not sys.meta_path or not sys.path_hooks:
            return "a tool removed the importers"
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            try:
                # Without a stream, Python prints nothing.
                if stream is not None:
                    stream.write("")
                    stream.flush()
            except Exception as error:
                return f"sys.{name} cannot be written to: {type(error).__name__}"
        return None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _has_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True
