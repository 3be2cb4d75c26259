"""Writes the file of ``snakepit stubs --output``, by the rules of ``snakepit call --output`` (``destination.rs``)."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The signals that take effect only after the write.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def write_file(path: Path, content: bytes) -> None:
    """Write a file. If that fails, for example because the disk is full, the old file stays.

    Pipes, devices, files with several hard links, and files whose owner a new file cannot have are written directly.

    Args:
        path: The file. A symbolic link stays one.
        content: The whole content.

    Raises:
        OSError: The file cannot be written, for example because the user has write-protected it.
    """
    try:
        path = path.resolve(strict=True)
    except FileNotFoundError:
        if path.is_symlink():
            path.write_bytes(content)
            return
    else:
        if not path.is_file():
            # A pipe without a reader blocks, and a signal ends that.
            path.write_bytes(content)
            return
    with _delayed_signals():
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    with contextlib.ExitStack() as opened:
        old = old_stat = None
        with contextlib.suppress(FileNotFoundError):
            # Fails for files that the user has write-protected.
            old = opened.enter_context(os.fdopen(os.open(path, os.O_WRONLY), "wb"))
            old_stat = os.fstat(old.fileno())
        if old is not None and old_stat is not None and old_stat.st_nlink > 1:
            _overwrite(old, content)
            return
        temporary = path.with_name(f".snakepit-{os.getpid()}-{time.time_ns():x}.tmp")
        # Other users must not read the new content if they could not read the old one.
        mode = 0o666 if old is None else 0o600
        try:
            file = opened.enter_context(os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"))
        except PermissionError:
            # The directory takes no new files.
            if old is None:
                raise
            _overwrite(old, content)
            return
        try:
            if old is not None and old_stat is not None:
                try:
                    _take_over(file.fileno(), old_stat)
                except PermissionError:
                    # The file belongs to another user or group.
                    _overwrite(old, content)
                    return
            file.write(content)
            file.flush()
            # File systems may report a full disk only now.
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _overwrite(file: Any, content: bytes) -> None:
    file.truncate(0)
    file.write(content)
    file.flush()


def _take_over(file: int, old: os.stat_result) -> None:
    """Give a new file the owner, the group and the permissions of the file that it replaces."""
    new = os.fstat(file)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        os.fchown(file, old.st_uid, old.st_gid)
    os.fchmod(file, stat.S_IMODE(old.st_mode))


@contextlib.contextmanager
def _delayed_signals() -> Iterator[None]:
    """Delay signals that would end the program, so that none leaves a temporary file."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can set handlers.
        yield
        return
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in _SIGNALS:
            # Under nohup, SIGHUP stays ignored. Handlers of other languages, which Python returns as None, stay, too.
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                previous[number] = handler
                signal.signal(number, lambda received_number, _: received.append(received_number))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
