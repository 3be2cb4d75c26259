"""What the tests of clients share: daemons, a proxy that can be stopped and switched, and pipes."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from snakepit_bridge._daemon import Daemon

if TYPE_CHECKING:
    from types import TracebackType

ADAPTER = "client_tools:ClientTools"


def start(*args: str, workers: int = 1) -> Daemon:
    return Daemon(ADAPTER, workers=workers, args=args)


class Proxy:
    """A Unix socket that forwards to a daemon. It refuses connections while no daemon runs."""

    def __init__(self, target: Daemon | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="snakepit-proxy-")
        self._path = str(Path(self._directory.name, "socket"))
        self._listener: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._open = 0
        #: The number of connections so far.
        self.connections = 0
        self.address = f"unix:{self._path}"
        if target is not None:
            self.listen(target)

    def listen(self, target: Daemon) -> None:
        """Begin to forward to a daemon."""
        self.refuse()
        host, _, port = target.address.rpartition(":")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._run(self._accept, self._listener, (host, int(port)))

    def refuse(self) -> None:
        """End all connections, and refuse new ones."""
        if self._listener is not None:
            # Ends `accept`, which `close` alone does not.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            Path(self._path).unlink()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def wait_connected(self, count: int = 1) -> None:
        """Wait until the proxy has accepted this number of connections."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.connections >= count, 20)

    def wait_closed(self) -> None:
        """Wait until clients have closed all connections."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._open == 0, 20), f"{self._open} connections are open"

    def close(self) -> None:
        self.refuse()
        for thread in self._threads:
            thread.join(20)
        for each in self._sockets:
            each.close()
        self._directory.cleanup()

    def _run(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, target: tuple[str, int]) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(target)
            except OSError:
                return
            self._sockets += [client, server]
            with self._changed:
                self._open += 1
                self.connections += 1
                self._changed.notify_all()
            self._run(self._forward, client, server, True)
            self._run(self._forward, server, client, False)

    def _forward(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        if is_client:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Pipes:
    """Two named pipes for the tool `hold`: it reports its start in one, and returns what arrives in the other one."""

    def __init__(self, directory: Path, name: str = "hold") -> None:
        self.started, self.release = directory / f"{name}-started", directory / f"{name}-release"
        os.mkfifo(self.started)
        os.mkfifo(self.release)

    @property
    def arguments(self) -> dict[str, str]:
        return {"started": str(self.started), "release": str(self.release)}

    def wait_started(self) -> None:
        assert self.started.read_text() == "started"

    def finish(self, text: str = "done") -> None:
        self.release.write_text(text)
