//! `cargo xtask miri`: runs tests of unsafe code in Miri, which detects undefined behaviour.

use anyhow::Result;

use crate::{setup, shell, tools::Toolchain};

/// Packages and the tests that Miri can run. Other unsafe code makes system calls or calls Python, which Miri cannot.
const TESTS: [(&str, &str); 2] = [("snakepit-python", "progress::answers"), ("snakepit-proto", "answers")];

pub(crate) fn run() -> Result<()> {
    let installation = "rustup toolchain install nightly --component miri,rust-src";
    let nightly = Toolchain::find("nightly", &["miri", "--version"], installation)?;
    let python = setup::environment()?.python;
    for (package, tests) in TESTS {
        let mut miri = nightly.cargo();
        miri.args(["miri", "test", "--target-dir", "target/miri", "--lib", "-p", package, tests]);
        // Tests leak the memory that stands for a file which stays mapped. Property tests read their seed from the environment.
        miri.env("MIRIFLAGS", "-Zmiri-ignore-leaks -Zmiri-disable-isolation").env("PROPTEST_CASES", "16");
        shell::run(miri.env("PYO3_PYTHON", &python))?;
    }
    Ok(())
}
