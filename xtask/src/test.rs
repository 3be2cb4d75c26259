//! `cargo xtask test`: setup, every check, every test. What CI runs.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail, ensure};

use crate::{
    bench::instructions,
    check, demo, setup,
    setup::Environment,
    shell::{self, cargo, output, program, try_output},
    soak,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the static checks and the count of instructions.
    #[arg(long)]
    quick: bool,

    /// Let property tests try four times as many cases.
    #[arg(long, conflicts_with_all = ["quick", "filter"])]
    full: bool,

    /// Run only Rust tests whose name contains this, and no others.
    filter: Option<String>,
}

type Step = (&'static str, Box<dyn Fn(&Environment) -> Result<()>>);

pub(crate) fn run(args: &Args) -> Result<()> {
    let environment = setup::run()?;
    let (filter, full) = (args.filter.clone(), args.full);
    let mut steps: Vec<Step> = vec![("rust tests", Box::new(move |env| rust(env, filter.as_deref(), full)))];
    if args.filter.is_none() {
        setup::system_programs(&[setup::REDIS, setup::NGINX, setup::HAPROXY])?;
        steps.push((
            "doc tests",
            Box::new(|env| shell::run(with_env(cargo().args(["test", "--quiet", "--doc"]), env))),
        ));
        steps.push(("python tests", Box::new(python)));
        steps.push(("demo", Box::new(|_| demo::run(demo::Args::default()))));
        steps.push(("soak", Box::new(|_| soak::run(&soak::Args::default()))));
        if !args.quick {
            steps.insert(0, ("checks", Box::new(|_| check::run(&check::Args::all()))));
            steps.push(("instructions", Box::new(|_| instructions::run(&instructions::Args::check()))));
        }
    }

    let mut summary = Vec::new();
    for (name, step) in steps {
        println!("==> {name}");
        let began = Instant::now();
        let outcome = step(&environment);
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        summary.push((name, outcome.is_ok(), began.elapsed()));
    }
    println!();
    for (name, passed, took) in &summary {
        println!("{:<14} {} in {took:.0?}", name, if *passed { "passed" } else { "FAILED" });
    }
    let failed: Vec<_> = summary.iter().filter(|(_, passed, _)| !passed).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// What must hold over both ways to a worker: calls multiplexed on one stream, and each call an RPC of its own. Selected by
/// their targets and not by their package, so that nothing is built again with other features.
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

/// All Rust tests, by nextest where it is installed and by plain `cargo test` elsewhere: the tests are the same.
fn rust(environment: &Environment, filter: Option<&str>, full: bool) -> Result<()> {
    // The scenarios run the daemon's binary, which only a build of its package makes.
    shell::run(cargo().args(["build", "--quiet", "-p", "snakepit-cli"]))?;
    let has_nextest = try_output(cargo().args(["nextest", "--version"])).is_ok_and(|o| o.status.success());
    let tests: &[&str] = if has_nextest {
        &["nextest", "run", "--no-fail-fast", "--no-tests", "pass", "--status-level", "slow"]
    } else {
        &["test", "--quiet", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]
    };
    // The native runtime apart from the others, because it links against Python, and its dependencies want other features.
    let runs: [(&[&str], bool); 3] = [(&[], false), (&["-p", "snakepit-python"], false), (&SCENARIOS, true)];
    let mut matched = false;
    for (selection, plain) in runs {
        if let Some(filter) = filter
            && !any_matches(environment, selection, filter)?
        {
            continue;
        }
        matched = true;
        let mut command = cargo();
        with_env(command.args(tests).args(selection), environment).args(filter);
        if full {
            command.env("PROPTEST_CASES", "1024");
        }
        if plain {
            println!("    the scenarios once more, with each call an RPC of its own");
            command.env("SNAKEPIT_TEST_PLAIN", "1");
        }
        shell::run(&mut command)?;
    }
    ensure!(matched, "no Rust test has `{}` in its name", filter.unwrap_or_default());
    Ok(())
}

/// Whether any test of these packages has this in its name. Both runners mean the same by it.
fn any_matches(environment: &Environment, selection: &[&str], filter: &str) -> Result<bool> {
    let mut list = cargo();
    list.args(["test", "--quiet", "--lib", "--bins", "--tests", "--examples"]).args(selection);
    list.args([filter, "--", "--list", "--format", "terse"]);
    Ok(lists_a_test(&output(with_env(&mut list, environment))?))
}

fn lists_a_test(list: &str) -> bool {
    list.lines().any(|line| line.ends_with(": test"))
}

fn python(environment: &Environment) -> Result<()> {
    let mut pytest = program(&environment.python);
    pytest.args(["-m", "pytest", "-q", "snakepit-python"]);
    shell::run(with_env(&mut pytest, environment))
}

fn with_env<'a>(command: &'a mut Command, environment: &Environment) -> &'a mut Command {
    command.env("SNAKEPIT_PYTHON", &environment.python).env("PYO3_PYTHON", &environment.python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_tests_is_told_from_one_with() {
        assert!(lists_a_test("tests::it_works: test\n"));
        assert!(!lists_a_test("\n"));
        assert!(!lists_a_test("warning: unused\nbenches::fast: benchmark\n"));
    }
}
