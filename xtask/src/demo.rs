//! `cargo xtask demo`: installs scikit-learn, then builds and runs the digits example.

use anyhow::Result;

use crate::{
    setup,
    shell::{self, cargo, step},
};

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Arguments for the example.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let environment = setup::demo_environment()?;
    step("build the server and the demo", || {
        shell::run(cargo().args([
            "build",
            "--quiet",
            "-p",
            "snakepit-cli",
            "--bin",
            "snakepit",
            "-p",
            "snakepit-server",
            "--example",
            "digits",
        ]))
    })?;
    println!();
    let mut demo = cargo();
    demo.args(["run", "--quiet", "-p", "snakepit-server", "--example", "digits", "--", "--python"]);
    shell::run(demo.arg(&environment.python).args(args.rest))
}
