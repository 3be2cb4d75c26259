//! `cargo xtask bench instructions [--check | --save]`: counts the instructions of hot functions with callgrind.
//!
//! Times are noisy on a shared machine, but instruction counts are stable, so a higher count means a more expensive
//! function. The program `snakepit-tests --example instructions` runs a function a given number of times. The difference
//! between two runs excludes the start of the program.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::shell::{self, cargo, output, program, root, step, try_output};

/// The highest increase that is not a regression, in percent. The counts include functions of the C library, whose
/// implementations depend on the processor.
const TOLERANCE: u64 = 10;

/// The numbers of repeats in the short and the long run. They are large enough to hide differences between starts, such as
/// the seeds of hash maps.
const REPEATS: [u64; 2] = [1_000, 21_000];

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Fail if a count is more than 10 % above the one in docs/bench/instructions.json.
    #[arg(long, conflicts_with = "save")]
    check: bool,

    /// Write the counts to docs/bench/instructions.json.
    #[arg(long)]
    save: bool,
}

impl Args {
    /// The arguments of `cargo xtask test`.
    pub(crate) const fn check() -> Self {
        Self { check: true, save: false }
    }
}

type Counts = BTreeMap<String, u64>;

/// The contents of docs/bench/instructions.json.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedCounts {
    /// The compiler of the counted code.
    rustc: String,
    counts: Counts,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !try_output(program("valgrind").arg("--version")).is_ok_and(|output| output.status.success()) {
        println!(
            "skipped: valgrind, which counts the instructions, is not installed (apt-get install valgrind)"
        );
        return Ok(());
    }
    let rustc = rustc()?;
    // With --save, a malformed file is replaced.
    let saved = if args.save { saved_counts().unwrap_or_default() } else { saved_counts()? };
    if args.check && saved.rustc != rustc {
        println!(
            "skipped: the saved counts are from {}, but this is {rustc}; save new ones with `cargo xtask bench instructions --save`",
            saved.rustc
        );
        return Ok(());
    }
    let binary = step("build the functions for release", build)?;
    let names = output(program(&binary).arg("list"))?;
    let mut counts = Counts::new();
    for name in names.lines() {
        let [short, long] = REPEATS.map(|repeats| count(&binary, name, repeats));
        let per_repeat = long?.saturating_sub(short?) / (REPEATS[1] - REPEATS[0]);
        let saved_text = saved.counts.get(name).map_or_else(String::new, |count| format!("  saved: {count}"));
        println!("  {name:<28} {per_repeat:>8} instructions{saved_text}");
        counts.insert(name.to_owned(), per_repeat);
    }
    if args.check {
        let regressions = regressions(&saved.counts, &counts);
        ensure!(
            regressions.is_empty(),
            "{}\nfind the cause, or accept the new counts with `cargo xtask bench instructions --save`",
            regressions.join("\n")
        );
        println!("no count has increased by more than {TOLERANCE} %");
    }
    if args.save {
        fs::create_dir_all(path().with_file_name(""))?;
        fs::write(path(), format!("{:#}\n", serde_json::to_value(SavedCounts { rustc, counts })?))?;
        println!("saved: docs/bench/instructions.json");
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    shell::run(cargo().args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "snakepit-tests",
        "--example",
        "instructions",
    ]))?;
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str().context("`cargo metadata` has no target directory")?;
    Ok(PathBuf::from(target).join("release/examples/instructions"))
}

/// Counts the instructions of one run.
fn count(binary: &PathBuf, name: &str, repeats: u64) -> Result<u64> {
    let mut valgrind = program("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary);
    let run = try_output(valgrind.args([name, &repeats.to_string()]))?;
    let stderr = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        bail!("`{name}` failed under valgrind ({}):\n{}", run.status, stderr.trim_end());
    }
    parse_count(&stderr).with_context(|| format!("valgrind printed no instruction count:\n{stderr}"))
}

fn parse_count(stderr: &str) -> Option<u64> {
    let line = stderr.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// Lists counts that increased, and functions that have only one of the two counts.
fn regressions(saved: &Counts, counts: &Counts) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, now) in counts {
        match saved.get(name) {
            None => problems.push(format!("{name}: no saved count")),
            Some(before) if now * 100 > before * (100 + TOLERANCE) => {
                problems.push(format!("{name}: {before} instructions before, {now} now"));
            }
            Some(_) => {}
        }
    }
    let removed = saved.keys().filter(|name| !counts.contains_key(*name));
    problems.extend(removed.map(|name| format!("{name}: a saved count, but no such function")));
    problems
}

fn rustc() -> Result<String> {
    Ok(output(program("rustc").arg("--version"))?.trim().to_owned())
}

fn saved_counts() -> Result<SavedCounts> {
    match fs::read_to_string(path()) {
        Ok(json) => serde_json::from_str(&json).context("docs/bench/instructions.json is malformed"),
        Err(_) => Ok(SavedCounts::default()),
    }
}

fn path() -> PathBuf {
    root().join("docs/bench/instructions.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_increase_above_the_tolerance_is_a_regression() {
        let counts_of = |counts: &[(&str, u64)]| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let saved: Counts = counts_of(&[("codec", 1000), ("removed", 1)]);
        assert_eq!(regressions(&saved, &counts_of(&[("codec", 1100), ("removed", 1)])), Vec::<String>::new());
        let problems = regressions(&saved, &counts_of(&[("codec", 1101), ("new", 1)])).join("; ");
        assert!(problems.contains("codec: 1000 instructions before, 1101 now"), "{problems}");
        assert!(
            problems.contains("new: no saved count") && problems.contains("removed: a saved count"),
            "{problems}"
        );
    }

    #[test]
    fn the_saved_counts_are_well_formed() {
        let saved = saved_counts().unwrap();
        assert!(saved.rustc.starts_with("rustc ") && !saved.counts.is_empty(), "{saved:?}");
    }

    #[test]
    fn the_count_is_parsed_from_the_output_of_valgrind() {
        assert_eq!(parse_count("==8217== Events    : Ir\n==8217== Collected : 128705\n"), Some(128_705));
        assert_eq!(parse_count("==8217== Command: x\n"), None);
    }
}
