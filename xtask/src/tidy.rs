//! `cargo xtask check tidy`: checks project rules about files, such as their length and header.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::shell::{output, program, root};

/// The maximum length of a source file.
const MAX_LINES: usize = 500;

/// Code blocks on pages: the page, the language, the index among the blocks of that language, and the source file.
const EXAMPLES: [(&str, &str, usize, &str); 31] = [
    ("README.md", "rust", 0, "snakepit-server/examples/embed.rs"),
    ("docs/sessions.md", "rust", 0, "snakepit-server/examples/state.rs"),
    ("README.md", "python", 0, "tests/adapters/shop.py"),
    ("README.md", "rust", 1, "tests/tests/shop.rs"),
    ("docs/clients.md", "python", 0, "tests/clients/package_client.py"),
    ("docs/clients.md", "rust", 0, "snakepit-server/client/examples/client.rs"),
    ("docs/clients.md", "python", 1, "tests/clients/async_client.py"),
    ("docs/clients.md", "python", 2, "tests/clients/client.py"),
    ("docs/clients.md", "python", 3, "tests/clients/state.py"),
    ("docs/proxies.md", "nginx", 0, "tests/proxies/nginx.conf"),
    ("docs/proxies.md", "haproxy", 0, "tests/proxies/haproxy.cfg"),
    ("docs/embedding/host-tools.md", "rust", 0, "snakepit-server/examples/host_tools.rs"),
    ("docs/embedding/host-tools.md", "rust", 1, "snakepit-server/examples/custom_tool_handler.rs"),
    ("docs/embedding/layers.md", "rust", 0, "snakepit-server/examples/layered_pool.rs"),
    ("docs/embedding/permissions.md", "rust", 0, "snakepit-server/examples/permissions.rs"),
    ("docs/embedding/observe.md", "rust", 0, "snakepit-server/examples/call_records.rs"),
    ("docs/embedding/calls.md", "rust", 0, "snakepit-server/examples/call_many.rs"),
    ("docs/embedding/calls.md", "rust", 1, "tests/tests/arrays.rs"),
    ("docs/embedding/launchers.md", "rust", 0, "snakepit-server/examples/custom_launcher.rs"),
    ("docs/embedding/launchers.md", "rust", 1, "snakepit-server/examples/decorated_launcher.rs"),
    ("docs/embedding/web-service.md", "rust", 0, "snakepit-server/examples/axum_service.rs"),
    ("docs/embedding/web-service.md", "rust", 1, "snakepit-server/examples/tls_server.rs"),
    ("docs/testing-in-rust.md", "rust", 0, "snakepit-server/examples/testing_without_python.rs"),
    ("docs/adapters.md", "python", 0, "tests/adapters/greetings.py"),
    ("docs/hints.md", "python", 0, "tests/adapters/orders.py"),
    ("docs/installation.md", "python", 0, "tests/adapters/greeter.py"),
    ("docs/python.md", "python", 0, "tests/adapters/tuning.py"),
    ("docs/python.md", "python", 1, "snakepit-python/tests/test_guide.py"),
    ("snakepit-server/client/README.md", "rust", 0, "snakepit-server/client/examples/client.rs"),
    ("snakepit-python/README.md", "python", 0, "tests/adapters/shop.py"),
    ("snakepit-python/README.md", "python", 1, "snakepit-python/tests/test_readme.py"),
];

pub(crate) fn run() -> Result<()> {
    // The rules do not apply to untracked files.
    let tracked = output(program("git").args(["ls-files", "--cached"]))?;
    let mut violations = Vec::new();
    for path in tracked.lines() {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        violations.extend(problems(path, &text).into_iter().map(|problem| format!("{path}: {problem}")));
    }
    let index = fs::read_to_string(root().join("docs/adr/README.md")).unwrap_or_default();
    for record in tracked.lines().filter_map(|path| path.strip_prefix("docs/adr/")) {
        if record != "README.md" && !index.contains(record) {
            violations.push(format!("docs/adr/README.md: does not list {record}"));
        }
    }
    for (page, language, index, source) in EXAMPLES {
        let text =
            |path: &str| fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"));
        // Guides quote contiguous lines of Rust, so that each name in a block is defined there.
        let find = if page.starts_with("docs/") && language == "rust" { gap } else { difference };
        if let Some(problem) = find(&text(page)?, language, index, &text(source)?) {
            violations.push(format!("{page}: its {language} code differs from {source}: {problem}"));
        }
    }
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    Ok(())
}

fn problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let has_extension = |extension: &str| path.ends_with(extension);
    if path.contains("/generated/") || has_extension(".lock") {
        return problems;
    }
    if has_extension(".rs") && !text.starts_with("//!") {
        problems.push("must start with `//!` and its purpose".to_owned());
    }
    if has_extension(".py") && !text.trim().is_empty() && !text.starts_with("\"\"\"") {
        problems.push("must start with a docstring that states its purpose".to_owned());
    }
    let lines = text.lines().count();
    if (has_extension(".rs") || has_extension(".py")) && lines > MAX_LINES {
        problems.push(format!("has {lines} lines, more than {MAX_LINES}; split it"));
    }
    // The table in status.rs must contain every status.
    if path.starts_with("snakepit-server/src/") && !path.starts_with("snakepit-server/src/status") {
        for line in text.lines().filter(|line| constructs_status(line)) {
            problems
                .push(format!("must not construct a status, which belongs in status.rs: `{}`", line.trim()));
        }
    }
    // `concat!` keeps these words out of this file.
    let unwanted = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    for word in unwanted.into_iter().filter(|word| text.contains(word)) {
        problems.push(format!("must not contain `{word}`"));
    }
    problems
}

/// Whether a line calls a constructor of `tonic::Status`.
fn constructs_status(line: &str) -> bool {
    let mut calls =
        line.match_indices("Status::").map(|(at, found)| (&line[..at], &line[at + found.len()..]));
    calls.any(|(before, after)| {
        !before.ends_with(|c: char| c.is_alphanumeric())
            && after.starts_with(|c: char| c.is_ascii_lowercase())
            // Parses a status instead of constructing one.
            && !after.starts_with("from_header_map")
    })
}

/// A code block of a page.
fn block<'a>(page: &'a str, language: &str, index: usize) -> Option<&'a str> {
    let rest = page.split(&format!("```{language}\n")).nth(index + 1)?;
    Some(rest.split_once("```").map_or(rest, |(block, _)| block))
}

/// The lines of code without indentation, empty lines and `println!`.
fn code(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with("println!")).collect()
}

/// Finds the first line of a page's code block that the source file does not contain in the same order.
fn difference(page: &str, language: &str, index: usize, source: &str) -> Option<String> {
    let Some(block) = block(page, language, index) else { return Some(format!("no block {index}")) };
    let mut source = code(source).into_iter();
    code(block).into_iter().find(|line| !source.any(|other| other == *line)).map(|line| format!("`{line}`"))
}

/// Finds the first part of a page's code block, up to an empty line, that the source file does not contain as contiguous lines.
/// The parts must have the same order as in the file.
fn gap(page: &str, language: &str, index: usize, source: &str) -> Option<String> {
    let Some(block) = block(page, language, index) else { return Some(format!("no block {index}")) };
    let source = code(source);
    let mut rest = &source[..];
    for part in block.split("\n\n") {
        let part = code(part);
        let Some(first) = part.first() else { continue };
        let Some(at) = rest.windows(part.len()).position(|lines| lines == part) else {
            return Some(format!("the lines from `{first}` to the next empty line"));
        };
        rest = &rest[at + part.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_on_a_page_must_match_its_source() {
        let example = "fn main() {\n    one();\n    println!(\"1\");\n    two();\n}\n";
        let page = |block: &str| format!("# Page\n\n```rust\n{block}```\n\nthree();\n");
        let difference = |page: &str, index| difference(page, "rust", index, example);
        assert_eq!(difference(&page("one();\n\ntwo();\nprintln!();\n"), 0), None);
        assert_eq!(difference(&page("one();\nthree();\n"), 0), Some("`three();`".to_owned()));
        assert_eq!(difference(&page("two();\none();\n"), 0), Some("`one();`".to_owned()));
        let second = format!("{}{}", page("one();\n"), page("four();\n"));
        assert_eq!((difference(&second, 0), difference(&second, 1)), (None, Some("`four();`".to_owned())));
        assert!(difference(&second, 2).is_some() && difference("# Page\n", 0).is_some());
    }

    #[test]
    fn guides_quote_contiguous_lines() {
        let example = "fn main() {\n    one();\n\n    two();\n    println!(\"2\");\n    three();\n}\n";
        let gap = |block: &str| gap(&format!("```rust\n{block}```\n"), "rust", 0, example);
        for good in ["one();\ntwo();\n", "one();\n\nthree();\n", "two();\nthree();\n}\n", "\none();\n"] {
            assert_eq!(gap(good), None, "{good}");
        }
        for bad in ["one();\nthree();\n", "two();\n\none();\n", "four();\n"] {
            assert!(gap(bad).is_some(), "{bad}");
        }
        assert!(super::gap("# Page\n", "rust", 0, example).is_some());
    }

    #[test]
    fn each_rule_finds_a_violation() {
        assert_eq!(problems("a.rs", "//! Good.\n"), Vec::<String>::new());
        assert!(problems("a.rs", "fn main() {}\n")[0].contains("//!"));
        assert!(problems("a.py", "import os\n")[0].contains("docstring"));
        assert!(problems("a.rs", &format!("//! Long.\n{}", "\n".repeat(MAX_LINES)))[0].contains("split it"));
        let status = |line: &str| problems("snakepit-server/src/grpc.rs", &format!("//! Good.\n{line}\n"));
        assert!(status("    Err(Status::internal(\"no\"))")[0].contains("status.rs"));
        assert_eq!(status("ServingStatus::of(x); Status::Serving; -> Status"), Vec::<String>::new());
        assert!(problems("a.md", concat!("see /wo", "rk/main"))[0].contains("must not contain"));
    }
}
