//! `cargo xtask layers`: checks the dependencies of each crate against the layering in ARCHITECTURE.md.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{cargo, output};

/// The table of reasons, which every crate may use.
const REASONS: &str = "snakepit-reason";

/// The crates of this workspace that each crate may depend on, besides [`REASONS`].
const ALLOWED: [(&str, &[&str]); 14] = [
    (REASONS, &[]),
    ("snakepit-proto", &[]),
    ("snakepit-session", &[]),
    ("snakepit-session-redb", &["snakepit-session"]),
    ("snakepit-session-redis", &["snakepit-session"]),
    ("snakepit-session-testkit", &["snakepit-session"]),
    ("snakepit-registry", &["snakepit-session"]),
    ("snakepit-wire", &["snakepit-proto", "snakepit-session", "snakepit-registry"]),
    ("snakepit-worker", &["snakepit-proto", "snakepit-session", "snakepit-registry", "snakepit-wire"]),
    ("snakepit-pool", &["snakepit-session", "snakepit-registry", "snakepit-worker"]),
    ("snakepit-client", &["snakepit-proto", "snakepit-session", "snakepit-registry", "snakepit-wire"]),
    (
        "snakepit-server",
        &[
            "snakepit-client",
            "snakepit-proto",
            "snakepit-session",
            "snakepit-session-redb",
            "snakepit-session-redis",
            "snakepit-registry",
            "snakepit-wire",
            "snakepit-worker",
            "snakepit-pool",
        ],
    ),
    (
        "snakepit-cli",
        &[
            "snakepit-client",
            "snakepit-proto",
            "snakepit-session",
            "snakepit-session-redb",
            "snakepit-session-redis",
            "snakepit-registry",
            "snakepit-wire",
            "snakepit-worker",
            "snakepit-pool",
            "snakepit-server",
        ],
    ),
    (
        "snakepit-python",
        &["snakepit-proto", "snakepit-session", "snakepit-registry", "snakepit-wire", "snakepit-worker"],
    ),
];

/// The crates that a crate must not depend on, directly or indirectly.
const FORBIDDEN: [(&str, &[&str]); 13] = [
    (REASONS, &["tonic", "prost", "serde", "pyo3"]),
    ("snakepit-proto", &["pyo3"]),
    (
        "snakepit-session",
        &["tonic", "prost", "snakepit-proto", "pyo3", "redb", "redis", "rmp-serde", "nix", "proptest"],
    ),
    ("snakepit-session-redb", &["tonic", "prost", "snakepit-proto", "pyo3", "redis", "proptest"]),
    ("snakepit-session-redis", &["tonic", "prost", "snakepit-proto", "pyo3", "redb", "nix", "proptest"]),
    ("snakepit-session-testkit", &["tonic", "prost", "snakepit-proto", "pyo3", "redb", "redis"]),
    ("snakepit-registry", &["tonic", "prost", "snakepit-proto", "pyo3"]),
    ("snakepit-wire", &["pyo3", "nix"]),
    ("snakepit-worker", &["pyo3"]),
    ("snakepit-pool", &["tonic", "prost", "snakepit-proto", "pyo3"]),
    ("snakepit-client", &["pyo3", "clap", "nix", "redb", "redis", "tracing-subscriber"]),
    (
        "snakepit-server",
        &["pyo3", "clap", "comfy-table", "humantime", "mimalloc", "toml", "tracing-subscriber"],
    ),
    ("snakepit-cli", &["pyo3"]),
];

/// Positive controls: dependencies that exist. If this check misses one, it is broken.
const CONTROLS: [(&str, &str); 14] = [
    ("snakepit-client", "tonic"),
    ("snakepit-server", "tonic"),
    ("snakepit-cli", "snakepit-server"),
    ("snakepit-cli", "clap"),
    ("snakepit-cli", "mimalloc"),
    ("snakepit-python", "pyo3"),
    ("snakepit-wire", "prost"),
    ("snakepit-worker", "snakepit-wire"),
    ("snakepit-pool", "snakepit-worker"),
    ("snakepit-session-redb", "redb"),
    ("snakepit-session-redb", "nix"),
    ("snakepit-session-redb", "rmp-serde"),
    ("snakepit-session-redis", "redis"),
    ("snakepit-session-testkit", "proptest"),
];

pub(crate) fn run() -> Result<()> {
    let mut violations = Vec::new();
    for (package, allowed) in ALLOWED {
        for used in
            dependencies(package)?.iter().filter(|name| name.starts_with("snakepit-") && *name != package)
        {
            if used != REASONS && !allowed.contains(&used.as_str()) {
                violations.push(format!("{package} depends on {used}, which the layering forbids"));
            }
        }
    }
    for (package, forbidden) in FORBIDDEN {
        let used = dependencies(package)?;
        for name in forbidden.iter().filter(|name| used.contains(**name)) {
            violations.push(format!(
                "{package} depends on {name}; `cargo tree -p {package} -e normal -i {name}` shows the path"
            ));
        }
    }
    for (package, expected) in CONTROLS {
        ensure!(
            dependencies(package)?.contains(expected),
            "this check is broken: it does not find that {package} depends on {expected}"
        );
    }
    ensure!(
        !default_members()?.contains("snakepit-python"),
        "snakepit-python is a default member, so a plain `cargo build` needs Python"
    );
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    println!("layers: passed");
    Ok(())
}

/// Returns the direct and indirect dependencies of a crate, without those of its tests and of features that other crates enable.
fn dependencies(package: &str) -> Result<BTreeSet<String>> {
    let tree =
        output(cargo().args(["tree", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"]))?;
    Ok(names(&tree))
}

fn names(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn default_members() -> Result<BTreeSet<String>> {
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let ids: Vec<String> = metadata["workspace_default_members"]
        .as_array()
        .context("`cargo metadata` has no default members")?
        .iter()
        .filter_map(text)
        .collect();
    let packages = metadata["packages"].as_array().context("`cargo metadata` has no packages")?;
    let is_default = |package: &&serde_json::Value| text(&package["id"]).is_some_and(|id| ids.contains(&id));
    Ok(packages.iter().filter(is_default).filter_map(|package| text(&package["name"])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_names_are_parsed_from_cargo_tree() {
        let tree = "snakepit-pool v0.1.0 (/x)\ntokio v1.50.0\ntonic v0.14.9 (*)\n\n";
        assert_eq!(names(tree), ["snakepit-pool", "tokio", "tonic"].map(str::to_owned).into());
    }
}
