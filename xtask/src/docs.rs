//! `cargo xtask check docs`: builds the documentation and checks the links of its pages. rustdoc reports links to unknown
//! items, but not links to items of undocumented crates: rustdoc leaves the brackets of these links in the text.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    manifests::PUBLISHED,
    shell::{cargo, root, run as sh},
};

/// The crates on which programs depend. They export the items of the other crates, so their documentation must not link to pages of
/// those.
const FACADES: [&str; 2] = ["snakepit_client", "snakepit_server"];

/// Builds the pages, and checks their links.
pub(crate) fn run() -> Result<()> {
    let pages = root().join("target/doc");
    for (library, ..) in PUBLISHED.iter().filter(|(_, _, is_library)| *is_library) {
        // rustdoc links to another crate only if its directory exists.
        let dir = pages.join(library.replace('-', "_"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    sh(cargo().args(["check", "--quiet", "--lib"]))?;
    let mut docs = cargo();
    // One job at a time, because cargo removes the directory of a crate while it documents the crate.
    docs.args(["doc", "--quiet", "--no-deps", "--lib", "--jobs", "1"]);
    sh(docs.env("RUSTDOCFLAGS", "-D warnings"))?;

    let mut problems = BTreeSet::new();
    for (package, _, is_library) in PUBLISHED {
        if !is_library {
            continue;
        }
        for path in html_below(&pages.join(package.replace('-', "_")))? {
            let html =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let page = path.strip_prefix(&pages).unwrap_or(&path);
            let found = problems_of(&html, page, |target| pages.join(target).exists());
            problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", page.display())));
        }
    }
    if !problems.is_empty() {
        let list: Vec<_> = problems.into_iter().collect();
        bail!(
            "{} links in target/doc do not work; link to an item that the crate exports or to docs.rs, or write the path as \
             code\n{}",
            list.len(),
            list.join("\n")
        );
    }
    Ok(())
}

/// All HTML files below a directory.
fn html_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(html_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "html") {
            pages.push(path);
        }
    }
    Ok(pages)
}

/// The broken links in the documentation of a page. `page` and the argument of `exists` are paths below the directory of pages.
fn problems_of(html: &str, page: &Path, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    // Pages of foreign items that a crate exports have no source here. Blanket implementations of foreign traits are documented
    // by their crates.
    if !html.contains("class=\"src\" href=\"../") {
        return Vec::new();
    }
    let own = html.split("id=\"blanket-implementations\"").next().unwrap_or_default();
    let library = page.components().next();
    let is_facade = FACADES.iter().any(|facade| library == Some(Component::Normal(facade.as_ref())));
    let mut problems = Vec::new();
    for text in doc_blocks(own) {
        for unresolved in text.split("[<code>").skip(1) {
            let item = unresolved.split("</code>").next().unwrap_or_default();
            problems.push(format!("the link to `{item}` is not resolved"));
        }
        for link in text.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let path = link.split(['#', '?']).next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let target = page.parent().and_then(|dir| resolve(dir, path));
            let problem = match &target {
                _ if path.contains("::") => "is the path of an item, not of a page",
                None => "leads out of the documentation",
                Some(target) if !exists(target) => "leads to no page",
                Some(target) if is_facade && target.components().next() != library => {
                    "leads to another crate, on which programs do not depend"
                }
                Some(_) => continue,
            };
            problems.push(format!("the link to `{link}` {problem}"));
        }
    }
    problems
}

/// The documentation comments of a page, which `div` elements of this class contain.
fn doc_blocks(html: &str) -> impl Iterator<Item = &str> {
    html.split("<div class=\"docblock").skip(1).map(|rest| {
        let mut depth = 1_usize;
        for (at, _) in rest.match_indices("div") {
            match (&rest[..at], rest.as_bytes().get(at + 3)) {
                (before, Some(b'>' | b' ')) if before.ends_with('<') => depth += 1,
                (before, Some(b'>')) if before.ends_with("</") => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return &rest[..at];
            }
        }
        rest
    })
}

/// The path to which a relative link leads. `None` if it leads out of the root.
fn resolve(dir: &Path, link: &str) -> Option<PathBuf> {
    let mut path = dir.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a server page with this documentation.
    fn problems(text: &str) -> Vec<String> {
        let page = Path::new("snakepit_server/error/enum.Error.html");
        let html = format!(
            "<a class=\"src\" href=\"../../src/snakepit_server/error.rs.html\">Source</a><a href=\"Signature::path\"></a>\
             <div class=\"docblock\"><div class=\"example\"></div>{text}</div><a href=\"Signature::path\"></a>"
        );
        problems_of(&html, page, |target| !target.ends_with("struct.Missing.html"))
    }

    #[test]
    fn finds_links_that_do_not_work() {
        for (html, expected) in [
            ("see [<code>Code::http_status</code>].", "`Code::http_status` is not resolved"),
            ("<a href=\"crate::Builder\">x</a>", "`crate::Builder` is the path of an item"),
            ("<a href=\"../struct.Missing.html#a\">x</a>", "leads to no page"),
            ("<a href=\"../../../other.html\">x</a>", "leads out of the documentation"),
            ("<a href=\"../../snakepit_registry/enum.ToolError.html\">x</a>", "leads to another crate"),
        ] {
            let found = problems(html);
            assert!(found.len() == 1 && found[0].contains(expected), "{html}: {found:?}");
        }
    }

    #[test]
    fn accepts_links_that_work_and_pages_of_foreign_items() {
        let html = "<a href=\"#method.kind\"></a><a href=\"../struct.Builder.html#x\"></a><a href=\"https://a::b\"></a>\
                    <code>[u8]</code>";
        assert_eq!(problems(html), Vec::<String>::new());
        let pool = "<a class=\"src\" href=\"../src/snakepit_pool/pool.rs.html\">Source</a><div class=\"docblock\">\
                    <a href=\"../snakepit_registry/enum.ToolError.html\">x</a></div>";
        assert_eq!(
            problems_of(pool, Path::new("snakepit_pool/struct.Pool.html"), |_| true),
            Vec::<String>::new()
        );
        let foreign = "<div class=\"docblock\">[<code>Interval</code>]</div>";
        assert_eq!(
            problems_of(foreign, Path::new("snakepit_server/struct.Foreign.html"), |_| true),
            Vec::<String>::new()
        );
    }
}
