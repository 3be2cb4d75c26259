//! `cargo xtask setup`: creates `.venv` with the Python packages and the native runtime. Other xtask commands run it first, so it
//! skips steps whose inputs have not changed.

use std::{
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    lock,
    shell::{self, output, program, root, step, try_output},
};

/// The directories of the crates from which maturin builds the native runtime. `snakepit-proto` contains `snakepit-wire`.
const RUNTIME_CRATES: [&str; 5] =
    ["snakepit-python", "snakepit-worker", "snakepit-registry", "snakepit-session", "snakepit-proto"];

/// A Python virtual environment.
#[derive(Debug)]
pub(crate) struct Environment {
    /// The interpreter.
    pub(crate) python: PathBuf,
}

impl Environment {
    /// The path of an installed program.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.python.with_file_name(name)
    }

    /// `PATH` with the programs of this environment first.
    pub(crate) fn path(&self) -> Result<OsString> {
        let directory = self.python.parent().unwrap_or(&self.python).to_owned();
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(directory).chain(std::env::split_paths(&inherited));
        std::env::join_paths(all).context("cannot extend PATH")
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also install scikit-learn, which only the demo needs.
    #[arg(long)]
    demo: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.demo { demo_environment() } else { environment() }.map(drop)
}

/// Returns the environment with the extras `demo` and `packages` installed.
pub(crate) fn demo_environment() -> Result<Environment> {
    let environment = environment()?;
    let pyproject = root().join("snakepit-python/pyproject.toml");
    let version = output(program(&environment.python).arg("--version"))?;
    run_if_changed(&root().join(".venv"), "demo-packages", &[&version], &[&pyproject], || {
        step(
            "install the Python packages of the demo and of tables and images (scikit-learn, pandas, ..)",
            || {
                let mut requirements = dependencies(&environment, &pyproject, "demo")?;
                requirements.extend(dependencies(&environment, &pyproject, "packages")?);
                install(&environment, &requirements)
            },
        )
    })?;
    Ok(environment)
}

/// Creates or updates the environment.
pub(crate) fn environment() -> Result<Environment> {
    let root = root();
    let venv = root.join(".venv");
    let environment = Environment { python: venv.join("bin/python") };
    let base = find_python()?;
    let _lock = lock::acquire(lock::SETUP)?;

    let version = output(program(&base).arg("--version"))?;
    run_if_changed(&venv, "venv", &[&version], &[], || {
        step(&format!("create .venv with {}", version.trim()), || create_venv(&base, &venv))
    })?;

    let pyproject = root.join("snakepit-python/pyproject.toml");
    run_if_changed(&venv, "packages", &[&version], &[&pyproject], || {
        step("install the Python packages (maturin, numpy, pydantic, grpcio, pytest, mypy, ruff)", || {
            let mut requirements = dependencies(&environment, &pyproject, "dev")?;
            requirements.push("maturin>=1.9.4".to_owned());
            install(&environment, &requirements)
        })
    })?;

    let mut sources: Vec<PathBuf> = RUNTIME_CRATES.iter().map(|name| root.join(name)).collect();
    sources.extend([root.join("Cargo.toml"), root.join("Cargo.lock"), pyproject]);
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    run_if_changed(&venv, "runtime", &[&version], &sources, || {
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
            {
                let _lock = lock::acquire(lock::MATURIN)?;
                // `output` hides the output of maturin unless maturin fails.
                output(&mut maturin).map(drop)?;
            }
            // Precompile the bytecode, as pip does. Otherwise, every worker compiles the package again if the cache is not writable.
            let mut compile = program(&environment.python);
            shell::run(compile.args(["-m", "compileall", "-q", "snakepit-python/python", "tests/adapters"]))
        })
    })?;

    let proto = root.join("snakepit-proto/proto");
    run_if_changed(&venv, "stubs", &[&version], &[&proto], || {
        step("generate the gRPC stubs of the Python test workers", || {
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

/// Creates or updates an environment with programs that only some commands need.
pub(crate) fn tool_environment(directory: &Path, requirements: &[&str]) -> Result<Environment> {
    let environment = Environment { python: directory.join("bin/python") };
    let base = find_python()?;
    let version = output(program(&base).arg("--version"))?;
    run_if_changed(directory, "venv", &[&version, &requirements.join(" ")], &[], || {
        step(&format!("install {} in {}", requirements.join(", "), directory.display()), || {
            create_venv(&base, directory)?;
            install(&environment, &requirements.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        })
    })?;
    Ok(environment)
}

/// Returns the first Python of version 3.11 or later among `$PYTHON`, `python3` and `python`.
pub(crate) fn find_python() -> Result<PathBuf> {
    let from_environment = std::env::var_os("PYTHON").map(PathBuf::from);
    let candidates = from_environment.into_iter().chain(["python3", "python"].map(PathBuf::from));
    for candidate in candidates {
        let check = "import sys; sys.exit(sys.version_info < (3, 11))";
        if try_output(program(&candidate).args(["-c", check])).is_ok_and(|output| output.status.success()) {
            return Ok(candidate);
        }
    }
    bail!("no Python >= 3.11 found; install python3, or set the environment variable PYTHON to its path")
}

fn create_venv(base: &Path, venv: &Path) -> Result<()> {
    reset_venv(venv)?;
    let output = try_output(program(base).args(["-m", "venv"]).arg(venv))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stdout);
    let hint = "on Debian and Ubuntu, install the missing module with `apt-get install python3-venv`";
    bail!("Python cannot create a virtual environment: {}\n{hint}", reason.trim())
}

/// Empties an environment that setup created. Writes the stamp first, so that setup can continue after an interruption.
///
/// # Errors
///
/// If the directory holds files but no stamp, because another program created it. The directory then stays unchanged.
fn reset_venv(venv: &Path) -> Result<()> {
    let stamp = stamp(venv, "venv");
    let entries = match fs::read_dir(venv) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(_) => Vec::new(),
    };
    ensure!(
        entries.is_empty() || stamp.exists(),
        "{} was not created by `cargo xtask setup`, which would replace it; move it away and run the command again",
        venv.display()
    );
    fs::create_dir_all(venv).with_context(|| format!("cannot create {}", venv.display()))?;
    fs::write(&stamp, "unfinished").with_context(|| format!("cannot write {}", stamp.display()))?;
    for path in entries.iter().map(fs::DirEntry::path).filter(|path| *path != stamp) {
        let is_dir = fs::symlink_metadata(&path)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The file with the fingerprint of a step's inputs.
fn stamp(venv: &Path, name: &str) -> PathBuf {
    venv.join(format!("{name}.stamp"))
}

/// Installs packages with pip.
fn install(environment: &Environment, requirements: &[String]) -> Result<()> {
    let mut pip = program(&environment.python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    shell::run(pip.args(requirements))
}

/// Reads the requirements of the Python package and one of its extras.
fn dependencies(environment: &Environment, pyproject: &Path, extra: &str) -> Result<Vec<String>> {
    let read = "
import json, sys, tomllib
project = tomllib.load(open(sys.argv[1], 'rb'))['project']
print(json.dumps(project['dependencies'] + project['optional-dependencies'][sys.argv[2]]))
";
    let requirements = output(program(&environment.python).args(["-c", read]).arg(pyproject).arg(extra))?;
    serde_json::from_str(&requirements).context("cannot read the requirements in pyproject.toml")
}

/// Runs a step, unless a stamp in `.venv` shows that it already ran with the same inputs.
fn run_if_changed(
    venv: &Path,
    name: &str,
    texts: &[&str],
    paths: &[&Path],
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    for path in paths {
        hash_path(path, &mut hasher)?;
    }
    let fingerprint = format!("{:016x}", hasher.finish());
    let stamp = stamp(venv, name);
    if fs::read_to_string(&stamp).is_ok_and(|recorded| recorded == fingerprint) {
        return Ok(());
    }
    work()?;
    fs::write(&stamp, fingerprint).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Hashes a file, or all sources below a directory.
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
        // Skips tests, which are not part of the runtime, and caches.
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

/// A program from the system's packages that tests and benchmarks start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemProgram {
    name: &'static str,
    /// The argument that prints the version.
    version_arg: &'static str,
    /// Its package on Debian and Ubuntu.
    package: &'static str,
}

pub(crate) const REDIS: SystemProgram =
    SystemProgram { name: "redis-server", version_arg: "--version", package: "redis-server" };
pub(crate) const NGINX: SystemProgram =
    SystemProgram { name: "nginx", version_arg: "-v", package: "nginx-light" };
pub(crate) const HAPROXY: SystemProgram =
    SystemProgram { name: "haproxy", version_arg: "-v", package: "haproxy" };

impl SystemProgram {
    fn is_installed(self) -> bool {
        // Distributions install servers in /usr/sbin, which not every user's `PATH` contains.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        succeeds(program(self.name).arg(self.version_arg).env("PATH", path))
    }
}

/// Installs missing programs with apt-get if the user is root.
///
/// # Errors
///
/// If a program is still missing.
pub(crate) fn install_system_programs(programs: &[SystemProgram]) -> Result<()> {
    let missing = || programs.iter().filter(|program| !program.is_installed()).map(|program| program.package);
    let packages: Vec<_> = missing().collect();
    if packages.is_empty() {
        return Ok(());
    }
    let is_root = output(program("id").arg("-u")).is_ok_and(|user| user.trim() == "0");
    if is_root && succeeds(program("apt-get").arg("--version")) {
        step(&format!("install {}, which tests and benchmarks start", packages.join(", ")), || {
            shell::run(program("apt-get").args(["update", "-qq"]))?;
            let mut install = program("apt-get");
            install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages);
            shell::run(install.env("DEBIAN_FRONTEND", "noninteractive"))
        })?;
    }
    let missing: Vec<_> = missing().collect();
    ensure!(
        missing.is_empty(),
        "tests and benchmarks need programs that are not installed; install them (on Debian and Ubuntu: `apt-get install {}`) \
         or run selected tests only: `cargo xtask test NAME`",
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
    fn reset_keeps_an_environment_that_setup_did_not_create() {
        let dir = std::env::temp_dir().join(format!("xtask-venv-{}", std::process::id()));
        reset_venv(&dir).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/python"), "created by setup").unwrap();
        reset_venv(&dir).unwrap();
        assert!(!dir.join("bin").exists(), "setup replaces its own environment");

        fs::remove_file(stamp(&dir, "venv")).unwrap();
        fs::write(dir.join("pyvenv.cfg"), "created elsewhere").unwrap();
        let error = reset_venv(&dir).unwrap_err().to_string();
        assert!(error.contains("was not created by") && error.contains("move it away"), "{error}");
        assert!(dir.join("pyvenv.cfg").exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_step_runs_again_only_if_its_inputs_change() {
        let dir = std::env::temp_dir().join(format!("xtask-setup-{}", std::process::id()));
        let source = dir.join("src");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("a.rs"), "one").unwrap();
        let assert_runs = |expected: bool| {
            let mut ran = false;
            run_if_changed(&dir, "step", &["v1"], &[&source], || {
                ran = true;
                Ok(())
            })
            .unwrap();
            assert_eq!(ran, expected);
        };
        assert_runs(true);
        assert_runs(false);
        fs::write(source.join("ignored.pyc"), "cache").unwrap();
        assert_runs(false);
        fs::write(source.join("a.rs"), "two").unwrap();
        assert_runs(true);
        fs::remove_dir_all(&dir).unwrap();
    }
}
