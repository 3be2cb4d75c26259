"""A real daemon for tests: `snakepit serve` on a free address, with its workers."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakepit_bridge._launch import DaemonError, adapter_path, find_binary, isolated_environment

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from snakepit_bridge._launch import Adapter
    from snakepit_bridge.client import Client

#: The time for which a stopped daemon may drain its calls, in seconds.
_STOP_TIMEOUT = 20.0


class Daemon:
    """A running daemon. Use it as a context manager, or call :meth:`stop`.

    >>> with Daemon("shop:Shop", workers=2) as daemon:  # doctest: +SKIP
    ...     daemon.client().call("price", item="tea")
    9.99

    Workers run with this Python interpreter and import from the same directories as this process. The daemon listens on
    a free port of the loopback interface, keeps its sockets in a temporary directory, and reads no configuration file.
    It stops with this process, even if the process is killed.

    Args:
        adapter: A class, a module, a function of a module, or the path of one of them, as for a host.
        workers: The number of workers.
        args: Additional arguments for ``snakepit serve``, such as ``["--default-timeout", "2s"]``.
        env: Environment variables of the daemon and its workers. They also get those of this process, except the ones
            that begin with ``SNAKEPIT_``.
        binary: The path of the binary, as :func:`find_binary` finds it by default.
        start_timeout: The seconds within which the daemon must serve.

    Raises:
        DaemonError: The binary is missing, or the daemon did not start.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        workers: int = 1,
        args: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        binary: str | os.PathLike[str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        command = [str(binary or find_binary()), "serve", adapter_path(adapter), "--workers", str(workers)]
        self._directory = tempfile.TemporaryDirectory(prefix="snakepit-test-")
        self._clients: list[Client] = []
        self._log = Path(self._directory.name, "log")
        run_dir = Path(self._directory.name, "run")
        run_dir.mkdir(mode=0o700)
        command += ["--listen", "127.0.0.1:0", "--run-dir", str(run_dir), "--stop-with-stdin", *args]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    # Without a `snakepit.toml`.
                    cwd=self._directory.name,
                    env=isolated_environment(env or {}),
                    start_new_session=True,
                )
        except OSError as error:
            self._directory.cleanup()
            raise DaemonError(f"the daemon cannot be started: {error}") from error
        try:
            ready = self._wait_ready(start_timeout)
        except BaseException:
            self.stop(timeout=0)
            raise
        #: The address of the daemon, such as ``127.0.0.1:50123``.
        self.address: str = ready["grpc"].removeprefix("http://")
        #: The address of its Unix socket, such as ``unix:/tmp/snakepit/host.sock``.
        self.socket: str = f"unix:{ready['socket']}"
        #: The id of its process.
        self.pid: int = self._process.pid

    def client(self, **options: Any) -> Client:
        """Return a new client, which :meth:`stop` closes. Takes the keyword arguments of :class:`Client`."""
        from snakepit_bridge.client import Client

        client = Client(self.address, **options)
        self._clients.append(client)
        return client

    @property
    def is_running(self) -> bool:
        """Whether the process of the daemon is running."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """The log of the daemon and the output of its workers so far."""
        return self._log.read_text(errors="backslashreplace")

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Close its clients, stop the daemon, and wait for its end. Kill it after ``timeout`` seconds."""
        for client in self._clients:
            client.close(timeout=0)
        self._clients.clear()
        process = self._process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._directory.cleanup()

    def _wait_ready(self, timeout: float) -> Mapping[str, Any]:
        # Killing the daemon ends the read.
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout is not None else b""
        finally:
            watchdog.cancel()
        if not line:
            self._process.wait()
            raise DaemonError(f"the daemon did not start; the end of its log:\n{self.log[-4000:]}")
        ready: Mapping[str, Any] = json.loads(line)
        return ready

    def __enter__(self) -> Self:
        """Return the daemon."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the daemon."""
        self.stop()

    def __repr__(self) -> str:
        """Return a representation with the address."""
        return f"<Daemon {self.address} pid={self.pid}>"
