//! `cargo xtask check [NAME..]`: runs the static checks.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    api, codegen, deny, docs, layers, loom,
    manifests::{self, PUBLISHED},
    msrv, package, setup,
    shell::{cargo, program, run as sh},
    tidy,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checks to run; all by default.
    #[arg(value_enum)]
    names: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// rustfmt
    Fmt,
    /// Project rules about files, such as their length
    Tidy,
    /// The layering of ARCHITECTURE.md
    Layers,
    /// The published crates have licenses, settings for docs.rs and tables of their features
    Manifests,
    /// Types that may grow are non-exhaustive, and public signatures name only stable crates
    Api,
    /// The packages of the published crates contain their licenses, and otherwise only sources
    Packages,
    /// The generated code matches the .proto
    Codegen,
    /// Clippy, with warnings as errors
    Clippy,
    /// Each published crate compiles alone, with and without its features
    Features,
    /// rustdoc, with warnings as errors
    Docs,
    /// ruff, mypy and stubtest
    Python,
    /// The rules for dependencies in deny.toml: bans, licenses and sources.
    Deny,
    /// Model checks of hand-written synchronization.
    Loom,
    /// Known vulnerabilities of dependencies. Needs GitHub, so it runs only if you name it.
    Advisories,
    /// The oldest supported compiler. Needs that toolchain, so it runs only if you name it.
    Msrv,
}

impl Args {
    pub(crate) const fn all() -> Self {
        Self { names: Vec::new() }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    use clap::ValueEnum;
    let is_default = |check: &&Check| !matches!(check, Check::Advisories | Check::Msrv);
    let checks: Vec<_> = match &args.names[..] {
        [] => Check::value_variants().iter().filter(is_default).collect(),
        names => names.iter().collect(),
    };
    let mut failed = Vec::new();
    for check in checks {
        let name = check.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("==> check {name}");
        let start = Instant::now();
        match check.run() {
            Ok(()) => println!("    passed in {:.1?}", start.elapsed()),
            Err(error) => {
                eprintln!("{error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("checks failed: {}; run a single one with `cargo xtask check NAME`", failed.join(", "));
    }
    Ok(())
}

impl Check {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => sh(cargo().args(["fmt", "--all", "--check"])),
            Self::Tidy => tidy::run(),
            Self::Layers => layers::run(),
            Self::Manifests => manifests::run(),
            Self::Api => api::run(),
            Self::Packages => package::run(&package::Args::without_build()),
            Self::Codegen => codegen::run(&codegen::Args::check()),
            Self::Clippy => {
                sh(cargo().args(["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"]))?;
                let python = setup::environment()?.python;
                let mut clippy = cargo();
                clippy.args([
                    "clippy",
                    "--quiet",
                    "-p",
                    "snakepit-python",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ]);
                sh(clippy.env("PYO3_PYTHON", python))
            }
            Self::Features => PUBLISHED.iter().try_for_each(|(package, ..)| {
                sh(cargo().args(["check", "--quiet", "-p", package]))?;
                sh(cargo().args(["check", "--quiet", "-p", package, "--no-default-features"]))?;
                sh(cargo().args(["check", "--quiet", "-p", package, "--all-features"]))
            }),
            Self::Docs => docs::run(),
            Self::Deny => deny::run(),
            Self::Loom => loom::run(),
            Self::Advisories => deny::advisories(),
            Self::Msrv => msrv::run(),
            Self::Python => {
                let environment = setup::environment()?;
                let ruff = |args: &[&str]| {
                    sh(program(environment.tool("ruff")).args(args).arg("snakepit-python").arg("tests"))
                };
                ruff(&["check", "--quiet"])?;
                ruff(&["format", "--quiet", "--check"])?;
                // pyproject.toml enables strict mode and lists the files.
                let package = crate::shell::root().join("snakepit-python");
                sh(program(environment.tool("mypy")).current_dir(&package))?;
                // stubtest compares the hand-written stubs with the native module.
                let mut stubs = program(environment.tool("stubtest"));
                sh(stubs.arg("snakepit_bridge._native").current_dir(&package))
            }
        }
    }
}
