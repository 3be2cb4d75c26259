//! Tests of the CI configuration: each command that a workflow runs must exist.

use std::{fs, path::PathBuf};

use clap::{CommandFactory, Parser};

use crate::{Cli, msrv, shell::root};

/// The arguments of each `cargo xtask` in a string, up to the end of its line.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let calls = lines.filter_map(|line| line.split_once("cargo xtask ").map(|(_, args)| args));
    calls.map(|args| args.split_whitespace().collect()).collect()
}

fn workflows() -> Vec<(PathBuf, String)> {
    let files = fs::read_dir(root().join(".github/workflows")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn workflows_run_commands_that_exist() {
    Cli::command().debug_assert();
    let mut command_count = 0;
    for (path, text) in workflows().into_iter().chain([(".ci/run".into(), read_ci())]) {
        for args in commands(&text) {
            command_count += 1;
            let line = ["cargo xtask"].into_iter().chain(args.iter().copied());
            assert!(
                Cli::try_parse_from(line).is_ok(),
                "{}: no `cargo xtask {}`",
                path.display(),
                args.join(" ")
            );
        }
    }
    assert!(command_count > 8, "the search finds only {command_count} commands");
    assert!(Cli::try_parse_from(["cargo xtask", "check", "nothing"]).is_err());
}

fn read_ci() -> String {
    fs::read_to_string(root().join(".ci/run")).unwrap()
}

#[test]
fn workflows_and_readme_name_the_oldest_supported_compiler() {
    let version = msrv::rust_version().unwrap();
    let installs = format!("rustup toolchain install {version} ");
    assert!(workflows().iter().any(|(_, text)| text.contains(&installs)), "no workflow runs `{installs}`");
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.contains(&format!("Rust {version} or later")) && readme.contains(&format!("rust-{version}-"))
    );
}
