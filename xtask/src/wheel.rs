//! `cargo xtask wheel`: builds the Python package with its daemon, and uses it in an empty environment without Rust.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    lock,
    setup::{self, Environment},
    shell::{self, cargo, output, program, root, step},
};

mod interpreters;
mod portable;

/// The script that installs and uses a wheel.
const SMOKE_TEST: &str = "snakepit-python/tests/installation.py";

/// The environment variable with the path of a built daemon, for the build backend.
const DAEMON_VARIABLE: &str = "SNAKEPIT_BUILD_DAEMON";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The systems on which the wheel must run.
    #[arg(long, value_enum, default_value_t = Platform::Manylinux)]
    platform: Platform,

    /// Build for this interpreter instead of for all CPythons from 3.11 on. Free-threaded CPython needs this.
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,

    /// Also build the source distribution, and a wheel from it.
    #[arg(long)]
    sdist: bool,

    /// Only check the packaging, with the debug build of the daemon and the installed native runtime. The wheel works on this
    /// system.
    #[arg(long, conflicts_with_all = ["platform", "python", "sdist"])]
    dev: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Platform {
    /// Linux with glibc 2.28 or later
    Manylinux,
    /// Linux with musl 1.2 or later
    Musllinux,
    /// This system
    Native,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.dev {
        return dev();
    }
    let _lock = lock::acquire(lock::WHEEL)?;
    let environment = portable::environment()?;
    let wheels = root().join("target/wheels");
    let wheel = step(&format!("build the wheel for {}", name_of(args.platform)), || match args.platform {
        Platform::Manylinux => portable::MANYLINUX.build(&environment, args.python.as_deref(), &wheels),
        Platform::Musllinux => portable::MUSLLINUX.build(&environment, args.python.as_deref(), &wheels),
        Platform::Native => build(&environment, &root(), args.python.as_deref(), &wheels, &[]),
    })?;
    println!("    {}", wheel.display());
    if args.platform == Platform::Musllinux && !interpreters::uses_musl(&environment.python)? {
        println!(
            "    not tried, because this Python does not use musl; run `python {SMOKE_TEST} WHEEL` where one does"
        );
    } else {
        let pythons = match &args.python {
            Some(python) => vec![python.clone()],
            None => interpreters::installed()?,
        };
        step("install and use the wheel without Rust", || smoke_test(&environment, &wheel, &pythons))?;
    }
    if args.sdist {
        let sdist = step("build the source distribution", || sdist(&environment, &wheels))?;
        println!("    {}", sdist.display());
        let source = unpack(&sdist)?;
        let built = step("build a wheel from the source distribution", || {
            // Shares the compiled dependencies with the workspace.
            let target = lock::target_directory().into_os_string();
            build(&environment, &source, None, &source, &[("CARGO_TARGET_DIR", &target)])
        })?;
        step("install and use that wheel without Rust", || {
            smoke_test(&environment, &built, &[setup::find_python()?])
        })?;
    }
    Ok(())
}

/// Checks the packaging in less than a minute, if the daemon and the native runtime are built.
pub(crate) fn dev() -> Result<()> {
    let _lock = lock::acquire(lock::WHEEL)?;
    let environment = setup::environment()?;
    shell::run(cargo().args(["build", "--quiet", "-p", "snakepit-cli"]))?;
    let directory = root().join("target/wheels/dev");
    let daemon = lock::target_directory().join("debug/snakepit").into_os_string();
    let wheel = build(&environment, &root(), None, &directory, &[(DAEMON_VARIABLE, &daemon)])?;
    smoke_test(&environment, &wheel, &[setup::find_python()?])?;
    // Fails if a member of the workspace is missing, or if the lock file does not fit the members.
    let source = unpack(&sdist(&environment, &directory)?)?;
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--quiet", "--workspace", "--depth", "0"]).current_dir(source);
    output(&mut tree).map(drop)
}

/// Builds a wheel from a source tree with pip, as a user does, but with the tools in an environment. Returns the path of the wheel.
fn build(
    environment: &Environment,
    source: &Path,
    python: Option<&Path>,
    directory: &Path,
    variables: &[(&str, &OsStr)],
) -> Result<PathBuf> {
    // pip does not report the path.
    let fresh = directory.join("built");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    let mut pip = program(&environment.python);
    pip.args([
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]);
    pip.arg("--wheel-dir").arg(&fresh).arg(source.join("snakepit-python"));
    pip.env("PATH", environment.path()?).envs(variables.iter().copied());
    if let Some(python) = python {
        let variable = "MATURIN_PEP517_ARGS";
        let inherited = variables.iter().find(|(name, _)| *name == variable);
        let inherited = inherited.map(|(_, args)| args.to_string_lossy()).unwrap_or_default();
        pip.env(variable, format!("{inherited} --interpreter {}", python.display()));
    }
    output(&mut pip).map(drop)?;
    let built = only_file(&fresh)?;
    let wheel = directory.join(built.file_name().context("the wheel has no name")?);
    fs::rename(&built, &wheel).with_context(|| format!("cannot move {}", built.display()))?;
    fs::remove_dir(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    Ok(wheel)
}

/// Installs and uses the wheel with each interpreter.
fn smoke_test(environment: &Environment, wheel: &Path, pythons: &[PathBuf]) -> Result<()> {
    shell::run(program(&environment.python).arg(SMOKE_TEST).arg(wheel).args(pythons))
}

/// Builds the source distribution. Returns its path.
fn sdist(environment: &Environment, directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let code = "import sys, snakepit_build; print(snakepit_build.build_sdist(sys.argv[1]))";
    let mut backend = program(&environment.python);
    backend.args(["-c", code]).arg(directory).env("PYTHONPATH", "snakepit-python/backend");
    let printed = output(backend.env("PATH", environment.path()?))?;
    let name = printed.lines().last().context("the build backend printed no name")?;
    Ok(directory.join(name))
}

/// Unpacks the source distribution into `target/sdist`. Returns the root of its workspace.
fn unpack(sdist: &Path) -> Result<PathBuf> {
    let directory = root().join("target/sdist");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    // All files in the archive have the same time. cargo would not notice that one has changed since an earlier build.
    shell::run(program("tar").arg("--touch").arg("-xzf").arg(sdist).arg("-C").arg(&directory))?;
    only_file(&directory)
}

/// The path of the only entry of a directory.
fn only_file(directory: &Path) -> Result<PathBuf> {
    let read = || format!("cannot read {}", directory.display());
    let entries: Vec<_> =
        fs::read_dir(directory).with_context(read)?.collect::<Result<_, _>>().with_context(read)?;
    ensure!(entries.len() == 1, "{} has {} entries instead of one", directory.display(), entries.len());
    Ok(entries[0].path())
}

fn name_of(platform: Platform) -> String {
    use clap::ValueEnum;
    platform.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
