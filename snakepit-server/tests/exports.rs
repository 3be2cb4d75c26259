//! Checks that `snakepit_server` exports every type in a public signature, so that programs depend on a single crate.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The source folders of the crates whose types `snakepit_server` exports.
const CRATES: [&str; 6] = [
    "snakepit-server/src",
    "snakepit-server/client/src",
    "snakepit-registry/src",
    "snakepit-session/src",
    "snakepit-worker/src",
    "snakepit-pool/src",
];

/// Types with which the server itself works. Programs cannot use them without parts of the server that it does not export.
const INTERNAL: [&str; 12] = [
    "CallFuture",
    "CallLayers",
    "CallProgress",
    "CallTimeline",
    "Pool",
    "PoolService",
    "ProcessConfig",
    "ProcessLauncher",
    "Registration",
    "Registry",
    "RemoteTool",
    "ResolvedTool",
];

/// Types and traits of other crates, which `snakepit_server` does not export, and associated types.
const FOREIGN: [&str; 69] = [
    "Arc",
    "ArrayBase",
    "AsRef",
    "BTreeMap",
    // `Body` and `HttpService` are in the exported module `transport`.
    "Body",
    "Box",
    "BoxError",
    "BoxFuture",
    "BoxStream",
    "Bytes",
    "Clone",
    "Cow",
    "CowArray",
    "Data",
    "Debug",
    "Deserialize",
    "DeserializeOwned",
    "DeserializeSeed",
    "Dimension",
    "Display",
    "Elem",
    "Duration",
    "Err",
    "Error",
    "Extend",
    "Fn",
    "FnMut",
    "FnOnce",
    "Formatter",
    "From",
    "Future",
    "HttpService",
    "Instant",
    "Into",
    "IntoIter",
    "IntoIterator",
    "Item",
    "Iterator",
    "Layer",
    "Map",
    "Option",
    "Output",
    "Path",
    "PathBuf",
    "PhantomData",
    "Pin",
    "RangeBounds",
    "RawValue",
    "Receiver",
    // A private alias of a boxed future.
    "ReplyFuture",
    "Request",
    "Response",
    "Result",
    "Self",
    "Send",
    "Serialize",
    "Service",
    // Only for backends, which depend on `snakepit-session` and its module `kit`.
    "SessionRecord",
    // In the exported module `settings`.
    "Setting",
    "Sized",
    "SocketAddr",
    "StdError",
    "Stream",
    "String",
    "Sync",
    "SystemTime",
    "TryInto",
    "Value",
    "Vec",
];

/// The types in the exported module `variable_kinds`.
const VARIABLE_KINDS: [&str; 7] = ["Embedding", "Float", "Integer", "Module", "Plain", "Tensor", "Text"];

/// An item of a source file that begins at the start of a line.
#[derive(Default)]
struct Owner<'a> {
    /// The first word of a public item, or `impl` or `impl for`.
    kind: &'static str,
    /// The name of the type or trait.
    name: &'a str,
}

impl<'a> Owner<'a> {
    /// Reads the head of an item. Other items have an empty name.
    fn of(item: &'a str) -> Self {
        for kind in ["struct", "enum", "trait", "type"] {
            if let Some(name) = item.strip_prefix("pub ").and_then(|rest| rest.strip_prefix(kind)) {
                return Self { kind, name: words(name).next().unwrap_or_default() };
            }
        }
        let Some(head) = item.strip_prefix("impl").and_then(|rest| rest.split('{').next()) else {
            return Self::default();
        };
        let head = without_generics(head).split("where").next().unwrap_or_default();
        let (kind, target) = match head.rsplit_once(" for ") {
            Some((_, target)) => ("impl for", target),
            None => ("impl", head),
        };
        Self { kind, name: types(target).next().unwrap_or_default() }
    }

    /// The part of the text at the start of a line inside the item that belongs to the public API.
    fn signature(&self, text: &'a str) -> Option<&'a str> {
        let line = text.lines().next().unwrap_or_default();
        let item = line.trim_start();
        let end = text.find(['{', ';']).unwrap_or(text.len());
        let is_public = ["pub fn ", "pub async fn ", "pub const fn "];
        let is_method = ["fn ", "async fn ", "type "];
        match self.kind {
            "impl" if is_public.iter().any(|start| item.starts_with(start)) => Some(&text[..end]),
            "trait" if is_method.iter().any(|start| item.starts_with(start)) => Some(&text[..end]),
            "impl for" if item.starts_with("type ") => text[..end].split_once('=').map(|(_, ty)| ty),
            "struct" => item.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")).map(|(_, ty)| ty),
            // The fields of variants.
            "enum" if line.starts_with("        ") => item.split_once(": ").map(|(_, ty)| ty),
            "enum" if item.starts_with(char::is_uppercase) => item.split_once('(').map(|(_, types)| types),
            "type" if item.starts_with("pub type ") => Some(&text[..end]),
            _ => None,
        }
    }
}

/// The text after the generic parameters at its start.
fn without_generics(text: &str) -> &str {
    let mut depth = 0_i32;
    for (at, character) in text.char_indices() {
        depth += match character {
            '<' => 1,
            '>' if !text[..at].ends_with(['-', '=']) => -1,
            _ => 0,
        };
        if depth == 0 {
            return if at == 0 { text } else { &text[at + 1..] };
        }
    }
    text
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The names of types in a string. Generic parameters have one letter, or are `Fut`.
fn types(text: &str) -> impl Iterator<Item = &str> {
    words(text).filter(|word| {
        word.starts_with(char::is_uppercase) && word.contains(char::is_lowercase) && *word != "Fut"
    })
}

/// The code of a source file without comments and tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file is readable");
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// The source files in a folder, without tests and models.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .expect("a folder is readable")
        .map(|entry| entry.expect("an entry is readable").path());
    let of_library = entries.filter(|path| {
        path.file_stem().is_some_and(|name| !["tests", "models"].iter().any(|other| name == *other))
    });
    of_library.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The types that a library exports from its root.
fn exports(library: &Path) -> BTreeSet<String> {
    let text = code(library);
    let public = text.split(';').filter(|item| !item.contains("#[doc(hidden)]"));
    let items = public.filter_map(|item| {
        item.split_once("pub use ").or_else(|| item.split_once("pub type ")).map(|(_, item)| item)
    });
    items.flat_map(types).map(str::to_owned).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder")
}

#[test]
fn every_type_in_a_public_signature_is_exported() {
    let exported = exports(&root().join("snakepit-server/src/lib.rs"));
    let is_known =
        |name: &str| exported.contains(name) || FOREIGN.contains(&name) || VARIABLE_KINDS.contains(&name);
    let (mut missing, mut signatures) = (BTreeSet::new(), 0);
    for path in CRATES.iter().flat_map(|folder| files(&root().join(folder))) {
        let text = code(&path);
        let (mut owner, mut start) = (Owner::default(), 0);
        for line in text.split_inclusive('\n') {
            let rest = &text[start..];
            start += line.len();
            if !line.starts_with([' ', '}', ')', '\n']) {
                owner = Owner::of(rest);
            }
            if !exported.contains(owner.name) {
                continue;
            }
            let Some(signature) = owner.signature(rest) else { continue };
            signatures += 1;
            missing.extend(types(signature).filter(|name| !is_known(name)).map(|name| {
                format!("{name} of {} ({})", owner.name, path.strip_prefix(root()).unwrap().display())
            }));
        }
    }
    assert!(signatures > 1000, "{signatures} signatures");
    assert!(missing.is_empty(), "not exported by snakepit_server: {missing:#?}");
}

#[test]
fn every_type_of_the_other_crates_is_exported_or_internal() {
    let exported = exports(&root().join("snakepit-server/src/lib.rs"));
    let others: BTreeSet<_> =
        CRATES[1..].iter().flat_map(|folder| exports(&root().join(folder).join("lib.rs"))).collect();
    let missing: Vec<_> = others
        .iter()
        .filter(|name| !exported.contains(*name) && !FOREIGN.contains(&name.as_str()))
        .map(String::as_str)
        .collect();
    assert_eq!(missing, INTERNAL, "types that snakepit_server does not export");
}
