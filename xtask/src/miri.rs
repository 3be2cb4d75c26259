//! `cargo xtask miri`: runs tests of unsafe code in Miri, which detects undefined behavior.

use anyhow::{Result, ensure};

use crate::{setup, shell, tools::Toolchain};

/// Packages and the tests that Miri can run. Other unsafe code makes system calls or calls Python, which Miri cannot.
const TESTS: [(&str, &str); 2] = [("snakepit-python", "progress::answers"), ("snakepit-proto", "answers")];

pub(crate) fn run() -> Result<()> {
    let installation = "rustup toolchain install nightly --component miri,rust-src";
    let nightly = Toolchain::find("nightly", &["miri", "--version"], installation)?;
    let python = setup::environment()?.python;
    for (package, tests) in TESTS {
        let miri = |arguments: &[&str]| {
            let mut miri = nightly.cargo();
            miri.args(["miri", "test", "--target-dir", "target/miri", "--lib", "-p", package, tests]);
            miri.args(arguments);
            // Tests leak the memory that stands for a file which stays mapped. Property tests read their seed from the
            // environment.
            miri.env("MIRIFLAGS", "-Zmiri-ignore-leaks -Zmiri-disable-isolation").env("PROPTEST_CASES", "16");
            miri.env("PYO3_PYTHON", &python);
            miri
        };
        check_list(package, tests, &shell::output(&mut miri(&["--", "--list"]))?)?;
        shell::run(&mut miri(&[]))?;
    }
    Ok(())
}

/// Checks that a filter matches a test. Otherwise, the run would pass without a test, for example after a module was renamed.
fn check_list(package: &str, filter: &str, list: &str) -> Result<()> {
    let tests = list.lines().filter(|line| line.ends_with(": test")).count();
    ensure!(tests > 0, "`{filter}` matches no test of {package}; correct the filter in xtask/src/miri.rs");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_without_tests_fails() {
        check_list("p", "answers", "answers::tests::a: test\nbench: benchmark\n\n1 test, 1 benchmark\n")
            .unwrap();
        let error = check_list("p", "answers", "\n0 tests, 0 benchmarks\n").unwrap_err().to_string();
        assert!(error.contains("`answers` matches no test of p"), "{error}");
    }
}
