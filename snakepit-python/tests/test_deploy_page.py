"""The commands in the systemd unit and in the container file of docs/python/deploy.md, with real servers."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from daemons import Pipes
from pages import LIMIT, Reader, blocks
from snakepit_bridge import Client, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "docs/python/deploy.md"
FILES = {block.value: block.code for block in blocks(PAGE) if block.kind == "file"}

#: A tool that runs until the test ends it.
HOLD = """

@tool
def hold(started: str, release: str) -> str:
    with open(started, "w") as file:
        file.write("started")
    with open(release) as file:
        return file.read()
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A machine on which the page was followed: `/opt`, `/etc`, `/run` and `/var` are in the directory of the test."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(tmp_path))
        scripts = tmp_path / "opt/shop/bin"
        for directory in (scripts, tmp_path / "etc/shop", tmp_path / "run/shop", tmp_path / "var/lib/shop"):
            directory.mkdir(parents=True)
        (tmp_path / "run/shop").chmod(0o700)
        (scripts / "snakepit").symlink_to((reader.scripts / "snakepit").resolve())
        # A link to the interpreter of an environment is not in that environment.
        for name in ("python", "python3"):
            (scripts / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            (scripts / name).chmod(0o755)
        (tmp_path / "shop.py").write_text(FILES["shop.py"] + HOLD)
        (tmp_path / "etc/shop/snakepit.toml").write_text(local(FILES["snakepit.toml"], tmp_path))
        # The page installs the module into the environment.
        reader.environment["PYTHONPATH"] = str(tmp_path)
        # Neither exists on such a machine.
        del reader.environment["SNAKEPIT_RUN_DIR"], reader.environment["SNAKEPIT_BINARY"]
        yield reader


def local(text: str, directory: Path) -> str:
    """Move the absolute paths of a file into a directory."""
    return re.sub(r"(?<![\w.])/(opt|etc|run|var)/", rf"{directory}/\1/", text)


def unit(directory: Path) -> dict[str, str]:
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(local(FILES["shop.service"], directory))
    return dict(parser["Service"])


def health(address: str) -> int:
    """Return the status of the health check as Kubernetes and probes request it: 1 is serving, 2 is not serving."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer: bytes = check(b"", timeout=LIMIT)
    # Field 1 of the message is the status.
    assert answer[:1] == b"\x08", answer
    return answer[1]


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|m|)", text)
    assert match, text
    return int(match[1]) * (60 if match[2] == "m" else 1)


def test_the_unit_serves_and_drains(reader: Reader, tmp_path: Path) -> None:
    service = unit(tmp_path)
    reader.serve(f'$ {service["ExecStart"]}\n{{.."workers":4}}\n')
    reader.run(service["ExecStartPost"], "")
    address = reader.environment["SNAKEPIT_SERVER"]
    assert health(address) == 1
    assert list((tmp_path / "run/shop").iterdir())

    pipes = Pipes(tmp_path)
    with Client(address) as client:
        assert client.call("price", item="tea", count=2) == 19.98
        client.session("alice")["total"] = 19.98
        result: list[str] = []
        call = threading.Thread(target=lambda: result.append(client.call("hold", **pipes.arguments)))
        call.start()
        pipes.wait_started()
        # The channel exists before the end, because the daemon then does not accept new ones.
        with grpc.insecure_channel(address) as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=LIMIT)
            assert next(watch) == b"\x08\x01"
            reader.server.send_signal(signal.SIGTERM)
            assert next(watch) == b"\x08\x02"
            with pytest.raises(ShuttingDownError) as caught:
                client.call("price", item="tea")
            assert caught.value.is_retryable
            pipes.finish("drained")
            call.join(LIMIT)
    assert result == ["drained"]
    assert reader.server.wait(LIMIT) == 0

    # The next start has the sessions.
    reader.serve(f"$ {service['ExecStart']}\n{{..}}\n")
    with Client(reader.environment["SNAKEPIT_SERVER"]) as client:
        assert client.session("alice")["total"] == 19.98


def test_the_unit_reloads_code(reader: Reader, tmp_path: Path) -> None:
    service = unit(tmp_path)
    reader.serve(f"$ {service['ExecStart']}\n{{..}}\n")
    module = tmp_path / "shop.py"
    old = module.read_text()
    with Client(reader.environment["SNAKEPIT_SERVER"]) as client:
        module.write_text(old.replace("9.99 * count", "1.25 * count  # A new price."))
        reader.run(service["ExecReload"], "replaced 4 workers in ..")
        assert {client.call("price", item="tea") for _ in range(8)} == {1.25}

        module.write_text(f"{old}\nimport missing_module\n")
        failed = subprocess.run(  # noqa: S603
            shlex.split(service["ExecReload"]),
            env=reader.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert failed.returncode == 5
        assert "missing_module" in failed.stderr
        assert "Traceback" in failed.stderr
        assert client.call("price", item="tea") == 1.25


def test_the_unit_is_correct(reader: Reader, tmp_path: Path) -> None:
    service = unit(tmp_path)
    drain = seconds(tomllib.loads(FILES["snakepit.toml"])["drain"])
    assert seconds(service["TimeoutStopSec"]) > drain + 5
    (tmp_path / "etc/shop/snakepit.toml").write_text('adaptor = "shop:"\n')
    ended = subprocess.run(  # noqa: S603
        shlex.split(service["ExecStart"]), env=reader.environment, cwd=tmp_path, check=False, timeout=LIMIT
    )
    assert ended.returncode == int(service["RestartPreventExitStatus"])

    if (verifier := shutil.which("systemd-analyze")) is None:
        return
    path = tmp_path / "shop.service"
    path.write_text(local(FILES["shop.service"], tmp_path))
    verified = subprocess.run(  # noqa: S603
        [verifier, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    # It also reports problems of other units of the machine.
    problems = [line for line in verified.stderr.splitlines() if "shop.service" in line]
    assert not problems, problems


def test_the_container_serves_and_is_healthy(reader: Reader) -> None:
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", FILES["Dockerfile"], re.MULTILINE)
    check = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", FILES["Dockerfile"], re.MULTILINE)
    assert entry
    assert check
    command = shlex.join(_strings(entry[1])).replace("0.0.0.0:50051", "127.0.0.1:0")
    check_command = shlex.join(_strings(check[1]))
    reader.environment["SNAKEPIT_WORKERS"] = "1"
    reader.serve(f'$ {command}\n{{.."workers":1}}\n')
    reader.run(check_command, "")
    with Client(reader.environment["SNAKEPIT_SERVER"]) as client:
        assert client.call("price", item="tea") == 9.99
    reader.stop()
    failed = subprocess.run(  # noqa: S602
        check_command, shell=True, env=reader.environment, capture_output=True, check=False, timeout=LIMIT
    )
    assert failed.returncode == 1
    assert b"ConnectTimeoutError" in failed.stderr


def test_the_table_of_limits_has_the_defaults(reader: Reader) -> None:
    page = Path(__file__).parents[2].joinpath(PAGE).read_text()
    rows = re.findall(r"^\| [^|]+ \| `(--[\w-]+)` \| ([^|]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    shown = subprocess.run(  # noqa: S603
        [reader.scripts / "snakepit", "serve", "--help"], capture_output=True, text=True, check=True, timeout=LIMIT
    ).stdout
    for option, default in rows:
        match = re.search(rf"{option} <.*?\[default: (\S+)\]", shown, re.DOTALL)
        assert match
        assert match[1] == default.replace(" ", ""), option


def _strings(array: str) -> list[str]:
    strings: list[str] = json.loads(array)
    return strings
