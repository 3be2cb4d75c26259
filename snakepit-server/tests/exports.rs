//! Checks that `snakepit_server` exports every type in a public signature, so that programs depend on a single crate.

use std::{collections::BTreeSet, fs, path::Path};

/// The files whose public signatures a program that depends on `snakepit-server` uses.
const FILES: [&str; 51] = [
    "snakepit-server/src/authorization.rs",
    "snakepit-server/src/builder.rs",
    "snakepit-server/src/builder/authorization.rs",
    "snakepit-server/src/builder/layers.rs",
    "snakepit-server/src/builder/call_readers.rs",
    "snakepit-server/src/builder/start.rs",
    "snakepit-server/src/error.rs",
    "snakepit-server/src/snakepit.rs",
    "snakepit-server/client/src/batch.rs",
    "snakepit-server/client/src/builder.rs",
    "snakepit-server/client/src/call.rs",
    "snakepit-server/client/src/caller.rs",
    "snakepit-server/client/src/client.rs",
    "snakepit-server/client/src/error.rs",
    "snakepit-server/client/src/error/classification.rs",
    "snakepit-server/client/src/listing.rs",
    "snakepit-server/client/src/remote/operations.rs",
    "snakepit-server/client/src/session.rs",
    "snakepit-server/client/src/session/batches.rs",
    "snakepit-server/client/src/session/variables.rs",
    "snakepit-registry/src/answer.rs",
    "snakepit-registry/src/arguments.rs",
    "snakepit-registry/src/call.rs",
    "snakepit-registry/src/error.rs",
    "snakepit-registry/src/error/classification.rs",
    "snakepit-registry/src/error/kind.rs",
    "snakepit-registry/src/fault.rs",
    "snakepit-registry/src/fn_tool.rs",
    "snakepit-registry/src/fn_tool/context.rs",
    "snakepit-registry/src/fn_tool/extract.rs",
    "snakepit-registry/src/handler.rs",
    "snakepit-registry/src/host_error.rs",
    "snakepit-registry/src/meter.rs",
    "snakepit-registry/src/principal.rs",
    "snakepit-registry/src/reply.rs",
    "snakepit-registry/src/spec.rs",
    "snakepit-registry/src/timeline.rs",
    "snakepit-session/src/backend.rs",
    "snakepit-session/src/payload.rs",
    "snakepit-session/src/payload/items.rs",
    "snakepit-session/src/payload/ndarray.rs",
    "snakepit-session/src/session.rs",
    "snakepit-session/src/variable.rs",
    "snakepit-session/src/variable_type/builder.rs",
    "snakepit-worker/src/error.rs",
    "snakepit-worker/src/launcher.rs",
    "snakepit-worker/src/process/connected.rs",
    "snakepit-worker/src/process/host_access.rs",
    "snakepit-worker/src/testing.rs",
    "snakepit-worker/src/worker.rs",
    "snakepit-pool/src/status.rs",
];

/// Types and traits of other crates, which `snakepit_server` does not export, and associated types.
const FOREIGN: [&str; 64] = [
    "Arc",
    "ArrayBase",
    "AsRef",
    "BTreeMap",
    // `Body` and `HttpService` are in the exported module `transport`.
    "Body",
    "Box",
    "BoxStream",
    "BoxError",
    "Bytes",
    "Clone",
    "Cow",
    "CowArray",
    "Data",
    "Debug",
    "Deserialize",
    "DeserializeOwned",
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
    "Request",
    "Response",
    "Result",
    "Self",
    "Send",
    "Serialize",
    "Service",
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

/// The signatures of public functions, trait methods and fields.
fn signatures(text: &str) -> Vec<&str> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut is_public_trait = false;
    let mut signatures = Vec::new();
    for (at, line) in code.match_indices('\n').map(|(at, _)| (at + 1, code[at + 1..].lines().next())) {
        let line = line.unwrap_or_default();
        if !line.starts_with([' ', '}', ')']) && !line.is_empty() {
            is_public_trait = line.starts_with("pub trait ");
        }
        let item = line.trim_start();
        let is_public = ["pub fn ", "pub async fn ", "pub const fn ", "pub type "];
        let is_method = is_public_trait && (item.starts_with("fn ") || item.starts_with("async fn "));
        if is_field(item) {
            signatures.push(item);
        } else if is_method || is_public.iter().any(|start| item.starts_with(start)) {
            let end = code[at..].find(['{', ';']).unwrap_or(0);
            signatures.push(&code[at..at + end]);
        }
    }
    signatures
}

fn is_field(item: &str) -> bool {
    item.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")).is_some_and(|(name, _)| {
        name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && item.ends_with(',')
    })
}

/// The names of types in a text. Generic parameters have one letter, or are `Fut`.
fn types(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| {
        word.starts_with(char::is_uppercase) && word.contains(char::is_lowercase) && *word != "Fut"
    })
}

#[test]
fn every_type_in_a_public_signature_is_exported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let exports = read("snakepit-server/src/lib.rs");
    let exported: BTreeSet<&str> = exports
        .split(';')
        .filter_map(|item| item.split_once("pub use ").or_else(|| item.split_once("pub type ")))
        .flat_map(|(_, item)| types(item))
        .chain(FOREIGN)
        .chain(VARIABLE_KINDS)
        .collect();
    let missing: BTreeSet<String> = FILES
        .iter()
        .flat_map(|&file| {
            let text = read(file);
            let used: Vec<_> = signatures(&text).into_iter().flat_map(types).map(str::to_owned).collect();
            used.into_iter().map(move |name| (file, name))
        })
        .filter(|(_, name)| !exported.contains(name.as_str()))
        .map(|(file, name)| format!("{name} ({file})"))
        .collect();
    assert!(missing.is_empty(), "not exported by snakepit_server: {missing:#?}");
}
