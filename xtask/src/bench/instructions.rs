//! `cargo xtask bench instructions [--check | --save]`: how many instructions hot pieces of code take, by callgrind.
//!
//! On a shared machine time is noise, but instructions are not: a piece that takes more of them than it did has become
//! more expensive. The program `snakepit-tests --example instructions` runs a piece so many times; the difference between
//! two such runs leaves out what starting the program takes.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::shell::{self, cargo, output, program, root, step, try_output};

/// By how much a count may rise before it counts as a regression, in percent. Routines of the C library are among what is
/// counted, and which of them run depends on the processor.
const TOLERANCE: u64 = 10;

/// Repeats of a piece in the shorter and in the longer run: so many that what differs from start to start, such as the
/// seeds of hash maps, weighs nothing.
const REPEATS: [u64; 2] = [1_000, 21_000];

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Fail when a count is more than 10 % above the one in docs/bench/instructions.json.
    #[arg(long, conflicts_with = "save")]
    check: bool,

    /// Keep the counts in docs/bench/instructions.json.
    #[arg(long)]
    save: bool,
}

impl Args {
    /// What the project's tests ask for.
    pub(crate) const fn check() -> Self {
        Self { check: true, save: false }
    }
}

type Counts = BTreeMap<String, u64>;

/// What docs/bench/instructions.json holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// The compiler that made what was counted.
    rustc: String,
    counts: Counts,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !try_output(program("valgrind").arg("--version")).is_ok_and(|output| output.status.success()) {
        println!(
            "skipped: instructions are counted by valgrind, which is not installed (apt-get install valgrind)"
        );
        return Ok(());
    }
    let rustc = rustc()?;
    // Whatever is kept is about to be replaced.
    let kept = if args.save { kept().unwrap_or_default() } else { kept()? };
    if args.check && kept.rustc != rustc {
        println!(
            "skipped: the counts are of {}, this is {rustc}; keep new ones with `cargo xtask bench instructions --save`",
            kept.rustc
        );
        return Ok(());
    }
    let binary = step("build the pieces for release", build)?;
    let names = output(program(&binary).arg("list"))?;
    let mut counts = Counts::new();
    for name in names.lines() {
        let [short, long] = REPEATS.map(|repeats| count(&binary, name, repeats));
        let each = long?.saturating_sub(short?) / (REPEATS[1] - REPEATS[0]);
        let before = kept.counts.get(name).map_or_else(String::new, |kept| format!("  kept: {kept}"));
        println!("  {name:<28} {each:>8} instructions{before}");
        counts.insert(name.to_owned(), each);
    }
    if args.check {
        let risen = risen(&kept.counts, &counts);
        ensure!(
            risen.is_empty(),
            "{}\nfind out why, or accept it with `cargo xtask bench instructions --save`",
            risen.join("\n")
        );
        println!("no count has risen by more than {TOLERANCE} %");
    }
    if args.save {
        fs::create_dir_all(path().with_file_name(""))?;
        fs::write(path(), format!("{:#}\n", serde_json::to_value(Kept { rustc, counts })?))?;
        println!("kept: docs/bench/instructions.json");
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
    let target = metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(PathBuf::from(target).join("release/examples/instructions"))
}

/// The instructions of a whole run.
fn count(binary: &PathBuf, name: &str, repeats: u64) -> Result<u64> {
    let mut valgrind = program("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary);
    let run = try_output(valgrind.args([name, &repeats.to_string()]))?;
    let said = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        bail!("`{name}` failed under valgrind ({}):\n{}", run.status, said.trim_end());
    }
    collected(&said).with_context(|| format!("valgrind says nothing of instructions:\n{said}"))
}

fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// Why the check fails: counts that rose, and pieces that one side does not know.
fn risen(kept: &Counts, counts: &Counts) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, now) in counts {
        match kept.get(name) {
            None => problems.push(format!("{name}: no count is kept of it")),
            Some(before) if now * 100 > before * (100 + TOLERANCE) => {
                problems.push(format!("{name}: {before} instructions before, {now} now"));
            }
            Some(_) => {}
        }
    }
    let gone = kept.keys().filter(|name| !counts.contains_key(*name));
    problems.extend(gone.map(|name| format!("{name}: a count is kept of it, but it is gone")));
    problems
}

fn rustc() -> Result<String> {
    Ok(output(program("rustc").arg("--version"))?.trim().to_owned())
}

fn kept() -> Result<Kept> {
    match fs::read_to_string(path()) {
        Ok(json) => serde_json::from_str(&json).context("docs/bench/instructions.json is malformed"),
        Err(_) => Ok(Kept::default()),
    }
}

fn path() -> PathBuf {
    root().join("docs/bench/instructions.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rise_above_the_tolerance_fails() {
        let of = |counts: &[(&str, u64)]| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let kept: Counts = of(&[("codec", 1000), ("gone", 1)]);
        assert_eq!(risen(&kept, &of(&[("codec", 1100), ("gone", 1)])), Vec::<String>::new());
        let problems = risen(&kept, &of(&[("codec", 1101), ("new", 1)])).join("; ");
        assert!(problems.contains("codec: 1000 instructions before, 1101 now"), "{problems}");
        assert!(problems.contains("new: no count") && problems.contains("gone: a count"), "{problems}");
    }

    #[test]
    fn what_is_kept_can_be_read() {
        let kept = kept().unwrap();
        assert!(kept.rustc.starts_with("rustc ") && !kept.counts.is_empty(), "{kept:?}");
    }

    #[test]
    fn the_count_is_read_from_what_valgrind_says() {
        assert_eq!(collected("==8217== Events    : Ir\n==8217== Collected : 128705\n"), Some(128_705));
        assert_eq!(collected("==8217== Command: x\n"), None);
    }
}
