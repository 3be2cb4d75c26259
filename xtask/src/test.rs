//! `cargo xtask test`: runs the setup, every check and every test, as CI does.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail, ensure};

use crate::{
    bench::instructions,
    check, demo, setup,
    setup::Environment,
    shell::{self, cargo, output, program, try_output},
    soak, wheel,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Skip the static checks and the instruction counts.
    #[arg(long)]
    quick: bool,

    /// Run property tests with four times as many cases.
    #[arg(long, conflicts_with_all = ["quick", "filter"])]
    full: bool,

    /// Run only the Rust tests whose name contains this text.
    filter: Option<String>,
}

type Step = (&'static str, Box<dyn Fn(&Environment) -> Result<()>>);

pub(crate) fn run(args: &Args) -> Result<()> {
    let environment = setup::environment()?;
    let (filter, full) = (args.filter.clone(), args.full);
    let mut steps: Vec<Step> =
        vec![("rust tests", Box::new(move |env| rust_tests(env, filter.as_deref(), full)))];
    if args.filter.is_none() {
        setup::install_system_programs(&[setup::REDIS, setup::NGINX, setup::HAPROXY])?;
        steps.push((
            "doc tests",
            Box::new(|env| shell::run(with_env(cargo().args(["test", "--quiet", "--doc"]), env))),
        ));
        steps.push(("python tests", Box::new(|env| pytest(env, &[]))));
        steps.push(("wheel", Box::new(|_| wheel::dev())));
        steps.push(("demo", Box::new(|_| demo_step())));
        steps.push(("soak", Box::new(|_| soak::run(&soak::Args::default()))));
        if !args.quick {
            steps.insert(0, ("checks", Box::new(|_| check::run(&check::Args::all()))));
            steps.push(("instructions", Box::new(|_| instructions::run(&instructions::Args::check()))));
        }
    }

    let mut summary = Vec::new();
    for (name, step) in steps {
        println!("==> {name}");
        let start = Instant::now();
        let outcome = step(&environment);
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        summary.push((name, outcome.is_ok(), start.elapsed()));
    }
    println!();
    for (name, passed, elapsed) in &summary {
        println!("{:<14} {} in {elapsed:.0?}", name, if *passed { "passed" } else { "FAILED" });
    }
    let failed: Vec<_> = summary.iter().filter(|(_, passed, _)| !passed).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// All test targets except doc tests and benches.
const ALL_TARGETS: [&str; 4] = ["--lib", "--bins", "--tests", "--examples"];

/// The scenarios that must pass for both paths to a worker: calls multiplexed on one stream, and one RPC per call. They are
/// selected by target because a selection by package would build them again with other features.
const SCENARIOS: [&str; 14] = [
    "--test",
    "calls",
    "--test",
    "rust_client",
    "--test",
    "contracts",
    "--test",
    "embedding",
    "--test",
    "lifecycle",
    "--test",
    "python_state",
    "--test",
    "sessions",
];

/// The Rust tests that need scikit-learn. They carry `#[ignore]`, so the other test runs skip them.
const DEMO_TESTS: [&str; 2] = ["--test", "digits"];

/// Runs all Rust tests, or those whose name contains the filter, with nextest if it is installed and `cargo test` otherwise.
fn rust_tests(environment: &Environment, filter: Option<&str>, full: bool) -> Result<()> {
    // The scenarios start the daemon's binary, which only a build of its package creates.
    shell::run(cargo().args(["build", "--quiet", "-p", "snakepit-cli"]))?;
    let has_nextest = try_output(cargo().args(["nextest", "--version"])).is_ok_and(|o| o.status.success());
    let runner: &[&str] = if has_nextest {
        &["nextest", "run", "--no-fail-fast", "--no-tests", "pass", "--status-level", "slow"]
    } else {
        &["test", "--quiet", "--no-fail-fast"]
    };
    // snakepit-python has a separate run, because it links against Python and enables other features of its dependencies.
    let python = [&["-p", "snakepit-python"], &ALL_TARGETS[..]].concat();
    let runs: [(&[&str], bool); 3] = [(&ALL_TARGETS, false), (&python, false), (&SCENARIOS, true)];
    let mut has_match = false;
    for (selection, one_rpc_per_call) in runs {
        if let Some(filter) = filter
            && !any_matches(environment, selection, filter)?
        {
            continue;
        }
        has_match = true;
        let mut command = cargo();
        with_env(command.args(runner).args(selection), environment).args(filter);
        if full {
            command.env("PROPTEST_CASES", "1024");
        }
        if one_rpc_per_call {
            println!("    the scenarios again, with one RPC per call");
            command.env("SNAKEPIT_TEST_PLAIN", "1");
        }
        shell::run(&mut command)?;
    }
    if let Some(filter) = filter
        && any_matches(environment, &DEMO_TESTS, filter)?
    {
        has_match = true;
        rust_demo_tests(&setup::demo_environment()?, Some(filter))?;
    }
    ensure!(has_match, "no Rust test has `{}` in its name", filter.unwrap_or_default());
    Ok(())
}

/// Whether the name of a test in these targets contains the filter. nextest and `cargo test` interpret the filter in the same way.
fn any_matches(environment: &Environment, selection: &[&str], filter: &str) -> Result<bool> {
    let mut list = cargo();
    list.args(["test", "--quiet"]).args(selection).args([filter, "--", "--list", "--format", "terse"]);
    Ok(lists_a_test(&output(with_env(&mut list, environment))?))
}

fn lists_a_test(list: &str) -> bool {
    list.lines().any(|line| line.ends_with(": test"))
}

/// Runs the demo, and the tests that need scikit-learn, or cover more with tables and images. This step installs these packages, so in
/// a fresh `.venv` all other tests run without them.
fn demo_step() -> Result<()> {
    let environment = setup::demo_environment()?;
    demo::run(demo::Args::default())?;
    rust_demo_tests(&environment, None)?;
    pytest(&environment, &["-m", "demo"])?;
    pytest(&environment, &["-k", "whole_values"])
}

fn rust_demo_tests(environment: &Environment, filter: Option<&str>) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--quiet"]).args(DEMO_TESTS).args(filter).args(["--", "--ignored"]);
    shell::run(with_env(&mut command, environment))
}

fn pytest(environment: &Environment, args: &[&str]) -> Result<()> {
    let mut pytest = program(&environment.python);
    pytest.args(["-m", "pytest", "-q", "snakepit-python"]).args(args);
    shell::run(with_env(&mut pytest, environment))
}

fn with_env<'a>(command: &'a mut Command, environment: &Environment) -> &'a mut Command {
    command.env("SNAKEPIT_PYTHON", &environment.python).env("PYO3_PYTHON", &environment.python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_with_a_test_is_recognized() {
        assert!(lists_a_test("tests::it_works: test\n"));
        assert!(!lists_a_test("\n"));
        assert!(!lists_a_test("warning: unused\nbenches::fast: benchmark\n"));
    }
}
