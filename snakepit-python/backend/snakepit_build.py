"""The build backend of the package: maturin, with the daemon in the wheel and the workspace in the source distribution.

maturin builds the native module. This file adds the program ``snakepit`` to the scripts of the wheel. A source
distribution contains the whole workspace, because ``cargo build --locked`` fails if a member is missing.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from gzip import GzipFile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import maturin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    Settings = Mapping[str, Any] | None

#: The environment variable with the path of a daemon that is already built. Without it, cargo builds the daemon.
DAEMON_VARIABLE = "SNAKEPIT_BUILD_DAEMON"

#: The directory of the package's pyproject.toml.
PACKAGE = Path(__file__).resolve().parents[1]

#: The root of the workspace.
ROOT = PACKAGE.parent

#: The directories of the workspace, besides those of its crates, whose names begin with `snakepit-`.
_DIRECTORIES = {".cargo", ".ci", ".github", "docs", "tests", "xtask"}

#: The directories that a build or a tool creates below them.
_CREATED = {
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".venv",
    "__pycache__",
    "build",
    "dist",
    "target",
}

#: The files of the root.
_ROOT_FILES = {
    *(".gitignore", "LICENSE-APACHE", "LICENSE-MIT"),
    *("ARCHITECTURE.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"),
    *("Cargo.lock", "Cargo.toml", "clippy.toml", "deny.toml", "pyproject.toml", "ruff.toml", "rustfmt.toml"),
}

#: The names and the suffixes of the files in the directories.
_NAMES = {".gitattributes", ".gitignore", "LICENSE-APACHE", "LICENSE-MIT", "gitignore", "loom-rustc", "run"}
_SUFFIXES = {
    *(".lua", ".md", ".proto", ".py", ".pyi", ".rs", ".toml", ".typed"),
    *(".bin", ".cfg", ".conf", ".dict", ".json", ".redb", ".resp", ".snap", ".svg", ".txt", ".yml"),
}


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build a wheel with the native module and the daemon. Return its name."""
    return _build(maturin.build_wheel, wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel that refers to the Python files of the checkout. Return its name."""
    return _build(maturin.build_editable, wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Write the files of the workspace into an archive. Return its name."""
    with tempfile.TemporaryDirectory() as directory:
        dist_info = prepare_metadata_for_build_wheel(directory, config_settings)
        metadata = Path(directory, dist_info, "METADATA").read_bytes()
    name = dist_info.removesuffix(".dist-info")
    archive = Path(sdist_directory, f"{name}.tar.gz")
    write_sdist(archive, name, metadata)
    return archive.name


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """Write the metadata of the package. Return the name of their directory."""
    metadata_directory = str(Path(metadata_directory).absolute())
    with _in_package():
        return str(maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings))


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return the additional requirements of a build: a Rust installer, if cargo is missing."""
    with _in_package(installs_rust=False):
        return list(maturin.get_requires_for_build_wheel(config_settings))


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = get_requires_for_build_wheel


@contextmanager
def _in_package(*, installs_rust: bool = True) -> Iterator[None]:
    """Work in the directory of the package, and with a cargo."""
    if installs_rust and not os.environ.get("MATURIN_NO_INSTALL_RUST") and not shutil.which("cargo"):
        # As maturin does.
        from puccinialin import setup_rust

        os.environ.update(setup_rust())
    start = Path.cwd()
    os.chdir(PACKAGE)
    try:
        yield
    finally:
        os.chdir(start)


@contextmanager
def _locked_target() -> Iterator[None]:
    """Hold the lock that `cargo xtask` also takes while maturin stages the native module in the target directory."""
    directory = Path(PACKAGE, os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    directory.mkdir(parents=True, exist_ok=True)
    # maturin does not inherit the descriptor. The kernel releases the lock when the file is closed.
    with (directory / "maturin.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another build, which has locked {file.name}", flush=True)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(
    build: Callable[[str, Settings, str | None], str],
    wheel_directory: str,
    settings: Settings,
    metadata_directory: str | None,
) -> str:
    directory = Path(wheel_directory).absolute()
    metadata = metadata_directory and str(Path(metadata_directory).absolute())
    args = list(maturin.get_maturin_pep517_args(settings))
    if "--locked" not in args:
        args.append("--locked")
    with _in_package(), tempfile.TemporaryDirectory() as output:
        # Otherwise, maturin leaves a wheel without the daemon in `target/wheels`.
        with _locked_target():
            name = build(str(directory), {"build-args": [*args, "--out", output]}, metadata)
        add_daemon(directory / name, _daemon(args))
    return name


def _daemon(args: list[str]) -> Path:
    """Return the path of the daemon that the environment names, or build it for the target of maturin's arguments."""
    given = os.environ.get(DAEMON_VARIABLE)
    if given:
        path = Path(ROOT, given)
        if not path.is_file():
            sys.exit(f"${DAEMON_VARIABLE} is `{given}`, which is not a file")
        return path
    command = ["cargo", "rustc", "--release", "--locked", "--package", "snakepit-cli", "--bin", "snakepit"]
    if "--target" in args:
        command += ["--target", args[args.index("--target") + 1]]
    command += ["--message-format", "json-render-diagnostics", "--", "-C", "strip=symbols"]
    # stdout of a backend belongs to the frontend, so this prints for the user only.
    print("Running `{}`".format(" ".join(command)), flush=True)  # noqa: T201
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if run.returncode != 0:
        sys.exit("cargo cannot build the daemon; its messages are above")
    messages = map(json.loads, run.stdout.splitlines())
    executables = [message["executable"] for message in messages if message.get("executable")]
    return Path(executables[-1])


def add_daemon(wheel: Path, daemon: Path) -> None:
    """Add the daemon to the scripts of a wheel."""
    content = daemon.read_bytes()
    partial = wheel.with_name(wheel.name + ".partial")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
        (record,) = (item for item in source.infolist() if item.filename.endswith(".dist-info/RECORD"))
        for item in source.infolist():
            if item is not record:
                target.writestr(item, source.read(item))
        name = record.filename.replace(".dist-info/RECORD", ".data/scripts/snakepit")
        script = zipfile.ZipInfo(name, record.date_time)
        script.compress_type = zipfile.ZIP_DEFLATED
        # A regular file with the mode 0755.
        script.external_attr = 0o100755 << 16
        target.writestr(script, content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows = source.read(record).decode() + f"{name},sha256={digest},{len(content)}\n"
        target.writestr(record, rows)
    partial.replace(wheel)


def write_sdist(archive: Path, name: str, metadata: bytes) -> None:
    """Write the files of the workspace and ``PKG-INFO`` into an archive, below the directory ``name``."""
    # The same files give the same archive.
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or 315532800)
    with (
        archive.open("wb") as file,
        GzipFile(filename="", mode="wb", fileobj=file, mtime=time) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        contents = {str(path): (ROOT / path).read_bytes() for path in _files()}
        for path, content in sorted({**contents, "PKG-INFO": metadata}.items()):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mtime = len(content), time
            entry.mode = 0o755 if os.access(ROOT / path, os.X_OK) else 0o644
            tar.addfile(entry, BytesIO(content))


def _files() -> Iterable[Path]:
    """Return the paths of the sources below the root: those in git, or, without git, those of a fixed list.

    A test compares the two.
    """
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z"],  # noqa: S607
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        paths = [Path(os.fsdecode(path)) for path in listed.stdout.split(b"\0") if path]
        # A deleted file may still be in the index.
        return [path for path in paths if (ROOT / path).is_file()]
    return [path for path in _walk() if _is_source(path)]


def _walk() -> Iterator[Path]:
    """Yield the paths of all files in the root and in the directories of the workspace."""
    for directory, directories, files in os.walk(ROOT):
        path = Path(directory).relative_to(ROOT)
        directories[:] = [
            name
            for name in directories
            if (name not in _CREATED if path.parts else name in _DIRECTORIES or name.startswith("snakepit-"))
        ]
        yield from (path / file for file in files)


def _is_source(path: Path) -> bool:
    if len(path.parts) == 1:
        return path.name in _ROOT_FILES
    # The seeds of the fuzzer have no suffixes.
    return path.name in _NAMES or path.suffix in _SUFFIXES or "seeds" in path.parts
