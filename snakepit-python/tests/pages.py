"""Runs the snippets of a page in a new directory, from its top to its bottom, as a reader would.

A comment above a block says what the block is. Readers do not see it.

=================================  =================================================================================
`<!-- file: NAME -->`              the content of a file
`<!-- append: NAME; wait: TEXT -->`  code to append to a file; the running server then logs TEXT, if there is one
`<!-- server -->`                  commands of which the last one serves until the next server, or the end of the page
`<!-- call of the debugger below -->`  a command that the next debugger stops, and its output when it continues
`<!-- debugger -->`                a server with a debugger: its output, with a command after each prompt of pdb
`<!-- another framework -->`       Python code that is only parsed, because it needs a package that is not installed
`<!-- tested by PATH -->`          a block that the test with this path runs
=================================  =================================================================================

Without a comment, a block is a session of a shell (`console`), whose output must be the one in the page, or a Python
program, whose lines `print(..)  # OUTPUT` contain its output. `..` stands for any text. Blocks in `json`, `rust` and
`text` are not run.
"""

from __future__ import annotations

import ast
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from snakepit_bridge._launch import find_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]

#: The time limit of each command and of each wait, in seconds.
LIMIT = 60

_FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    #: The kind in the comment above the block, and its value.
    kind: str
    value: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page. Each fence must belong to one."""
    text = (REPOSITORY / page).read_text()
    found = []
    for match in _FENCE.finditer(text):
        kind, _, value = (match["note"] or "").partition(": ")
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(match["language"], match["code"], kind, value, line))
    assert len(found) * 2 == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{page} has a malformed fence"
    return found


class Reader:
    """A reader of a page, with an empty directory, and the programs of the environment."""

    def __init__(self, directory: Path) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="snakepit-page-")
        scripts = Path(self._temporary.name, "bin")
        scripts.mkdir()
        (scripts / "snakepit").symlink_to(find_binary().resolve())
        self.scripts = scripts
        self.directory = directory
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEPIT_")}
        self.environment |= {
            "PATH": os.pathsep.join([str(scripts), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "SNAKEPIT_BINARY": str(scripts / "snakepit"),
            "SNAKEPIT_PYTHON": sys.executable,
            # Pages name the default port. Another program may use it.
            "SNAKEPIT_LISTEN": "127.0.0.1:0",
            "SNAKEPIT_RUN_DIR": str(Path(self._temporary.name, "run")),
            "SNAKEPIT_SERVER": "127.0.0.1:1",
        }
        self._server: subprocess.Popen[bytes] | None = None
        #: The command that the next debugger stops, and its output.
        self._stopped = self._stopped_output = ""
        self._log = Path(self._temporary.name, "log")

    def read(self, page: str) -> None:
        """Do what the page shows."""
        for block in blocks(page):
            try:
                self._do(block)
            except AssertionError as error:
                raise AssertionError(f"{page}:{block.line}: {error}\n{self.log}") from error

    def _do(self, block: Block) -> None:
        match block.kind:
            case "file":
                self._write(block.value, block.code)
            case "append":
                self._append(block)
            case "server":
                self.serve(block.code)
            case "call of the debugger below":
                ((self._stopped, self._stopped_output),) = commands(block.code)
            case "debugger":
                self._debug(block.code)
            case "another framework":
                assert block.language == "python"
                ast.parse(block.code)
            case kind if kind.startswith("tested by "):
                assert (REPOSITORY / kind.removeprefix("tested by ")).exists(), kind
            case "" if block.language == "console":
                for command, expected in commands(block.code):
                    self.run(command, expected)
            case "" if block.language == "python":
                self._run_program(block.code)
            case "" if block.language in ("json", "rust", "text"):
                pass
            case _:
                raise AssertionError(f"no rule for a block `{block.language}` with the comment `{block.kind}`")

    def _write(self, name: str, code: str) -> None:
        if name.endswith(".py"):
            ast.parse(code)
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def _append(self, block: Block) -> None:
        name, _, text = block.value.partition("; wait: ")
        seen = len(self.log)
        path = self.directory / name
        path.write_text(f"{path.read_text()}\n\n{block.code}")
        ast.parse(path.read_text())
        deadline = time.monotonic() + LIMIT
        while text not in self.log[seen:]:
            assert time.monotonic() < deadline, f"the server did not log {text!r}"
            assert self._server is not None, "no server runs"
            assert self._server.poll() is None, "the server ended"
            time.sleep(0.05)

    def run(self, command: str, expected: str) -> None:
        """Run a command. It may fail if the expected output shows an error."""
        if directory := re.fullmatch(r"cd (\S+)", command):
            self.directory = self.directory / directory[1]
            return
        ended = subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        output = self._as_in_pages(ended.stdout.decode())
        assert matches(output, expected), f"`{command}` printed\n{output}\nin place of\n{expected}"
        assert ended.returncode == 0 or re.search("^snakepit: ", expected, re.MULTILINE), f"`{command}` failed"

    def _run_program(self, code: str) -> None:
        program = self.directory / "page_program.py"
        program.write_text(code)
        expected = "".join(f"{line}\n" for line in re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE))
        assert expected, "a program of a page shows its output"
        self.run("python page_program.py", expected)
        program.unlink()

    def serve(self, code: str) -> None:
        """Run commands, of which the last one serves. Clients use this server from now on."""
        self.stop()
        *before, (command, expected) = commands(code)
        for each in before:
            self.run(*each)
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.directory,
                # The daemon warns of this variable, which Python programs use.
                env={name: value for name, value in self.environment.items() if name != "SNAKEPIT_BINARY"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        ready = self._ready_line(self._server)
        address = re.search(r'"grpc":"http://([^"]+)"', ready)
        assert address, f"no ready line: {ready}"
        self.environment["SNAKEPIT_SERVER"] = address[1]
        printed = self._as_in_pages(ready)
        if "serving" in expected:
            # `snakepit dev` logs it after the ready line.
            deadline = time.monotonic() + LIMIT
            printed = self._as_in_pages(self.log)
            while not matches(printed, expected) and time.monotonic() < deadline:
                time.sleep(0.05)
                printed = self._as_in_pages(self.log)
        assert matches(printed, expected), f"`{command}` printed\n{printed}\nin place of\n{expected}"

    def _debug(self, code: str) -> None:
        """Serve with a debugger, start the call that it stops, and enter the commands of the page."""
        ((command, expected),) = commands(code)
        self.serve(f"$ {command}\n..\n")
        server = self.server
        assert server.stdin is not None
        assert server.stdout is not None
        call = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", self._stopped],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with call:
            shown = ""
            for part in expected.split("(Pdb) ")[1:]:
                shown += self._until_prompt(server.stdout.fileno())
                typed = part.partition("\n")[0] + "\n"
                os.write(server.stdin.fileno(), typed.encode())
            output, _ = call.communicate(timeout=LIMIT)
        assert matches(output.decode(), self._stopped_output), f"`{self._stopped}` printed\n{output.decode()}"
        # The terminal of a reader also shows what the reader enters.
        answers = re.sub(r"^\(Pdb\) .*\n", "(Pdb) ", expected, flags=re.MULTILINE)
        shown = self._as_in_pages(shown)
        assert matches(shown, answers), f"the debugger printed\n{shown}\nin place of\n{answers}"

    def _until_prompt(self, terminal: int) -> str:
        """Read the output of the server up to the next prompt of pdb."""
        shown = b""
        while not shown.endswith(b"(Pdb) "):
            ready, _, _ = select.select([terminal], [], [], LIMIT)
            assert ready, f"no prompt after {shown.decode()}"
            part = os.read(terminal, 4096)
            assert part, f"the server ended after {shown.decode()}"
            shown += part
        return shown.decode()

    def _ready_line(self, server: subprocess.Popen[bytes]) -> str:
        assert server.stdout is not None
        ready, _, _ = select.select([server.stdout], [], [], LIMIT)
        return server.stdout.readline().decode() if ready else ""

    def _as_in_pages(self, output: str) -> str:
        """Replace the address of the server with the default one."""
        output = output.replace(str(self.directory), "~/shop")
        return output.replace(self.environment["SNAKEPIT_SERVER"], "127.0.0.1:50051")

    @property
    def server(self) -> subprocess.Popen[bytes]:
        assert self._server is not None
        return self._server

    @property
    def log(self) -> str:
        """The log of the server."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """Stop the server, which must end as it does after Ctrl-C."""
        server, self._server = self._server, None
        if server is None:
            return
        with server:
            server.send_signal(signal.SIGINT)
            try:
                code = server.wait(LIMIT)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        assert code == 0, f"the server ended with {code}\n{self.log}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._temporary.cleanup()


def commands(code: str) -> Iterator[tuple[str, str]]:
    """Split a session of a shell into commands and their outputs."""
    assert code.startswith("$ "), "a session begins with a command"
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        end = next(index for index, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        command = re.sub(r"\s{2,}# .*", "", "".join(lines[:end]).replace("\\\n", "")).strip()
        yield command, "".join(lines[end:])


def matches(output: str, expected: str) -> bool:
    """Compare an output with that in a page, where `..` stands for any text."""
    pattern = ".*".join(map(re.escape, expected.strip().split("..")))
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None
