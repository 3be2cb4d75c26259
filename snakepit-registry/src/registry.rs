//! The registry of tools. It resolves names, checks calls and runs them with the tool's handler.

mod deferred;
mod fallback;
#[cfg(all(test, loom))]
mod models;
mod remote;
#[cfg(test)]
mod testing;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use deferred::DeferredAnnouncement;
use fallback::Fallback;
pub use remote::Announcer;

use crate::{
    CallMode, FnTool, HostToolStatus, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec,
    check::{self, MAX_NAME_BYTES},
    host_handler::HostHandler,
    meter::Meter,
    spec::IDEMPOTENT_KEY,
    sync::{AtomicU64, Mutex, RwLock},
};

/// The provider of host tools.
const HOST_PROVIDER: &str = "host";

/// The outcome of registering a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registration {
    /// The name was new.
    New,
    /// The same spec was registered already.
    Unchanged,
    /// The spec replaced another one.
    Replaced,
}

/// The error of a registration. The registry is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The name belongs to another provider.
    #[error("tool name `{name}` is taken by {owner}; rename one of the two")]
    #[non_exhaustive]
    NameTaken {
        /// The name.
        name: String,
        /// `host`, or the name of a pool.
        owner: String,
    },
    /// The name is invalid.
    #[error("invalid tool name `{name}`: {problem}")]
    #[non_exhaustive]
    InvalidName {
        /// The name, shortened if it is too long.
        name: String,
        /// The problem.
        problem: String,
    },
    /// The closure of a host tool cannot serve calls of this host.
    #[error("host tool `{name}` {problem}")]
    #[non_exhaustive]
    InvalidHostTool {
        /// The name.
        name: String,
        /// The problem, as the end of a sentence: "takes `i64`, which is an integer; ...".
        problem: String,
    },
    /// A live worker serves the name with another spec. Workers of the original Snakepit search the message for
    /// `duplicate_tool`, and then continue.
    #[error(
        "duplicate_tool: tool `{name}` is served by worker `{worker}` with another description: {change}; other workers \
         can redefine it after all workers with that description have exited"
    )]
    #[non_exhaustive]
    DuplicateTool {
        /// The name.
        name: String,
        /// The worker that serves it.
        worker: String,
        /// The first difference of the new description, as a clause: "the parameter `b` is new".
        change: String,
    },
    /// The provider would have too many tools.
    #[error(
        "pool `{provider}` announced more than {limit} tools; register fewer, or combine several into one tool with an argument that selects"
    )]
    #[non_exhaustive]
    TooManyTools {
        /// The name of the pool.
        provider: String,
        /// The maximum number of tools per provider.
        limit: usize,
    },
    /// The spec of a tool is too large.
    #[error(
        "the description of tool `{name}` takes {size} bytes, the limit is {limit}; shorten its docstring, defaults and metadata"
    )]
    #[non_exhaustive]
    SpecTooLarge {
        /// The name of the tool.
        name: String,
        /// The size of the spec, in bytes.
        size: usize,
        /// The maximum size of a spec, in bytes.
        limit: usize,
    },
    /// The specs of a provider are too large in total.
    #[error(
        "the descriptions of all tools of pool `{provider}` would take {size} bytes, the limit is {limit}; shorten \
         docstrings, defaults and metadata, or register fewer tools"
    )]
    #[non_exhaustive]
    SpecsTooLarge {
        /// The name of the pool.
        provider: String,
        /// The total size of the specs, in bytes.
        size: usize,
        /// The maximum total size, in bytes.
        limit: usize,
    },
}

/// The future of a call. Dropping it cancels the call.
pub type CallFuture<'a> = Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'a>>;

/// A tool and its handler.
#[derive(Debug)]
pub struct ResolvedTool {
    /// The tool's spec; `None` for a name that was resolved to the fallback.
    pub spec: Option<ToolSpec>,
    /// `host`, or the name of a pool.
    pub provider: String,
    /// The handler of its calls.
    pub handler: Arc<dyn ToolHandler>,
    idempotent: bool,
    /// Whether the parameters only describe the tool, so that calls are not checked against them.
    unchecked: bool,
    /// The counters of a host tool. `None` for other tools.
    meter: Option<Arc<Meter>>,
}

/// All tools of a host.
///
/// ```
/// use std::collections::HashMap;
///
/// use snakepit_registry::{FnTool, Registry, ToolCall, ToolError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::new();
/// registry.register_host_tool(FnTool::typed("double", |args: HashMap<String, i64>| async move { args["n"] * 2 }))?;
///
/// let call = ToolCall::new("double").try_with_argument("n", &21)?;
/// registry.call_host_tool(call).await?;
///
/// let unknown = registry.call_host_tool(ToolCall::new("dubble")).await.unwrap_err();
/// assert!(matches!(unknown, ToolError::NotFound { .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Registry {
    tools: RwLock<BTreeMap<Arc<str>, Arc<ResolvedTool>>>,
    /// The workers that announced each tool. Locked after `tools`.
    announcers: Mutex<HashMap<Arc<str>, Vec<Announcer>>>,
    fallback: RwLock<Option<Fallback>>,
    revision: AtomicU64,
    /// Announcements that wait until the workers with other specs have ended. Locked before `tools`.
    deferred: Mutex<Vec<DeferredAnnouncement>>,
    /// The number of deferred announcements. While it is 0, readers do not take the lock.
    deferred_count: AtomicU64,
    /// The workers to replace by the restart of each provider. Their tools are those of the provider until the restart ends. Locked
    /// last.
    restarting: Mutex<HashMap<String, Vec<Announcer>>>,
    /// Whether any host tool is hidden. Host tools are never removed.
    has_hidden: AtomicBool,
}

impl Registry {
    /// Creates an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host tool. Workers can call it too, unless it is [hidden](FnTool::exposed).
    ///
    /// # Errors
    /// [`RegistryError::InvalidName`], [`RegistryError::NameTaken`], or [`RegistryError::InvalidHostTool`] if its closure takes
    /// arguments that the host cannot provide.
    pub fn register_host_tool(&self, tool: FnTool) -> Result<(), RegistryError> {
        let spec = tool.spec().clone();
        tool.check()
            .map_err(|problem| RegistryError::InvalidHostTool { name: spec.name.clone(), problem })?;
        let meter = Arc::default();
        self.insert_host_tool(spec, Arc::new(tool.with_meter(Arc::clone(&meter))), meter)
    }

    /// Adds a host tool with any handler. Workers can call it too, unless it is [hidden](ToolSpec::exposed). A panic of the
    /// handler fails only its call.
    ///
    /// # Errors
    /// [`RegistryError::InvalidName`], or [`RegistryError::NameTaken`].
    pub fn register_host_handler(
        &self,
        spec: ToolSpec,
        handler: Arc<dyn ToolHandler>,
    ) -> Result<(), RegistryError> {
        let meter = Arc::default();
        self.insert_host_tool(spec, Arc::new(HostHandler { handler, meter: Arc::clone(&meter) }), meter)
    }

    fn insert_host_tool(
        &self,
        spec: ToolSpec,
        handler: Arc<dyn ToolHandler>,
        meter: Arc<Meter>,
    ) -> Result<(), RegistryError> {
        check_name(&spec.name)?;
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(existing) = tools.get(spec.name.as_str()) {
            return Err(RegistryError::NameTaken { name: spec.name, owner: existing.provider.clone() });
        }
        let name = Arc::from(spec.name.as_str());
        if !spec.is_exposed() {
            self.has_hidden.store(true, Ordering::Relaxed);
        }
        let mut tool = ResolvedTool::new(Some(spec), HOST_PROVIDER, handler);
        tool.meter = Some(meter);
        tools.insert(name, Arc::new(tool));
        self.increment_revision();
        Ok(())
    }

    /// Finds the tool with this name, or the fallback.
    ///
    /// # Errors
    /// [`ToolError::NotFound`], with the most similar name, if any is similar. [`ToolError::InvalidArguments`] for a name that is
    /// longer than [`MAX_NAME_BYTES`].
    pub fn resolve(&self, tool: &str) -> Result<Arc<ResolvedTool>, ToolError> {
        self.resolve_where(tool, |_| true)
    }

    /// Like [`resolve`](Self::resolve), for a worker: ignores [hidden](ToolSpec::exposed) host tools.
    ///
    /// # Errors
    /// As for `resolve`.
    pub fn resolve_exposed(&self, tool: &str) -> Result<Arc<ResolvedTool>, ToolError> {
        self.resolve_where(tool, ResolvedTool::is_exposed)
    }

    fn resolve_where(
        &self,
        tool: &str,
        is_visible: impl Fn(&ResolvedTool) -> bool,
    ) -> Result<Arc<ResolvedTool>, ToolError> {
        check::tool_name(tool)?;
        self.apply_deferred();
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(registered) = tools.get(tool).filter(|tool| is_visible(tool)) {
            return Ok(Arc::clone(registered));
        }
        if let Some(fallback) = &*self.fallback.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(&fallback.tool));
        }
        let names = tools.iter().filter(|(_, tool)| is_visible(tool)).map(|(name, _)| name.as_ref());
        Err(not_found(tool, names))
    }

    /// Whether this is the name of a host tool that is [hidden](ToolSpec::exposed) from workers.
    #[must_use]
    pub fn is_hidden(&self, tool: &str) -> bool {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        tools.get(tool).is_some_and(|tool| !tool.is_exposed())
    }

    /// Whether any host tool is [hidden](ToolSpec::exposed) from workers.
    #[must_use]
    pub fn has_hidden_tools(&self) -> bool {
        self.has_hidden.load(Ordering::Relaxed)
    }

    /// Whether any worker has announced tools.
    #[must_use]
    pub fn has_worker_tools(&self) -> bool {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        tools.values().any(|tool| tool.provider != HOST_PROVIDER)
    }

    /// Resolves a call to a host tool, checks its arguments and runs it. Serves the calls that workers make.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] unless an exposed host tool has this name, [`ToolError::InvalidArguments`],
    /// [`ToolError::Unsupported`], and all errors of the tool.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn call_host_tool(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.resolve_host_tool(&call.tool)?.begin(call)?.await
    }

    /// Resolves the name of a host tool that workers may call.
    ///
    /// # Errors
    /// [`ToolError::NotFound`] unless an [exposed](ToolSpec::exposed) host tool has this name, and
    /// [`ToolError::InvalidArguments`] if the name is not valid.
    pub fn resolve_host_tool(&self, name: &str) -> Result<Arc<ResolvedTool>, ToolError> {
        check::tool_name(name)?;
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        let is_host_tool = |tool: &&Arc<ResolvedTool>| tool.is_host_tool() && tool.is_exposed();
        tools.get(name).filter(is_host_tool).cloned().ok_or_else(|| {
            let names = tools.iter().filter(|(_, tool)| is_host_tool(tool)).map(|(name, _)| name.as_ref());
            not_found(name, names)
        })
    }

    /// The specs of the [exposed](ToolSpec::exposed) host tools, ordered by name.
    #[must_use]
    pub fn host_tools(&self) -> Vec<ToolSpec> {
        let host_tools = self.exposed_tools().into_iter().filter(|(_, provider)| provider == HOST_PROVIDER);
        host_tools.map(|(spec, _)| spec).collect()
    }

    /// The specs of all tools that workers may see, ordered by name, each with its provider: those of
    /// [`tools`](Self::tools), without hidden host tools.
    #[must_use]
    pub fn exposed_tools(&self) -> Vec<(ToolSpec, String)> {
        self.tools_where(ResolvedTool::is_exposed)
    }

    /// The calls of each host tool, ordered by name.
    #[must_use]
    pub fn host_tool_status(&self) -> Vec<HostToolStatus> {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        let measured = tools.iter().filter_map(|(name, tool)| Some((name, tool, tool.meter.as_ref()?)));
        measured.map(|(name, tool, meter)| meter.status(name, tool.is_exposed())).collect()
    }

    /// The specs of all tools, ordered by name, each with its provider: `host`, or the name of a pool.
    #[must_use]
    pub fn tools(&self) -> Vec<(ToolSpec, String)> {
        self.tools_where(|_| true)
    }

    fn tools_where(&self, is_visible: impl Fn(&ResolvedTool) -> bool) -> Vec<(ToolSpec, String)> {
        self.apply_deferred();
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        let visible = tools.values().filter(|tool| is_visible(tool));
        visible.filter_map(|tool| Some((tool.spec.clone()?, tool.provider.clone()))).collect()
    }

    /// A number that changes whenever the result of [`tools`](Self::tools) changes. It may also change otherwise, for
    /// example when the replacement of a worker registers the same tools.
    ///
    /// To cache the result of `tools`, read the revision first. A concurrent change then invalidates the cache.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.apply_deferred();
        self.revision.load(Ordering::Acquire)
    }

    /// Increments the revision. The caller holds the lock of `tools`.
    fn increment_revision(&self) {
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// The number of registered tools.
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
            .is_some_and(|spec| spec.metadata.get(IDEMPOTENT_KEY).is_some_and(|flag| flag == "true"));
        let unchecked = spec.as_ref().is_some_and(|spec| !spec.is_checked());
        Self { spec, provider: provider.to_owned(), handler, idempotent, unchecked, meter: None }
    }

    /// Whether workers may see the tool. Only host tools can be [hidden](ToolSpec::exposed).
    fn is_exposed(&self) -> bool {
        !self.is_host_tool() || self.spec.as_ref().is_none_or(ToolSpec::is_exposed)
    }

    /// Whether the tool is a host tool, not a tool of a pool.
    #[must_use]
    pub fn is_host_tool(&self) -> bool {
        self.provider == HOST_PROVIDER
    }

    /// Whether the handler [enforces deadlines](ToolHandler::enforces_deadlines).
    #[must_use]
    pub fn enforces_deadlines(&self) -> bool {
        self.handler.enforces_deadlines()
    }

    /// Checks a call and passes it to the handler. Returns the handler's future without wrapping it, because a wrapper
    /// would reserve space for the call a second time.
    ///
    /// # Errors
    /// [`ToolError::InvalidArguments`], or [`ToolError::Unsupported`] for a unary call to a host tool that streams.
    pub fn begin(&self, mut call: ToolCall) -> Result<CallFuture<'_>, ToolError> {
        check::names(&call)?;
        if let Some(spec) = &self.spec {
            if !self.unchecked {
                check::arguments(spec, &call.arguments)?;
            }
            if call.mode == CallMode::Unary && spec.supports_streaming && self.provider == HOST_PROVIDER {
                return Err(ToolError::Unsupported {
                    tool: spec.name.clone(),
                    problem: "streams its results; make a streaming call".to_owned(),
                    may_have_run: false,
                });
            }
        }
        call.idempotent |= self.idempotent && !call.is_at_most_once();
        Ok(self.handler.call(call))
    }
}

fn not_found<'a>(tool: &str, names: impl Iterator<Item = &'a str>) -> ToolError {
    ToolError::NotFound { tool: check::truncated(tool), suggestion: check::nearest(tool, names) }
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    let problem = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("it has {} bytes, the limit is {MAX_NAME_BYTES}", name.len())
    } else if name.chars().any(char::is_control) {
        "it contains control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(RegistryError::InvalidName { name: check::truncated(name), problem })
}
