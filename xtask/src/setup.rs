//! `cargo xtask setup`: the one step that everything else builds on. A `.venv` in the checkout with the Python
//! packages and the native runtime; each part is made again only when what it is made from has changed.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, output, program, root, step, try_output};

/// Folders of the crates that the native runtime is built from. `snakepit-wire` is in `snakepit-proto`.
const RUNTIME_CRATES: [&str; 5] =
    ["snakepit-python", "snakepit-worker", "snakepit-registry", "snakepit-session", "snakepit-proto"];

/// What setup made.
#[derive(Debug)]
pub(crate) struct Environment {
    /// The interpreter of `.venv`.
    pub(crate) python: PathBuf,
}

impl Environment {
    /// A program of `.venv`.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.python.with_file_name(name)
    }
}

pub(crate) fn run() -> Result<Environment> {
    let root = root();
    let venv = root.join(".venv");
    let environment = Environment { python: venv.join("bin/python") };
    let base = find_python()?;

    let version = output(program(&base).arg("--version"))?;
    made_of(&venv, "venv", &[&version], &[], || {
        step(&format!("create .venv with {}", version.trim()), || create_venv(&base, &venv))
    })?;

    let pyproject = root.join("snakepit-python/pyproject.toml");
    made_of(&venv, "packages", &[&version], &[&pyproject], || {
        step("install the Python packages (maturin, numpy, scikit-learn, grpcio, pytest, mypy, ruff)", || {
            let mut pip = program(&environment.python);
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "maturin>=1.9.4"]);
            pip.args(dependencies(&environment, &pyproject)?);
            shell::run(&mut pip)
        })
    })?;

    let mut sources: Vec<PathBuf> = RUNTIME_CRATES.iter().map(|name| root.join(name)).collect();
    sources.extend([root.join("Cargo.toml"), root.join("Cargo.lock"), pyproject]);
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    made_of(&venv, "runtime", &[&version], &sources, || {
        step("build the native runtime with maturin (a minute or two the first time)", || {
            let mut maturin = program(environment.tool("maturin"));
            maturin.args([
                "develop",
                "--quiet",
                "--release",
                "--manifest-path",
                "snakepit-python/Cargo.toml",
            ]);
            maturin.env("VIRTUAL_ENV", &venv).env_remove("CONDA_PREFIX");
            // What it says matters only when it fails, and then it is part of the error.
            output(&mut maturin).map(drop)?;
            // As pip does with what it installs: where Python may write no bytecode, each worker would compile it anew.
            let mut compile = program(&environment.python);
            shell::run(compile.args(["-m", "compileall", "-q", "snakepit-python/python", "tests/adapters"]))
        })
    })?;

    let proto = root.join("snakepit-proto/proto");
    made_of(&venv, "stubs", &[&version], &[&proto], || {
        step("generate Python stubs for the test worker", || {
            let stubs = venv.join("stubs");
            fs::create_dir_all(&stubs)?;
            let mut protoc = program(&environment.python);
            protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(&proto);
            protoc.arg(format!("--python_out={}", stubs.display()));
            protoc.arg(format!("--grpc_python_out={}", stubs.display()));
            shell::run(protoc.arg("snakepit_bridge.proto"))
        })
    })?;
    Ok(environment)
}

/// The first Python that is new enough: `$PYTHON`, then what `PATH` has.
fn find_python() -> Result<PathBuf> {
    let named = std::env::var_os("PYTHON").map(PathBuf::from);
    let candidates = named.into_iter().chain(["python3", "python"].map(PathBuf::from));
    for candidate in candidates {
        let check = "import sys; sys.exit(sys.version_info < (3, 11))";
        if try_output(program(&candidate).args(["-c", check])).is_ok_and(|output| output.status.success()) {
            return Ok(candidate);
        }
    }
    bail!("no Python >= 3.11 found; install python3, or name one with the PYTHON environment variable")
}

fn create_venv(base: &Path, venv: &Path) -> Result<()> {
    make_room(venv)?;
    let output = try_output(program(base).args(["-m", "venv"]).arg(venv))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stdout);
    let hint = "Debian and Ubuntu have it in the package python3-venv: apt-get install python3-venv";
    bail!("python cannot create a virtual environment: {}\n{hint}", reason.trim())
}

/// Empties the directory of an environment that setup made, and marks it as such from the first moment, so that an
/// interrupted setup can go on. What somebody else made is not touched.
fn make_room(venv: &Path) -> Result<()> {
    let stamp = stamp(venv, "venv");
    let entries = match fs::read_dir(venv) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(_) => Vec::new(),
    };
    ensure!(
        entries.is_empty() || stamp.exists(),
        "{} was not made by `cargo xtask setup`, which would replace it; move it away and run this again",
        venv.display()
    );
    fs::create_dir_all(venv).with_context(|| format!("cannot make {}", venv.display()))?;
    fs::write(&stamp, "unfinished").with_context(|| format!("cannot write {}", stamp.display()))?;
    for path in entries.iter().map(fs::DirEntry::path).filter(|path| *path != stamp) {
        let is_dir = fs::symlink_metadata(&path)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The file that remembers what a part of the environment was made from.
fn stamp(venv: &Path, name: &str) -> PathBuf {
    venv.join(format!("{name}.stamp"))
}

/// The dependencies and extras of the Python package, read by Python's own parser of it.
fn dependencies(environment: &Environment, pyproject: &Path) -> Result<Vec<String>> {
    // tomllib came with 3.11; pip has carried the same parser for longer.
    let read = "
import json, sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
project = tomllib.load(open(sys.argv[1], 'rb'))['project']
extras = project.get('optional-dependencies', {})
print(json.dumps(project.get('dependencies', []) + [d for e in extras.values() for d in e]))
";
    let names = output(program(&environment.python).args(["-c", read]).arg(pyproject))?;
    let names: Vec<String> = serde_json::from_str(&names).context("pyproject.toml lists no dependencies")?;
    // An extra may name other extras of the package itself; they are all here already.
    Ok(names.into_iter().filter(|name| !name.starts_with("snakepit")).collect())
}

/// Makes something unless it was already made from the same inputs. A stamp in `.venv` remembers them.
fn made_of(
    venv: &Path,
    name: &str,
    texts: &[&str],
    paths: &[&Path],
    make: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    for path in paths {
        hash_path(path, &mut hasher)?;
    }
    let fingerprint = format!("{:016x}", hasher.finish());
    let stamp = stamp(venv, name);
    if fs::read_to_string(&stamp).is_ok_and(|known| known == fingerprint) {
        return Ok(());
    }
    make()?;
    fs::write(&stamp, fingerprint).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Adds a file, or all sources below a directory, to a fingerprint.
fn hash_path(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    if !path.is_dir() {
        path.file_name().hash(hasher);
        fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.hash(hasher);
        return Ok(());
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_source =
            entry.extension().is_some_and(|e| ["rs", "proto", "toml", "bin"].iter().any(|s| e == *s));
        // Tests do not go into the runtime, and caches are not sources.
        if (entry.is_dir()
            && !["tests", "target", "examples"].contains(&name)
            && !name.starts_with(['.', '_']))
            || is_source
        {
            hash_path(&entry, hasher)?;
        }
    }
    Ok(())
}

/// A program of the system's packages that tests and measures run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemProgram {
    name: &'static str,
    /// The argument that makes it print its version.
    version: &'static str,
    /// The package of Debian and Ubuntu.
    package: &'static str,
}

pub(crate) const REDIS: SystemProgram =
    SystemProgram { name: "redis-server", version: "--version", package: "redis-server" };
pub(crate) const NGINX: SystemProgram =
    SystemProgram { name: "nginx", version: "-v", package: "nginx-light" };
pub(crate) const HAPROXY: SystemProgram =
    SystemProgram { name: "haproxy", version: "-v", package: "haproxy" };

impl SystemProgram {
    fn is_installed(self) -> bool {
        // Servers are in the administrator's directory, which is not on every user's path.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        succeeds(program(self.name).arg(self.version).env("PATH", path))
    }
}

/// Installs missing programs if this user may, and fails if one is still missing.
pub(crate) fn system_programs(programs: &[SystemProgram]) -> Result<()> {
    let missing = || programs.iter().filter(|program| !program.is_installed()).map(|program| program.package);
    let packages: Vec<_> = missing().collect();
    if packages.is_empty() {
        return Ok(());
    }
    let is_root = output(program("id").arg("-u")).is_ok_and(|user| user.trim() == "0");
    if is_root && succeeds(program("apt-get").arg("--version")) {
        step(&format!("install {}, which tests and measures start", packages.join(", ")), || {
            shell::run(program("apt-get").args(["update", "-qq"]))?;
            let mut install = program("apt-get");
            install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages);
            shell::run(install.env("DEBIAN_FRONTEND", "noninteractive"))
        })?;
    }
    let missing: Vec<_> = missing().collect();
    ensure!(
        missing.is_empty(),
        "tests and measures need programs that are not installed: install them (Debian and Ubuntu: apt-get install {}), or \
         run only the tests you name: `cargo xtask test NAME`",
        missing.join(" ")
    );
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    try_output(command).is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_of_somebody_else_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("xtask-venv-{}", std::process::id()));
        make_room(&dir).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/python"), "ours").unwrap();
        make_room(&dir).unwrap();
        assert!(!dir.join("bin").exists(), "what setup made is made anew");

        fs::remove_file(stamp(&dir, "venv")).unwrap();
        fs::write(dir.join("pyvenv.cfg"), "theirs").unwrap();
        let error = make_room(&dir).unwrap_err().to_string();
        assert!(error.contains("was not made by") && error.contains("move it away"), "{error}");
        assert!(dir.join("pyvenv.cfg").exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_thing_is_made_again_only_when_its_inputs_change() {
        let dir = std::env::temp_dir().join(format!("xtask-setup-{}", std::process::id()));
        let source = dir.join("src");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("a.rs"), "one").unwrap();
        let made = |expected: bool| {
            let mut ran = false;
            made_of(&dir, "thing", &["v1"], &[&source], || {
                ran = true;
                Ok(())
            })
            .unwrap();
            assert_eq!(ran, expected);
        };
        made(true);
        made(false);
        fs::write(source.join("ignored.pyc"), "cache").unwrap();
        made(false);
        fs::write(source.join("a.rs"), "two").unwrap();
        made(true);
        fs::remove_dir_all(&dir).unwrap();
    }
}
