//! `cargo xtask soak`: builds the daemon and the soak, and runs it.

use anyhow::Result;

use crate::{
    setup,
    shell::{self, cargo, step},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long calls and faults go on.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,

    /// Chooses the order of faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Inject only faults whose name contains this.
    #[arg(long)]
    fault: Option<String>,

    /// Keep the table as docs/soak.md.
    #[arg(long)]
    save: bool,

    /// Build for release, as the daemon is shipped.
    #[arg(long)]
    release: bool,
}

/// A minute, as in the test command.
impl Default for Args {
    fn default() -> Self {
        Self { minutes: 1.0, seed: 1, fault: None, save: false, release: false }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let environment = setup::run()?;
    setup::system_programs(&[setup::REDIS])?;
    let profile: &[&str] = if args.release { &["--release"] } else { &[] };
    step("build the daemon and the soak", || {
        // Apart, so that the daemon gets its own features only, as it is shipped.
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
