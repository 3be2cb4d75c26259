"""The entry point of a worker process, which hosts start.

To start a worker manually, run ``python -m snakepit_bridge.worker``.
"""

from __future__ import annotations

import os
import sys

from snakepit_bridge import _native, _threads
from snakepit_bridge._event_loop import EventLoop
from snakepit_bridge._hooks import Hooks
from snakepit_bridge._lifecycle import FAILED_START_LIMIT, Lifecycle, end_children
from snakepit_bridge._loading import load
from snakepit_bridge._output import Output
from snakepit_bridge._plan import AdapterError, Plan, plan_of
from snakepit_bridge._signals import Signals

#: The time limit for stopping a worker without a host, in seconds.
_STOP_GRACE = 5.0

#: The time for the exit of the interpreter after the adapter has stopped, in seconds.
_EXIT_RESERVE = 0.5

#: The options of heartbeats that are numbers.
_HEARTBEAT_NUMBERS = ("interval-ms", "timeout-ms", "max-missed", "initial-delay-ms")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Mapping, Sequence
    from contextvars import Context
    from typing import Any

    from snakepit_bridge._terminal import TerminalInput
    from snakepit_bridge.session_context import SessionContext


#: Whether this process runs a worker, or checks an adapter for one.
is_running = False


def main(argv: Sequence[str] | None = None) -> int:
    """Serve an adapter until SIGTERM. Return the exit code."""
    global is_running
    is_running = True
    try:
        return _run(argv)
    finally:
        is_running = False


def _run(argv: Sequence[str] | None) -> int:
    options = _parse(sys.argv[1:] if argv is None else argv)
    if options.get("health_check"):
        return _check(options["adapter"])
    if sys.path[:1] == [""]:
        # As with `-m`, imports resolve against the start directory, even after a `chdir`.
        try:
            sys.path[0] = os.getcwd()  # noqa: PTH109
        except OSError:
            # The directory was removed.
            del sys.path[0]
    # Created before anything else, because it arms the lifeline, which ends this process with its host.
    worker = _native.Worker()
    # With the key, a tool, or a program that it starts, could forge the output of other calls.
    os.environ.pop("SNAKEPIT_OUTPUT_KEY", None)
    # Adapters may change the environment of their process, but not the settings of the host.
    environment = dict(os.environ)
    terminal: TerminalInput | None = None
    if path := os.environ.pop("SNAKEPIT_DEBUG_TERMINAL", None):
        # Not imported at startup, because only debugged workers need it.
        from snakepit_bridge import _terminal

        terminal = _terminal.connect(path, worker.request_restore)
    output = Output(worker)
    output.install()
    _threads.install()
    loop = EventLoop(worker.keep_loop_running)
    signals, hooks = Signals(worker, loop), Hooks(worker)
    # The arguments on the command line belong to the runtime, so the adapter sees none.
    sys.argv[:] = [options["adapter"]]
    life: Lifecycle | None = None
    stopping_for: float | None = None
    try:
        plan, life = _prepare(options["adapter"], loop, environment)
        life.start(FAILED_START_LIMIT)
        signals.install()
        hooks.remember()
        output.remember()
        if terminal is not None:
            # The adapter may have read while it was loaded.
            terminal.end_call()

        def restore() -> None:
            # The hooks come first, because the other steps would trigger the trace functions that a call left.
            hooks.restore()
            signals.restore()
            output.restore()
            if terminal is not None:
                terminal.end_call()

        def end_output(context: SessionContext) -> None:
            output.end(context)
            if terminal is not None:
                terminal.end_call()

        plan.restore = restore
        plan.flush_output, plan.end_output = output.flush, end_output
        loop.context = _context()
        stopping_for = worker.run(
            plan,
            host=options.get("elixir_address"),
            socket=environment.get("SNAKEPIT_SOCKET") or None,
            port=int(options.get("port", 0)),
            worker_id=environment.get("SNAKEPIT_WORKER_ID") or f"python-{os.getpid()}",
            ready_file=environment.get("SNAKEPIT_READY_FILE") or None,
        )
    except AdapterError as error:
        return _fail(worker, str(error), _load_traceback(error))
    except RuntimeError as error:
        # A message of the runtime, whose traceback has no useful information.
        return _fail(worker, str(error), None)
    except Exception as error:
        import traceback

        details = "".join(traceback.format_exception(error))
        return _fail(worker, f"the worker failed: {type(error).__name__}: {error}", details)
    finally:
        if life is not None:
            life.stop(_time_to_stop(environment.get("SNAKEPIT_STOP_GRACE_MS"), stopping_for))
        if worker.is_retired:
            end_children()
    return 0


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """Parse the command line. Return the options by name, without dashes."""
    flags, values = argv[::2], argv[1::2]
    if len(flags) == len(values) and "--adapter" in flags and all(map(_is_plain, flags, values)):
        return {flag[2:].replace("-", "_"): value for flag, value in zip(flags, values, strict=True)}
    # Hosts only use the plain form above. Importing argparse would take a large part of a worker's start.
    import argparse

    parser = argparse.ArgumentParser(prog="python -m snakepit_bridge.worker", allow_abbrev=False)
    parser.add_argument(
        "--adapter", required=True, help="the adapter: module:Class, module:function, module: or file.py"
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port on loopback, unless SNAKEPIT_SOCKET is set")
    address = os.environ.get("SNAKEPIT_GRPC_ADDRESS") or os.environ.get("SNAKEPIT_ELIXIR_ADDRESS")
    parser.add_argument(
        "--elixir-address", metavar="ADDRESS", default=address, help="the host: host:port or unix:/path/to/socket"
    )
    parser.add_argument("--snakepit-run-id", metavar="ID", help="the id of the host's run, visible in process lists")
    parser.add_argument("--health-check", action="store_true", help="only check that the adapter can be served")
    _add_ignored(parser)
    options = vars(parser.parse_args(argv))
    if options["elixir_address"] is None:
        del options["elixir_address"]
    return options


def _add_ignored(parser: ArgumentParser) -> None:
    """Add the options of the original Snakepit's worker scripts that have no effect."""
    ignored = parser.add_argument_group("options of the original Snakepit, without effect")
    for flag in ("snakepit-instance-name", "snakepit-instance-token"):
        ignored.add_argument(f"--{flag}", metavar="TEXT")
    for flag in ("max-workers", *(f"heartbeat-{name}" for name in _HEARTBEAT_NUMBERS)):
        ignored.add_argument(f"--{flag}", type=int, metavar="N")
    for flag in ("thread-safety-check", "heartbeat-enabled", "heartbeat-dependent", "heartbeat-independent"):
        ignored.add_argument(f"--{flag}", action="store_true")


def _check(path: str) -> int:
    """Load an adapter, and check its arguments, without starting it. Return the exit code."""
    try:
        _prepare(path, EventLoop(), dict(os.environ))
    except AdapterError as error:
        sys.stderr.write(f"{_load_traceback(error) or ''}error: {error}\n")
        return 1
    sys.stdout.write(f"adapter `{path}` can be served\n")
    return 0


def _is_plain(flag: str, value: str) -> bool:
    if flag == "--port":
        return value.isascii() and value.isdecimal()
    return flag in ("--adapter", "--elixir-address", "--snakepit-run-id") and not value.startswith("-")


def _prepare(path: str, loop: EventLoop, environment: Mapping[str, str]) -> tuple[Plan, Lifecycle]:
    # Removed from the environment, because it may contain secrets, and programs that tools start do not need it.
    text = os.environ.pop("SNAKEPIT_ADAPTER_ARGS", None)
    given: dict[str, Any] = {}
    if text:
        # Imported late, because most adapters have no arguments.
        from snakepit_bridge import _adapter_arguments

        given = _adapter_arguments.read(text)
    adapter = load(path)
    file = getattr(sys.modules[adapter.__module__], "__file__", None)
    if file is not None:
        sys.argv[:] = [file]
    policy = environment.get("SNAKEPIT_AFTER_CANCEL") or None
    concurrency, threads = environment.get("SNAKEPIT_WORKER_CONCURRENCY"), environment.get("SNAKEPIT_WORKER_THREADS")
    plan = plan_of(adapter, loop, policy, _number(concurrency), _number(threads))
    loop.modules = plan.modules
    loop.is_concurrent = plan.calls > 1
    if plan.serves_any_tool:
        # Adapters of the original Snakepit return objects without a wire form.
        from snakepit_bridge import _markers

        _markers.use_original_forms()
    life = Lifecycle(adapter, loop, given)
    plan.factory = life.factory
    return plan, life


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _time_to_stop(grace: str | None, stopping_for: float | None) -> float:
    """Return the time in which the adapter must stop, in seconds. The host kills the worker soon after.

    Args:
        grace: The milliseconds between the request to stop and the kill.
        stopping_for: The seconds since the request to stop. ``None`` without one.
    """
    milliseconds = _number(grace)
    seconds = _STOP_GRACE if milliseconds is None else milliseconds / 1000
    return max(seconds - (stopping_for or 0.0) - min(_EXIT_RESERVE, seconds / 4), 0.0)


def _context() -> Context:
    """Return the context of which each call gets a copy."""
    # Imported late to keep the start fast.
    from _contextvars import copy_context

    return copy_context()


def _load_traceback(error: AdapterError) -> str | None:
    """Return the traceback of the adapter's code, if this code raised the cause of the error."""
    if error.__cause__ is None:
        return None
    from snakepit_bridge import _failures

    return _failures.load_traceback(error.__cause__)


def _fail(worker: _native.Worker, message: str, traceback: str | None) -> int:
    if not worker.fail(message, traceback):
        sys.stderr.write(f"{traceback or ''}error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
