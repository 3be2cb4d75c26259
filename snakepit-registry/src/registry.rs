//! Who serves which name, and the one place where a call is resolved, checked and handed on.

#[cfg(all(test, loom))]
mod models;
mod remote;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, PoisonError, atomic::Ordering},
};

pub use remote::Announcer;

use crate::{
    CallMode, FnTool, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec,
    check::{self, MAX_NAME_BYTES},
    sync::{AtomicU64, Mutex, RwLock},
};

/// The provider of tools that run in the host.
const HOST: &str = "host";
/// Metadata key by which a worker says that running its tool twice does no harm.
const IDEMPOTENT: &str = "snakepit.idempotent";
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
    /// A worker that lives serves the name, and describes it in another way. Workers of the original look for
    /// `duplicate_tool` in the text, and go on.
    #[error(
        "duplicate_tool: tool `{name}` is served by worker `{worker}` with another description; it is redefined by the first \
         worker that registers it when none with the old description is left"
    )]
    DuplicateTool {
        /// The name.
        name: String,
        /// The worker that serves it.
        worker: String,
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
    /// Which workers announced a name. Locked after `tools`.
    announcers: Mutex<HashMap<Arc<str>, Vec<Announcer>>>,
    fallback: RwLock<Option<Arc<ResolvedTool>>>,
    generation: AtomicU64,
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
        self.changed();
        Ok(())
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
    /// [`ToolError::NotFound`] with a similar name if there is one; [`ToolError::InvalidArgument`] for a text longer than a
    /// name may be.
    pub fn resolve(&self, tool: &str) -> Result<Arc<ResolvedTool>, ToolError> {
        check::tool_name(tool)?;
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
        check::tool_name(&call.tool)?;
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

    /// A number that is another whenever [`tools`](Self::tools) is. It may change when they do not, as when a worker registers
    /// again what its predecessor did. Read it before the tools: what changes in between has another number the next time.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Called with `tools` locked for the change.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
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
        check::names(&call)?;
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
    ToolError::NotFound { tool: check::brief(tool), suggestion: check::nearest(tool, names) }
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
    Err(RegistryError::InvalidName { name: check::brief(name), problem })
}
