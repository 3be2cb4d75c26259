//! `cargo xtask check api`: checks that the public API of the published crates can grow without breaking changes.
//!
//! - Public structs, enums and variants that may grow are `#[non_exhaustive]`. [`EXHAUSTIVE`] and [`EXHAUSTIVE_VARIANTS`] list the
//!   others.
//! - Public signatures name types of other crates only if those crates are stable (1.0 or later), or [`UNSTABLE`] lists them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use syn::{
    Attribute, Fields, File, ImplItem, Item, Signature, TraitItem, UseTree, Visibility,
    visit::{self, Visit},
};

use crate::{
    manifests::PUBLISHED,
    shell::{output, program, root},
};

/// Crates of the wire protocol. Only crates of this workspace depend on them, and all are released together, so their API may
/// change with each release.
const INTERNAL: [&str; 2] = ["snakepit-proto", "snakepit-wire"];

/// Public types that users construct or match completely, so that a new field or variant is a breaking change, with the reason.
const EXHAUSTIVE: &[(&str, &[&str])] = &[
    (
        "the stored state: a backend or a protocol that does not copy a new field would lose it, so it must not compile",
        &[
            "NewSession",
            "NewVariable",
            "Note",
            "Program",
            "ProgramInfo",
            "ProgramRecord",
            "Session",
            "SessionHeader",
            "SessionRecord",
            "SetVariable",
            "Variable",
            "VariableUpdate",
            "VariableVersion",
        ],
    ),
    ("a reply: code that forwards a reply must pass on every part", &["Chunk", "ReplyBody", "ToolReply"]),
    (
        "a closed choice: every caller handles all cases",
        &[
            "Batch",
            "CallMode",
            "CallStage",
            "Created",
            "ProgramOwner",
            "SessionEventKind",
            "Source",
            "ValueType",
            "WatchEvent",
            "WorkerCommand",
            "WorkerProgram",
        ],
    ),
    ("a page of a listing: its entries, and the position of the next one", &["Page", "PageRequest"]),
    ("the header of W3C Trace Context has these two parts", &["TraceContext"]),
    ("a guard that backends create from the limit that they check", &["SizeGuard"]),
    ("the calls with which a test of a handler describes it", &["ContractCalls"]),
];

/// Public enums whose variants users construct or match completely, so that a new field is a breaking change, with the reason.
/// The variants of types in [`EXHAUSTIVE`] need no entry.
const EXHAUSTIVE_VARIANTS: &[(&str, &str)] = &[
    (
        "SessionError",
        "backends construct these errors, each of which names one limit or object; more detail is a new variant",
    ),
    ("ExitReason", "launchers construct these reasons, each of which has one detail"),
];

/// Crates before 1.0 whose types occur in public signatures: the library, the other crate, and the path by which users name the
/// same version.
const UNSTABLE: &[(&str, &str, &str)] = &[
    ("snakepit-session", "futures_core", "snakepit_session::Stream"),
    ("snakepit-session", "ndarray", "snakepit_session::ndarray"),
    ("snakepit-registry", "futures_core", "snakepit_registry::Stream"),
    ("snakepit-registry", "tower", "snakepit_registry::tower"),
    ("snakepit-worker", "tokio_util", "snakepit_worker::process::CancellationToken"),
    ("snakepit-client", "futures_core", "snakepit_client::Stream"),
    (
        "snakepit-client",
        "futures_util",
        "its aliases of boxed streams and futures name types of std and `Stream`",
    ),
    ("snakepit-client", "tonic", "snakepit_client::status::Status"),
    ("snakepit-client", "tower", "snakepit_client::transport::tower"),
    ("snakepit-server", "futures_core", "snakepit_server::Stream"),
    ("snakepit-server", "tonic", "snakepit_server::status::Status"),
];

pub(crate) fn run() -> Result<()> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let versions = versions(&manifest);
    let mut problems = Vec::new();
    let mut unused_enums: BTreeSet<&str> = EXHAUSTIVE_VARIANTS.iter().map(|(name, _)| *name).collect();
    let (mut unused_types, mut unused_crates): (BTreeSet<&str>, BTreeSet<_>) = (
        exhaustive_types().collect(),
        UNSTABLE.iter().map(|(library, other, _)| (*library, *other)).collect(),
    );
    let libraries =
        PUBLISHED.into_iter().filter(|(name, _, is_library)| *is_library && !INTERNAL.contains(name));
    for (library, directory, _) in libraries {
        let api = Api::of_sources(&format!("{directory}/src"))?;
        for name in api.exhaustive {
            if !unused_types.remove(name.as_str()) && !exhaustive_types().any(|listed| listed == name) {
                problems.push(format!(
                    "{library}: `{name}` is neither `#[non_exhaustive]` nor listed as exhaustive"
                ));
            }
        }
        for (name, variant) in api.variants {
            unused_enums.remove(name.as_str());
            let is_listed = EXHAUSTIVE_VARIANTS.iter().any(|(listed, _)| *listed == name);
            if !is_listed && !exhaustive_types().any(|listed| listed == name) {
                problems.push(format!(
                    "{library}: the variant `{name}::{variant}` is not `#[non_exhaustive]`, and `{name}` is not listed"
                ));
            }
        }
        for (other, uses) in api.foreign {
            let is_stable =
                versions.get(&other.replace('_', "-")).is_none_or(|version| !version.starts_with("0."));
            let is_listed = UNSTABLE.iter().any(|(user, name, _)| *user == library && *name == other);
            unused_crates.retain(|(user, name)| (*user, *name) != (library, other.as_str()));
            if !is_stable && !is_listed {
                let uses: Vec<_> = uses.into_iter().take(5).collect();
                problems.push(format!(
                    "{library}: public signatures name types of {other}, which is not stable: {}",
                    uses.join(", ")
                ));
            }
        }
    }
    problems
        .extend(unused_types.iter().map(|name| format!("`{name}` is listed as exhaustive, but it is not")));
    problems.extend(
        unused_enums.iter().map(|name| format!("`{name}` is listed, but it has no exhaustive variants")),
    );
    problems.extend(
        unused_crates.iter().map(|(library, other)| format!("{library}: no public signature names {other}")),
    );
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

fn exhaustive_types() -> impl Iterator<Item = &'static str> {
    EXHAUSTIVE.iter().flat_map(|(_, names)| names.iter().copied())
}

/// The versions in `[workspace.dependencies]`, by name.
fn versions(manifest: &str) -> BTreeMap<String, String> {
    let lines = manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    let entries = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once(" = "));
    let version = |value: &str| {
        let start = if value.starts_with('"') { value } else { value.split_once("version = ")?.1 };
        start.split('"').nth(1).map(str::to_owned)
    };
    entries.filter_map(|(name, value)| Some((name.to_owned(), version(value)?))).collect()
}

/// The public API of a crate, as far as the rules need it.
#[derive(Debug, Default)]
struct Api {
    /// The public structs with only public fields, and the public enums, without `#[non_exhaustive]`.
    exhaustive: BTreeSet<String>,
    /// The variants with named fields and without `#[non_exhaustive]`: the enum and the variant.
    variants: BTreeSet<(String, String)>,
    /// The other crates whose types and traits occur in public signatures, each with its uses.
    foreign: BTreeMap<String, BTreeSet<String>>,
}

impl Api {
    fn of_sources(directory: &str) -> Result<Self> {
        let mut api = Self::default();
        let tracked = output(program("git").args(["ls-files", "--cached", directory]))?;
        let sources = tracked.lines().filter(|path| path.ends_with(".rs"));
        let is_test = |path: &&str| path.ends_with("/tests.rs") || path.contains("/tests/");
        let mut files = Vec::new();
        for path in sources.filter(|path| !is_test(path) && !path.contains("/generated/")) {
            files.push((path, parse(&root().join(path))?));
        }
        let public: BTreeSet<String> = files.iter().flat_map(|(_, file)| public_types(&file.items)).collect();
        for (path, file) in &files {
            api.add_items(path, &file.items, &imports(&file.items), &public);
        }
        Ok(api)
    }

    fn add_items(
        &mut self,
        path: &str,
        items: &[Item],
        imports: &BTreeMap<String, String>,
        public: &BTreeSet<String>,
    ) {
        let mut paths = Paths { imports, found: BTreeSet::new() };
        for item in items {
            match item {
                Item::Fn(item) if is_api(&item.vis, &item.attrs) => paths.visit_signature(&item.sig),
                Item::Struct(item) if is_api(&item.vis, &item.attrs) => {
                    paths.visit_generics(&item.generics);
                    let public_fields = item.fields.iter().filter(|field| is_public(&field.vis));
                    public_fields.for_each(|field| paths.visit_type(&field.ty));
                    let is_open = matches!(item.fields, Fields::Named(_))
                        && item.fields.iter().all(|field| is_public(&field.vis));
                    if is_open && !has_attribute(&item.attrs, "non_exhaustive") {
                        self.exhaustive.insert(item.ident.to_string());
                    }
                }
                Item::Enum(item) if is_api(&item.vis, &item.attrs) => {
                    paths.visit_generics(&item.generics);
                    item.variants.iter().for_each(|variant| paths.visit_fields(&variant.fields));
                    let is_open = |variant: &&syn::Variant| {
                        matches!(variant.fields, Fields::Named(_))
                            && !has_attribute(&variant.attrs, "non_exhaustive")
                    };
                    let name = item.ident.to_string();
                    let open = item.variants.iter().filter(is_open);
                    self.variants.extend(open.map(|variant| (name.clone(), variant.ident.to_string())));
                    if !has_attribute(&item.attrs, "non_exhaustive") {
                        self.exhaustive.insert(item.ident.to_string());
                    }
                }
                Item::Type(item) if is_api(&item.vis, &item.attrs) => paths.visit_type(&item.ty),
                Item::Const(item) if is_api(&item.vis, &item.attrs) => paths.visit_type(&item.ty),
                Item::Trait(item) if is_api(&item.vis, &item.attrs) => {
                    paths.visit_generics(&item.generics);
                    item.supertraits.iter().for_each(|bound| paths.visit_type_param_bound(bound));
                    for item in &item.items {
                        match item {
                            TraitItem::Fn(item) => paths.visit_signature(&item.sig),
                            TraitItem::Type(item) => {
                                item.bounds.iter().for_each(|bound| paths.visit_type_param_bound(bound));
                            }
                            _ => {}
                        }
                    }
                }
                Item::Impl(item) if !is_test_only(&item.attrs) => {
                    let is_public_type = self_type(&item.self_ty).is_some_and(|name| public.contains(&name));
                    match &item.trait_ {
                        Some((_, name, _)) if is_public_type => {
                            paths.visit_path(name);
                            for item in &item.items {
                                if let ImplItem::Type(item) = item {
                                    paths.visit_type(&item.ty);
                                }
                            }
                        }
                        Some(_) => {}
                        None if is_public_type => {
                            paths.visit_generics(&item.generics);
                            for item in &item.items {
                                if let ImplItem::Fn(item) = item
                                    && is_api(&item.vis, &item.attrs)
                                {
                                    paths.visit_signature(&item.sig);
                                }
                            }
                        }
                        None => {}
                    }
                }
                Item::Mod(item) if !is_test_only(&item.attrs) => {
                    if let Some((_, items)) = &item.content {
                        let mut imports = imports.clone();
                        imports.extend(self::imports(items));
                        self.add_items(path, items, &imports, public);
                    }
                }
                _ => {}
            }
        }
        for (foreign, name) in paths.found {
            self.foreign.entry(foreign).or_default().insert(format!("{name} ({path})"));
        }
    }
}

fn parse(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))
}

fn public_types(items: &[Item]) -> Vec<String> {
    let mut names = Vec::new();
    for item in items {
        match item {
            Item::Struct(item) if is_api(&item.vis, &item.attrs) => names.push(item.ident.to_string()),
            Item::Enum(item) if is_api(&item.vis, &item.attrs) => names.push(item.ident.to_string()),
            Item::Mod(item) if !is_test_only(&item.attrs) => {
                names.extend(item.content.iter().flat_map(|(_, items)| public_types(items)));
            }
            _ => {}
        }
    }
    names
}

fn self_type(ty: &syn::Type) -> Option<String> {
    match ty {
        syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether an item is part of the API: public, visible in the documentation, and not a test. The lint `unreachable_pub` rejects
/// other public items.
fn is_api(visibility: &Visibility, attributes: &[Attribute]) -> bool {
    is_public(visibility) && !is_test_only(attributes) && !is_hidden(attributes)
}

fn has_attribute(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident(name))
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    has_argument(attributes, "cfg", "test")
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    has_argument(attributes, "doc", "hidden")
}

/// Whether the attributes contain `#[name(argument)]`.
fn has_argument(attributes: &[Attribute], name: &str, argument: &str) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident(name) && list.tokens.to_string() == argument,
        _ => false,
    })
}

/// The crate of each imported name of a module. Names of this workspace and of the standard library are omitted.
fn imports(items: &[Item]) -> BTreeMap<String, String> {
    let mut imports = BTreeMap::new();
    for item in items {
        if let Item::Use(item) = item
            && let UseTree::Path(first) = &item.tree
        {
            add_imports(&first.ident.to_string(), &first.tree, &mut imports);
        }
    }
    imports
}

fn add_imports(foreign: &str, tree: &UseTree, imports: &mut BTreeMap<String, String>) {
    match tree {
        UseTree::Path(path) => add_imports(foreign, &path.tree, imports),
        UseTree::Name(name) => drop(imports.insert(name.ident.to_string(), foreign.to_owned())),
        UseTree::Rename(rename) => drop(imports.insert(rename.rename.to_string(), foreign.to_owned())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| add_imports(foreign, tree, imports)),
        UseTree::Glob(_) => {}
    }
}

/// Collects the paths of other crates in types, bounds and signatures.
struct Paths<'a> {
    imports: &'a BTreeMap<String, String>,
    /// The crate and the name of the type or trait.
    found: BTreeSet<(String, String)>,
}

impl Paths<'_> {
    fn add(&mut self, path: &syn::Path) {
        let (Some(first), Some(last)) = (path.segments.first(), path.segments.last()) else { return };
        let first = first.ident.to_string();
        let foreign = match self.imports.get(&first) {
            Some(foreign) => foreign.clone(),
            None if path.segments.len() > 1 && first.starts_with(|c: char| c.is_ascii_lowercase()) => first,
            None => return,
        };
        let own = ["std", "core", "alloc", "crate", "self", "super"];
        if !own.contains(&foreign.as_str()) && !foreign.starts_with("snakepit") {
            self.found.insert((foreign, last.ident.to_string()));
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path);
        visit::visit_path(self, path);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.visit_generics(&signature.generics);
        signature.inputs.iter().for_each(|input| {
            if let syn::FnArg::Typed(input) = input {
                self.visit_type(&input.ty);
            }
        });
        self.visit_return_type(&signature.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(text: &str) -> Api {
        let file = syn::parse_file(text).unwrap();
        let public = public_types(&file.items).into_iter().collect();
        let mut api = Api::default();
        api.add_items("a.rs", &file.items, &imports(&file.items), &public);
        api
    }

    fn foreign(text: &str) -> Vec<String> {
        let crates = api(text).foreign;
        crates
            .into_iter()
            .flat_map(|(name, uses)| uses.into_iter().map(move |u| format!("{name}: {u}")))
            .collect()
    }

    #[test]
    fn types_of_other_crates_are_found_in_public_signatures() {
        let uses =
            "use std::sync::Arc; use tonic::{Status, transport::Channel as Line}; use snakepit_proto::pb;";
        for (item, expected) in [
            ("pub fn f(line: Line) {}", vec!["tonic: Line (a.rs)"]),
            ("pub fn f() -> Result<Arc<u8>, Status> {}", vec!["tonic: Status (a.rs)"]),
            ("pub struct S { pub a: Option<Status>, b: Line }", vec!["tonic: Status (a.rs)"]),
            ("pub enum E { A(Status) }", vec!["tonic: Status (a.rs)"]),
            (
                "pub struct S(u8); impl S { pub fn f(a: http::Uri) {} fn g(s: Status) {} }",
                vec!["http: Uri (a.rs)"],
            ),
            ("pub struct S(u8); impl From<Status> for S {}", vec!["tonic: Status (a.rs)"]),
            (
                "pub trait T: tower::Service<u8> { fn f(s: Status); }",
                vec!["tonic: Status (a.rs)", "tower: Service (a.rs)"],
            ),
            ("pub mod m { use http::Uri; pub fn f(u: Uri) {} }", vec!["http: Uri (a.rs)"]),
            ("pub fn f<F: Fn(Line)>(f: F) {}", vec!["tonic: Line (a.rs)"]),
            ("fn f(line: Line) {}", vec![]),
            ("pub(crate) fn f(line: Line) {}", vec![]),
            ("struct S; impl S { pub fn f(s: Status) {} } impl From<Status> for S {}", vec![]),
            ("#[doc(hidden)] pub fn f(s: Status) {}", vec![]),
            ("#[cfg(test)] mod tests { pub fn f(s: super::Status) {} }", vec![]),
            ("pub fn f(p: pb::Ping) -> std::io::Result<()> {}", vec![]),
        ] {
            assert_eq!(foreign(&format!("{uses} {item}")), expected, "{item}");
        }
    }

    #[test]
    fn growing_types_must_be_marked() {
        let text = "pub struct Open { pub a: u8 } #[non_exhaustive] pub struct Marked { pub a: u8 }
            pub struct Closed { pub a: u8, b: u8 } pub struct Tuple(pub u8); pub enum Kind { A }
            #[non_exhaustive] pub enum Growing { A } struct Private { a: u8 }";
        assert_eq!(api(text).exhaustive.into_iter().collect::<Vec<_>>(), ["Kind", "Open"]);
    }

    #[test]
    fn variants_with_named_fields_must_be_marked() {
        let text = "#[non_exhaustive] pub enum E { A { x: u8 }, #[non_exhaustive] B { x: u8 }, C(u8), D }
            enum Private { A { x: u8 } } #[doc(hidden)] pub enum Hidden { A { x: u8 } }";
        assert_eq!(api(text).variants.into_iter().collect::<Vec<_>>(), [("E".to_owned(), "A".to_owned())]);
    }

    #[test]
    fn versions_are_read_from_the_manifest() {
        let manifest = "[a]\nx = \"9\"\n[workspace.dependencies]\nbytes = { version = \"1\", features = [] }\n\
                        tower = \"0.5\"\nown = { path = \"p\" }\n[b]\ny = \"2\"\n";
        let versions = versions(manifest);
        assert_eq!(versions.get("bytes").map(String::as_str), Some("1"));
        assert_eq!(versions.get("tower").map(String::as_str), Some("0.5"));
        assert_eq!(versions.len(), 2);
    }
}
