"""Serves an adapter from a Python program: runs the daemon until a signal stops it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snakepit_bridge._launch import DaemonError, adapter_path, find_binary, inherited_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import FrameType

    from snakepit_bridge._launch import Adapter

    _Daemon = subprocess.Popen[bytes]

#: The signals that stop the daemon.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

#: The stop signals that a program keeps ignoring if it started with them ignored, for example under `nohup`. The daemon
#: does the same for SIGHUP.
_IGNORABLE_SIGNALS = (signal.SIGHUP, signal.SIGQUIT)

#: The time for which a daemon may drain its calls after an exception in this process, in seconds.
_STOP_TIMEOUT = 20.0


def serve(
    adapter: Adapter,
    *,
    workers: int | None = None,
    listen: str | None = None,
    args: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Serve an adapter with the daemon until Ctrl-C or another signal stops it.

    >>> if __name__ == "__main__":  # doctest: +SKIP
    ...     serve(Shop, workers=2)

    The daemon runs as ``snakepit serve`` does: it reads ``snakepit.toml`` and the variables ``SNAKEPIT_*``, prints a
    line of JSON when it is ready, and logs to stderr. Workers run with this Python interpreter, import from the same
    directories as this process, and import the adapter by its name. A file that contains the adapter must therefore
    call this function below ``if __name__ == "__main__"``.

    The first SIGINT, SIGTERM, SIGHUP or SIGQUIT drains running calls, and the second ends them. Under ``nohup``, SIGHUP
    has no effect. Outside of the main thread, this function does not react to signals. The daemon stops with this
    process, even if the process is killed.

    Args:
        adapter: A class, a module, a function of a module, or the path of one of them, as for a host.
        workers: The number of workers. By default, that of the configuration.
        listen: The address of the daemon, such as ``127.0.0.1:50051``. By default, that of the configuration.
        args: Additional arguments for ``snakepit serve``, such as ``["--default-timeout", "2s"]``.
        env: Environment variables of the daemon and its workers, in addition to those of this process.

    Raises:
        DaemonError: The binary is missing, or the daemon failed.
        ValueError: Workers cannot import the adapter.
        RuntimeError: A worker calls this function.
    """
    worker = sys.modules.get("snakepit_bridge.worker")
    if worker is not None and worker.is_running:
        raise RuntimeError(
            "a worker called serve(), probably while it imported the adapter; call it below "
            '`if __name__ == "__main__":`'
        )
    try:
        command = [str(find_binary()), "serve", adapter_path(adapter), "--stop-with-stdin"]
        if workers is not None:
            command += ["--workers", str(workers)]
        if listen is not None:
            command += ["--listen", listen]
        _run([*command, *args], {**inherited_environment(), **(env or {})})
    except (DaemonError, TypeError, ValueError) as error:
        # Frames of this package would hide the line of the program.
        raise error.with_traceback(None) from error.__cause__


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run the daemon until it ends.

    Raises:
        DaemonError: It failed.
    """
    with _forwarded_signals() as forwarder:
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                env=environment,
                # A terminal sends Ctrl-C to this process only, which forwards it.
                start_new_session=True,
            )
        except OSError as error:
            raise DaemonError(f"the daemon cannot be started: {error}") from None
        with process:
            forwarder.attach(process)
            code = _wait(process)
    if code < 0:
        raise DaemonError(f"the daemon was killed by {signal.Signals(-code).name}")
    if code > 0:
        raise DaemonError(f"the daemon failed with exit code {code}; its log has the reason")


def _wait(process: _Daemon) -> int:
    """Wait until the daemon exits. If an exception interrupts the wait, stop the daemon first."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


@contextmanager
def _forwarded_signals() -> Iterator[_SignalForwarder]:
    """Forward stop signals to the daemon, once the yielded forwarder has received its process."""
    forwarder = _SignalForwarder()
    if threading.current_thread() is not threading.main_thread():
        yield forwarder
        return
    # Installs the handlers before the daemon starts, so that no signal ends this process without stopping the daemon.
    numbers = [
        number
        for number in _STOP_SIGNALS
        if number not in _IGNORABLE_SIGNALS or signal.getsignal(number) != signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, forwarder.forward) for number in numbers}
    try:
        yield forwarder
    finally:
        for number, handler in previous.items():
            # `None` means that the previous handler was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _SignalForwarder:
    """Sends signals to the daemon. Keeps signals that arrive before the daemon has started, and sends them then."""

    def __init__(self) -> None:
        self._process: _Daemon | None = None
        self._early: list[int] = []

    def attach(self, process: _Daemon) -> None:
        """Set the daemon, and send it the signals that arrived before."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def forward(self, number: int, _frame: FrameType | None) -> None:
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)
