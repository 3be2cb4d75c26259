"""The entry point of a worker process. Started by a host; by hand it is ``python -m snakepit_bridge.worker``."""

from __future__ import annotations

# What `signal` is made of; that one imports half of the standard library to give numbers names.
import _signal  # type: ignore[import-not-found]
import os
import sys

from snakepit_bridge import _native, _output
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._plan import AdapterError, Plan, init_process, load, plan_of
from snakepit_bridge.errors import CallCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Serve an adapter until SIGTERM. Returns the exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    if sys.path[:1] == [""]:
        # As `-m` has it: what an adapter imports is found where the worker was started, also after a `chdir`.
        try:
            sys.path[0] = os.getcwd()  # noqa: PTH109
        except OSError:
            # It was removed, so nothing can be found there.
            del sys.path[0]
    # First of all, because from here on the process cannot outlive its host.
    worker = _native.Worker()
    _output.keep(worker)
    loop = EventLoop()
    try:
        plan = _prepare(options["adapter"], loop)
        _install_signals(worker, loop)
        worker.run(
            plan,
            host=options.get("elixir_address"),
            socket=os.environ.get("SNAKEPIT_SOCKET") or None,
            port=int(options.get("port", 0)),
            worker_id=os.environ.get("SNAKEPIT_WORKER_ID") or f"python-{os.getpid()}",
            ready_file=os.environ.get("SNAKEPIT_READY_FILE") or None,
        )
    except AdapterError as error:
        return _fail(worker, str(error), error.__cause__)
    except RuntimeError as error:
        # One line that the runtime wrote; where it was raised says nothing.
        return _fail(worker, str(error), None)
    except Exception as error:
        return _fail(worker, f"the worker broke down: {type(error).__name__}: {error}", error)
    return 0


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """Read the command line by name, without the dashes."""
    flags, values = argv[::2], argv[1::2]
    if len(flags) == len(values) and "--adapter" in flags and all(map(_is_plain, flags, values)):
        return {flag[2:].replace("-", "_"): value for flag, value in zip(flags, values, strict=True)}
    # All that a host does not write, help and mistakes: importing this would be a good part of a worker's start.
    import argparse

    parser = argparse.ArgumentParser(prog="python -m snakepit_bridge.worker", allow_abbrev=False)
    parser.add_argument("--adapter", required=True, help="the adapter class, as module.path:Class")
    parser.add_argument("--port", type=int, default=0, help="TCP port on loopback, unless SNAKEPIT_SOCKET is set")
    parser.add_argument("--elixir-address", metavar="ADDRESS", help="the host: host:port or unix:/path/to/socket")
    parser.add_argument("--snakepit-run-id", metavar="ID", help="the host's run; read by whoever lists processes")
    return vars(parser.parse_args(argv))


def _is_plain(flag: str, value: str) -> bool:
    if flag == "--port":
        return value.isascii() and value.isdecimal()
    return flag in ("--adapter", "--elixir-address", "--snakepit-run-id") and not value.startswith("-")


def _prepare(path: str, loop: EventLoop) -> Plan:
    adapter = load(path)
    plan = plan_of(adapter, loop)
    init_process(adapter, loop)
    return plan


def _install_signals(worker: _native.Worker, loop: EventLoop) -> None:
    def interrupt(signum: int, frame: object) -> None:  # noqa: ARG001
        # Runs on the main thread between two steps of whatever it does, so the answer is true while it counts.
        if worker.interrupt_due() and not loop.interrupt():
            raise CallCancelled("the call was cancelled")

    _signal.signal(worker.interrupt_signal, interrupt)
    # Ctrl-C goes to the whole foreground group; stopping is the host's to decide.
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)


def _fail(worker: _native.Worker, message: str, cause: BaseException | None) -> int:
    details = None
    if cause is not None:
        import traceback

        details = "".join(traceback.format_exception(cause))
    if not worker.fail(message, details):
        sys.stderr.write(f"{details or ''}error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
