//! Who serves which name, and the one place where a call is resolved, checked and handed on.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{CallMode, FnTool, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec, check};

/// The provider of tools that run in the host.
const HOST: &str = "host";
/// Metadata key by which a worker says that running its tool twice does no harm.
const IDEMPOTENT: &str = "snakepit.idempotent";
/// The longest tool name accepted, in bytes of UTF-8.
const MAX_NAME_BYTES: usize = 256;
/// The most tools that one provider may announce: workers may say anything at any time, and names are never forgotten.
const MAX_REMOTE_TOOLS: usize = 10_000;

/// The largest spec that a worker may announce, in bytes of memory.
const MAX_SPEC_BYTES: usize = 64 * 1024;
/// What all specs that one provider announced may take together, in bytes of memory. Every listing of tools carries them
/// all, and must fit into a message that any client accepts.
const MAX_PROVIDER_BYTES: usize = 2 * 1024 * 1024;

/// What became of a spec that was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// The name was new.
    New,
    /// The same spec was there already.
    Unchanged,
    /// Another spec was there and is replaced.
    Replaced,
}

/// Why tools could not be registered. None of them were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The name is taken by somebody else.
    #[error("tool name `{name}` is taken by {owner}; rename one of the two")]
    NameTaken {
        /// The name.
        name: String,
        /// `host`, or the name of a pool.
        owner: String,
    },
    /// The text cannot be the name of a tool.
    #[error("invalid tool name `{name}`: {problem}")]
    InvalidName {
        /// The text.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The provider would have more tools than it may.
    #[error(
        "pool `{provider}` announced more than {limit} tools; register fewer, or dispatch on an argument"
    )]
    TooManyTools {
        /// The name of the pool.
        provider: String,
        /// The most tools a provider may have.
        limit: usize,
    },
    /// A tool says too much about itself.
    #[error(
        "the description of tool `{name}` takes {size} bytes, the limit is {limit}; shorten its docstring, defaults and metadata"
    )]
    SpecTooLarge {
        /// The name of the tool.
        name: String,
        /// What its spec takes, in bytes.
        size: usize,
        /// The most it may take.
        limit: usize,
    },
    /// The tools of a provider say too much about themselves, taken together.
    #[error(
        "the descriptions of all tools of pool `{provider}` would take {size} bytes, the limit is {limit}; shorten \
         docstrings, defaults and metadata, or register fewer tools"
    )]
    SpecsTooLarge {
        /// The name of the pool.
        provider: String,
        /// What all specs would take, in bytes.
        size: usize,
        /// The most they may take.
        limit: usize,
    },
}

/// A call that a handler runs. Dropping it cancels the call.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'a>>;

/// A name with what serves it.
#[derive(Debug)]
pub struct ResolvedTool {
    /// What the tool says about itself; `None` for a name that only the fallback may know.
    pub spec: Option<ToolSpec>,
    /// `host`, or the name of a pool.
    pub provider: String,
    /// What runs it.
    pub handler: Arc<dyn ToolHandler>,
    idempotent: bool,
}

/// All tools that can be called.
#[derive(Debug, Default)]
pub struct Registry {
    tools: RwLock<BTreeMap<Arc<str>, Arc<ResolvedTool>>>,
    fallback: RwLock<Option<Arc<ResolvedTool>>>,
}

impl Registry {
    /// A registry without tools.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tool of the host; Python can call it too.
    ///
    /// # Errors
    /// When the name is odd or taken.
    pub fn register_host_tool(&self, tool: FnTool) -> Result<(), RegistryError> {
        let spec = tool.spec().clone();
        check_name(&spec.name)?;
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = tools.get(spec.name.as_str()) {
            return Err(RegistryError::NameTaken { name: spec.name, owner: taken.provider.clone() });
        }
        let name = Arc::from(spec.name.as_str());
        tools.insert(name, Arc::new(ResolvedTool::new(Some(spec), HOST, Arc::new(tool))));
        Ok(())
    }

    /// Adds tools that a pool's workers announced, all or none. Every worker announces the same ones, so a name the
    /// pool has already is no error; the newest spec counts.
    ///
    /// # Errors
    /// When a name is odd, or taken by the host or another pool, or when there are too many.
    pub fn register_remote(
        &self,
        provider: &str,
        handler: &Arc<dyn ToolHandler>,
        specs: Vec<ToolSpec>,
    ) -> Result<Vec<Registration>, RegistryError> {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        for spec in &specs {
            check_name(&spec.name)?;
            if let Some(taken) = tools.get(spec.name.as_str()).filter(|tool| tool.provider != provider) {
                return Err(RegistryError::NameTaken {
                    name: spec.name.clone(),
                    owner: taken.provider.clone(),
                });
            }
        }
        // The last spec of a name counts.
        let changed: BTreeMap<&str, &ToolSpec> =
            specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let known = |name: &str| tools.get(name).and_then(|tool| tool.spec.as_ref());
        // Looked at only when something changes: workers that register with every call bring nothing new.
        if changed.iter().any(|(name, spec)| known(name) != Some(*spec)) {
            check_room(provider, &tools, &changed)?;
        }
        let mut register = |spec: ToolSpec| {
            let outcome = match tools.get(spec.name.as_str()) {
                Some(tool) if tool.spec.as_ref() == Some(&spec) => return Registration::Unchanged,
                Some(_) => Registration::Replaced,
                None => Registration::New,
            };
            let name = Arc::from(spec.name.as_str());
            tools.insert(name, Arc::new(ResolvedTool::new(Some(spec), provider, Arc::clone(handler))));
            outcome
        };
        Ok(specs.into_iter().map(&mut register).collect())
    }

    /// Says where names go that nobody registered: to a pool whose workers do not announce their tools ahead of the
    /// first call.
    pub fn set_fallback(&self, provider: &str, handler: Arc<dyn ToolHandler>) {
        let fallback = Arc::new(ResolvedTool::new(None, provider, handler));
        *self.fallback.write().unwrap_or_else(PoisonError::into_inner) = Some(fallback);
    }

    /// Finds what serves a name.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] with the most similar name there is.
    pub fn resolve(&self, tool: &str) -> Result<Arc<ResolvedTool>, ToolError> {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = tools.get(tool) {
            return Ok(Arc::clone(found));
        }
        if let Some(fallback) = &*self.fallback.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(fallback));
        }
        Err(not_found(tool, tools.keys().map(AsRef::as_ref)))
    }

    /// Whether anybody but the host has told what tools it has.
    #[must_use]
    pub fn knows_tools_of_workers(&self) -> bool {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        tools.values().any(|tool| tool.provider != HOST)
    }

    /// Resolves a call of a tool of the host, checks its arguments and runs it: what Python may call.
    ///
    /// # Errors
    /// [`ToolError`], from here or from the tool.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn call_host_tool(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let tool = {
            let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
            let own = |tool: &&Arc<ResolvedTool>| tool.provider == HOST;
            tools.get(&call.tool).filter(own).cloned().ok_or_else(|| {
                let names = tools.iter().filter(|(_, tool)| own(tool)).map(|(name, _)| name.as_ref());
                not_found(&call.tool, names)
            })?
        };
        tool.begin(call)?.await
    }

    /// The tools of the host, ordered by name.
    #[must_use]
    pub fn host_tools(&self) -> Vec<ToolSpec> {
        self.tools().into_iter().filter(|(_, provider)| provider == HOST).map(|(spec, _)| spec).collect()
    }

    /// All registered tools, ordered by name, each with who provides it: `host`, or the name of a pool.
    #[must_use]
    pub fn tools(&self) -> Vec<(ToolSpec, String)> {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        tools.values().filter_map(|tool| Some((tool.spec.clone()?, tool.provider.clone()))).collect()
    }

    /// How many tools are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tools.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no tool is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ResolvedTool {
    fn new(spec: Option<ToolSpec>, provider: &str, handler: Arc<dyn ToolHandler>) -> Self {
        let idempotent = spec
            .as_ref()
            .is_some_and(|spec| spec.metadata.get(IDEMPOTENT).is_some_and(|flag| flag == "true"));
        Self { spec, provider: provider.to_owned(), handler, idempotent }
    }

    /// Whether the host itself runs the tool, and no worker.
    #[must_use]
    pub fn runs_in_host(&self) -> bool {
        self.provider == HOST
    }

    /// Whether its handler [keeps deadlines](ToolHandler::keeps_deadlines).
    #[must_use]
    pub fn keeps_deadlines(&self) -> bool {
        self.handler.keeps_deadlines()
    }

    /// Checks a call and hands it to the handler. What comes back is the handler's own future: another around it would keep
    /// a second place for the call.
    ///
    /// # Errors
    /// [`ToolError`], when the arguments do not fit or the tool cannot be called this way.
    pub fn begin(&self, mut call: ToolCall) -> Result<Running<'_>, ToolError> {
        if let Some(spec) = &self.spec {
            check::arguments(spec, &call.arguments)?;
            if call.mode == CallMode::Unary && spec.supports_streaming && self.provider == HOST {
                return Err(ToolError::Unsupported {
                    tool: spec.name.clone(),
                    problem: "streams; call it for a stream of chunks".to_owned(),
                });
            }
        }
        call.idempotent |= self.idempotent;
        Ok(self.handler.call(call))
    }
}

fn not_found<'a>(tool: &str, names: impl Iterator<Item = &'a str>) -> ToolError {
    ToolError::NotFound { tool: tool.to_owned(), suggestion: check::nearest(tool, names) }
}

/// Whether a provider may announce these specs beside those of its tools that they do not replace.
fn check_room(
    provider: &str,
    tools: &BTreeMap<Arc<str>, Arc<ResolvedTool>>,
    changed: &BTreeMap<&str, &ToolSpec>,
) -> Result<(), RegistryError> {
    let (mut count, mut size) = (changed.len(), 0);
    for (name, spec) in changed {
        let bytes = spec.size();
        if bytes > MAX_SPEC_BYTES {
            let name = (*name).to_owned();
            return Err(RegistryError::SpecTooLarge { name, size: bytes, limit: MAX_SPEC_BYTES });
        }
        size += bytes;
    }
    let kept =
        tools.iter().filter(|(name, tool)| tool.provider == provider && !changed.contains_key(&***name));
    for (_, tool) in kept {
        count += 1;
        size += tool.spec.as_ref().map_or(0, ToolSpec::size);
    }
    let provider = || provider.to_owned();
    if count > MAX_REMOTE_TOOLS {
        return Err(RegistryError::TooManyTools { provider: provider(), limit: MAX_REMOTE_TOOLS });
    }
    if size > MAX_PROVIDER_BYTES {
        return Err(RegistryError::SpecsTooLarge { provider: provider(), size, limit: MAX_PROVIDER_BYTES });
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    let problem = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("it has {} bytes, the limit is {MAX_NAME_BYTES}", name.len())
    } else if name.chars().any(char::is_control) {
        "it holds control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(RegistryError::InvalidName { name: name.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_provider_may_announce_only_so_many_tools() {
        let registry = Registry::new();
        let handler: Arc<dyn ToolHandler> =
            Arc::new(FnTool::typed("host", |_: Value| async { Ok::<_, String>(()) }));
        let specs = |numbers: std::ops::Range<usize>| -> Vec<ToolSpec> {
            numbers.map(|n| ToolSpec { name: format!("tool-{n}"), ..ToolSpec::default() }).collect()
        };
        let full = specs(0..MAX_REMOTE_TOOLS);
        registry.register_remote("pool", &handler, full.clone()).unwrap();
        let refused = registry.register_remote("pool", &handler, specs(0..MAX_REMOTE_TOOLS + 1)).unwrap_err();
        assert_eq!(refused, RegistryError::TooManyTools { provider: "pool".into(), limit: MAX_REMOTE_TOOLS });
        assert_eq!(registry.len(), MAX_REMOTE_TOOLS, "all or none");
        // What is known may be announced again, and others have room of their own.
        registry.register_remote("pool", &handler, full).unwrap();
        registry.register_remote("other", &handler, specs(MAX_REMOTE_TOOLS..MAX_REMOTE_TOOLS + 1)).unwrap();
    }

    #[test]
    fn what_tools_say_about_themselves_is_bounded() {
        let registry = Registry::new();
        let handler: Arc<dyn ToolHandler> =
            Arc::new(FnTool::typed("host", |_: Value| async { Ok::<_, String>(()) }));
        let spec = |name: &str, bytes: usize| ToolSpec::new(name).description("x".repeat(bytes));
        let register = |specs: Vec<ToolSpec>| registry.register_remote("pool", &handler, specs);
        let large = register(vec![spec("a", MAX_SPEC_BYTES)]).unwrap_err();
        assert!(matches!(&large, RegistryError::SpecTooLarge { name, .. } if name == "a"), "{large}");
        let parameter = spec("a", 1).parameter("p", "string", "x".repeat(MAX_SPEC_BYTES));
        assert!(matches!(register(vec![parameter]).unwrap_err(), RegistryError::SpecTooLarge { .. }));
        let specs = |bytes: usize| (0..40).map(|n| spec(&format!("tool-{n}"), bytes)).collect::<Vec<_>>();
        register(specs(50_000)).unwrap();
        let full = register(vec![spec("one", 60_000), spec("two", 60_000)]).unwrap_err();
        assert!(matches!(full, RegistryError::SpecsTooLarge { .. }), "{full}");
        assert_eq!(registry.len(), 40, "all or none");
        // What is replaced does not count.
        register(specs(51_000)).unwrap();
        register(specs(10)).unwrap();
        register(vec![spec("one", 60_000), spec("two", 60_000)]).unwrap();
    }
}
