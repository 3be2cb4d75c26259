//! `cargo xtask check tidy`: rules about files that no other tool knows.

use std::fs;

use anyhow::{Result, bail};

use crate::shell::{output, program, root};

/// Files longer than this want a seam.
const MAX_LINES: usize = 500;

pub(crate) fn run() -> Result<()> {
    let tracked = output(program("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let mut wrong = Vec::new();
    for path in tracked.lines() {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        wrong.extend(problems(path, &text).into_iter().map(|problem| format!("{path}: {problem}")));
    }
    let index = fs::read_to_string(root().join("docs/adr/README.md")).unwrap_or_default();
    for record in tracked.lines().filter_map(|path| path.strip_prefix("docs/adr/")) {
        if record != "README.md" && !index.contains(record) {
            wrong.push(format!("docs/adr/README.md: does not list {record}"));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let is = |extension: &str| path.ends_with(extension);
    if path.contains("/generated/") || is(".lock") {
        return problems;
    }
    if is(".rs") && !text.starts_with("//!") {
        problems.push("must open with `//!` and say what it is for".to_owned());
    }
    if is(".py") && !text.trim().is_empty() && !text.starts_with("\"\"\"") {
        problems.push("must open with a docstring that says what it is for".to_owned());
    }
    let lines = text.lines().count();
    if (is(".rs") || is(".py")) && lines > MAX_LINES {
        problems.push(format!("has {lines} lines, more than {MAX_LINES}: look for the seam"));
    }
    // Spelled apart, so that this file does not find itself.
    let unwanted = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    for word in unwanted.into_iter().filter(|word| text.contains(word)) {
        problems.push(format!("must not contain `{word}`"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_offender() {
        assert_eq!(problems("a.rs", "//! Good.\n"), Vec::<String>::new());
        assert!(problems("a.rs", "fn main() {}\n")[0].contains("//!"));
        assert!(problems("a.py", "import os\n")[0].contains("docstring"));
        assert!(problems("a.rs", &format!("//! Long.\n{}", "\n".repeat(MAX_LINES)))[0].contains("seam"));
        assert!(problems("a.md", concat!("see /wo", "rk/main"))[0].contains("must not contain"));
    }
}
