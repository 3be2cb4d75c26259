//! `cargo xtask layers`: the architecture's layering, as absences that can be executed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{cargo, output};

/// Which crates of this workspace a crate may depend on.
const MAY_USE: [(&str, &[&str]); 13] = [
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

/// What a crate must not reach, however far down.
const MUST_NOT_REACH: [(&str, &[&str]); 12] = [
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

/// What must be found by the same means: if it is not, the check is broken and proves nothing.
const MUST_REACH: [(&str, &str); 14] = [
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
    let mut wrong = Vec::new();
    for (package, allowed) in MAY_USE {
        for used in reaches(package)?.iter().filter(|name| name.starts_with("snakepit-") && *name != package)
        {
            if !allowed.contains(&used.as_str()) {
                wrong.push(format!("{package} depends on {used}, which the layering forbids"));
            }
        }
    }
    for (package, forbidden) in MUST_NOT_REACH {
        let reached = reaches(package)?;
        for name in forbidden.iter().filter(|name| reached.contains(**name)) {
            wrong.push(format!(
                "{package} reaches {name}; see it with `cargo tree -p {package} -e normal -i {name}`"
            ));
        }
    }
    for (package, expected) in MUST_REACH {
        ensure!(
            reaches(package)?.contains(expected),
            "this check is broken: {package} does not reach {expected}"
        );
    }
    ensure!(
        !default_members()?.contains("snakepit-python"),
        "snakepit-python is a default member, so a plain `cargo build` needs Python"
    );
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("layers: as they should be");
    Ok(())
}

/// All that a crate depends on outside its tests, resolved for this crate alone.
fn reaches(package: &str) -> Result<BTreeSet<String>> {
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
        .context("cargo lists no default members")?
        .iter()
        .filter_map(text)
        .collect();
    let packages = metadata["packages"].as_array().context("cargo lists no packages")?;
    let is_default = |package: &&serde_json::Value| text(&package["id"]).is_some_and(|id| ids.contains(&id));
    Ok(packages.iter().filter(is_default).filter_map(|package| text(&package["name"])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read_by_names() {
        let tree = "snakepit-pool v0.1.0 (/x)\ntokio v1.50.0\ntonic v0.14.9 (*)\n\n";
        assert_eq!(names(tree), ["snakepit-pool", "tokio", "tonic"].map(str::to_owned).into());
    }
}
