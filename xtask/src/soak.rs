//! `cargo xtask soak`: builds the daemon and the soak test, and runs the test.

use anyhow::Result;

use crate::{
    setup,
    shell::{self, cargo, step},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Minutes of load and faults.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,

    /// Seed for the order of faults and their victims.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Inject only faults whose name contains this text.
    #[arg(long)]
    fault: Option<String>,

    /// Write the tables to docs/soak.md.
    #[arg(long)]
    save: bool,

    /// Use release builds.
    #[arg(long)]
    release: bool,
}

/// One minute, as in `cargo xtask test`.
impl Default for Args {
    fn default() -> Self {
        Self { minutes: 1.0, seed: 1, fault: None, save: false, release: false }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let environment = setup::environment()?;
    setup::install_system_programs(&[setup::REDIS])?;
    let profile: &[&str] = if args.release { &["--release"] } else { &[] };
    step("build the daemon and the soak test", || {
        // Two builds, because one would unify the features: the daemon must have only its own.
        shell::run(cargo().args(["build", "--quiet", "-p", "snakepit-cli"]).args(profile))?;
        shell::run(
            cargo()
                .args(["build", "--quiet", "-p", "snakepit-tests", "--bin", "snakepit-soak"])
                .args(profile),
        )
    })?;
    let mut soak = cargo();
    soak.args(["run", "--quiet", "-p", "snakepit-tests", "--bin", "snakepit-soak"]).args(profile).arg("--");
    soak.args(["--minutes", &args.minutes.to_string(), "--seed", &args.seed.to_string()]);
    if let Some(fault) = &args.fault {
        soak.args(["--fault", fault]);
    }
    if args.save {
        soak.args(["--save", "docs/soak.md"]);
    }
    soak.env("SNAKEPIT_PYTHON", &environment.python);
    shell::run(&mut soak)
}
