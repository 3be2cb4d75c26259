//! `cargo xtask fuzz`: fuzzes the decoding of values from the wire, starting from the seeds of their tests.

use std::fs;

use anyhow::Result;

use crate::{
    shell::{self, root},
    tools::{FUZZ, Toolchain},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The duration.
    #[arg(long, default_value_t = 1)]
    minutes: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let nightly = Toolchain::find("nightly", &["--version"], "rustup toolchain install nightly")?;
    let extension = FUZZ.install()?;
    let crate_dir = root().join("snakepit-proto/wire");
    fs::create_dir_all(crate_dir.join("fuzz/corpus/any"))?;
    let mut fuzz = nightly.program(&extension);
    fuzz.args(["fuzz", "run", "any", "fuzz/corpus/any", "fuzz/seeds/any", "--", "-dict=fuzz/any.dict"]);
    fuzz.arg(format!("-max_total_time={}", args.minutes * 60)).current_dir(crate_dir);
    shell::run(&mut fuzz)
}
