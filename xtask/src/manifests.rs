//! `cargo xtask check manifests`: checks that each published crate has its licenses, its settings for docs.rs, and a table of its
//! features.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// The published crates: the name, the directory, and whether it is a library.
pub(crate) const PUBLISHED: [(&str, &str, bool); 13] = [
    ("snakepit-reason", "snakepit-proto/reason", true),
    ("snakepit-proto", "snakepit-proto", true),
    ("snakepit-session", "snakepit-session", true),
    ("snakepit-session-redb", "snakepit-session/redb", true),
    ("snakepit-session-redis", "snakepit-session/redis", true),
    ("snakepit-session-testkit", "snakepit-session/testkit", true),
    ("snakepit-registry", "snakepit-registry", true),
    ("snakepit-wire", "snakepit-proto/wire", true),
    ("snakepit-worker", "snakepit-worker", true),
    ("snakepit-pool", "snakepit-pool", true),
    ("snakepit-client", "snakepit-server/client", true),
    ("snakepit-server", "snakepit-server", true),
    ("snakepit-cli", "snakepit-server/cli", false),
];

/// The section that makes docs.rs document all features, and mark the items that need one.
const DOCS_RS: &str =
    "[package.metadata.docs.rs]\nall-features = true\nrustdoc-args = [\"--cfg\", \"docsrs\"]\n";

/// The attribute of a library that shows the features of its items on docs.rs.
const DOC_CFG: &str = "#![cfg_attr(docsrs, feature(doc_cfg))]";

pub(crate) fn run() -> Result<()> {
    let mut problems = Vec::new();
    let read =
        |path: &str| fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"));
    for (name, directory, is_library) in PUBLISHED {
        let manifest = read(&format!("{directory}/Cargo.toml"))?;
        let readme = read(&format!("{directory}/README.md"))?;
        for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
            if read(&format!("{directory}/{license}")).ok() != Some(read(license)?) {
                problems.push(format!("{directory}/{license} is not the license of the repository; link it"));
            }
        }
        let mut required =
            vec![(!manifest.contains(&format!("name = \"{name}\"\n")), format!("is not {name}"))];
        for key in ["description", "readme", "license", "repository", "rust-version"] {
            required.push((!manifest.contains(&format!("\n{key}")), format!("has no `{key}`")));
        }
        if is_library {
            required.push((!manifest.contains(DOCS_RS), format!("lacks the section\n{DOCS_RS}")));
            let library = read(&format!("{directory}/src/lib.rs"))?;
            if !library.contains(DOC_CFG) {
                problems.push(format!("{directory}/src/lib.rs lacks `{DOC_CFG}`"));
            }
        }
        let missing = required.into_iter().filter(|(is_missing, _)| *is_missing);
        problems.extend(missing.map(|(_, problem)| format!("{directory}/Cargo.toml {problem}")));
        let (actual, documented) = (features(&manifest), documented_features(&readme));
        if actual != documented {
            problems.push(format!(
                "{directory}/README.md documents the features {documented:?}, but Cargo.toml has {actual:?} (true: by default)"
            ));
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

/// The features of a manifest, and whether each is on by default.
fn features(manifest: &str) -> BTreeMap<String, bool> {
    let section = manifest.split("\n[features]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    // The remaining lines of a value are indented, or begin with its closing bracket.
    let entries = section.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let entries: Vec<(&str, &str)> = entries.filter_map(|line| line.split_once(" = ")).collect();
    let defaults = entries.iter().find(|(name, _)| *name == "default").map_or("", |(_, value)| value);
    let named = entries.iter().filter(|(name, _)| *name != "default");
    named.map(|(name, _)| ((*name).to_owned(), defaults.contains(&format!("\"{name}\"")))).collect()
}

/// The features in the table of a README, and whether the table says that each is on by default.
fn documented_features(readme: &str) -> BTreeMap<String, bool> {
    let section = readme.split("\n## Features\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, rest)| (name.to_owned(), rest.starts_with("yes |"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_features_must_match_the_manifest() {
        let manifest = "[package]\nname = \"a\"\n\n[features]\ndefault = [\"b\"]\n# A comment = 1\nb = [\n    \"x = y\",\n]\n\
                        c = []\n\n[dependencies]\nd = \"1\"\n";
        let expected = BTreeMap::from([("b".to_owned(), true), ("c".to_owned(), false)]);
        assert_eq!(features(manifest), expected);
        let readme = "# A\n\n## Features\n\n| feature | default | purpose |\n| --- | --- | --- |\n| `b` | yes | B |\n\
                      | `c` | | C |\n\n## License\n\n| `d` | yes | no feature |\n";
        assert_eq!(documented_features(readme), expected);
        assert_eq!(features("[package]\nname = \"a\"\n"), BTreeMap::new());
        assert_eq!(documented_features("# A\n"), BTreeMap::new());
    }
}
