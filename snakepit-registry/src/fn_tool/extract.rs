//! Extractors: the arguments of a [`ToolFn`](super::ToolFn) that come from the call or from the host.

use std::{any::type_name, fmt};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{derive::DerivedArguments, failure};
use crate::{Arguments, Extensions, ToolCall, ToolError, ToolSpec, arguments::from_arguments, guard::catch};

/// The values that a host shares with its tools, at most one of each type. `Builder::state` of `snakepit-server` adds one.
///
/// ```
/// use std::sync::Arc;
///
/// use snakepit_registry::{FnTool, HostState, ReplyBody, State, ToolCall, ToolHandler};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut state = HostState::default();
/// state.insert("a shared value");
/// let tool = FnTool::new("show", |State(text): State<&'static str>| async move { text }).with_state(Arc::new(state));
/// let ReplyBody::Value(value) = tool.call(ToolCall::new("show")).await?.body else { panic!("a stream") };
/// assert_eq!(value.to_serde::<String>()?, "a shared value");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct HostState(Extensions);

impl HostState {
    /// Stores a value, and replaces a value of the same type.
    pub fn insert<S: Send + Sync + 'static>(&mut self, value: S) {
        self.0.insert(value);
    }

    /// Returns the value of this type.
    #[must_use]
    pub fn get<S: Send + Sync + 'static>(&self) -> Option<&S> {
        self.0.get()
    }
}

impl fmt::Debug for HostState {
    /// Writes the types of the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The input of an [`Extractor`]: a call, and the state of the host.
#[derive(Debug)]
pub struct CallScope<'a> {
    call: &'a ToolCall,
    state: &'a HostState,
}

impl<'a> CallScope<'a> {
    pub(super) const fn new(call: &'a ToolCall, state: &'a HostState) -> Self {
        Self { call, state }
    }

    /// The call, with its arguments.
    #[must_use]
    pub const fn call(&self) -> &'a ToolCall {
        self.call
    }

    /// The host's value of this type.
    #[must_use]
    pub fn state<S: Send + Sync + 'static>(&self) -> Option<&'a S> {
        self.state.get()
    }
}

/// A type that a host tool can take as an argument, besides the arguments of the call.
///
/// ```
/// use snakepit_registry::{CallScope, Extractor, FnTool, ToolCall, ToolError, ToolHandler};
///
/// /// The tenant of the caller, from the metadata of the call.
/// struct Tenant(String);
///
/// impl Extractor for Tenant {
///     fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
///         let call = scope.call();
///         let tenant = call.metadata.get("tenant").cloned();
///         tenant.map(Self).ok_or_else(|| {
///             ToolError::invalid_argument(&*call.tool, "metadata", "lacks the entry `tenant`")
///         })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tool = FnTool::new("whoami", |tenant: Tenant| async move { tenant.0 });
/// assert!(tool.call(ToolCall::new("whoami")).await.is_err());
/// # }
/// ```
pub trait Extractor: Sized + Send + 'static {
    /// Creates the value for one call. The host calls this before it runs the tool. Must not block.
    ///
    /// # Errors
    /// The error of the call, which then does not run.
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError>;

    /// Declares the host state that the extractor needs, so that a host without it fails to start, instead of failing calls
    /// later. The default declares nothing.
    fn declare(requirements: &mut Requirements) {
        let _ = requirements;
    }
}

/// An [`Extractor`] whose value may be absent: `Option<Self>` is an extractor too.
pub trait OptionalExtractor: Extractor {
    /// Creates the value for one call; `None` if the call has none.
    ///
    /// # Errors
    /// As [`Extractor::extract`], except for an absent value.
    fn extract_optional(scope: &CallScope<'_>) -> Result<Option<Self>, ToolError>;
}

impl<E: OptionalExtractor> Extractor for Option<E> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        E::extract_optional(scope)
    }

    fn declare(requirements: &mut Requirements) {
        E::declare(requirements);
    }
}

/// The arguments of a call as one value, such as a struct or a map. An [`Extractor`].
///
/// A bare `T` as the argument of a closure means the same. `Args` allows a pattern: `|Args(order): Args<Order>|`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Args<T>(
    /// The value.
    pub T,
);

impl<T: DeserializeOwned + JsonSchema + Send + 'static> Extractor for Args<T> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        from_arguments(&scope.call.tool, &scope.call.arguments).map(Self)
    }

    fn declare(requirements: &mut Requirements) {
        requirements.arguments::<T>();
    }
}

impl Extractor for Arguments {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        Ok(scope.call.arguments.clone())
    }

    fn declare(requirements: &mut Requirements) {
        requirements.any_arguments();
    }
}

/// A clone of the host's value of the type `S`, which `Builder::state` of `snakepit-server` set. An [`Extractor`]. Wrap a value
/// that is expensive to clone in an `Arc`.
///
/// A host without such a value fails to start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State<S>(
    /// The value.
    pub S,
);

impl<S: Clone + Send + Sync + 'static> Extractor for State<S> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        // A host checks this when it starts, so only a tool that runs outside of a host can lack the value.
        scope.state::<S>().cloned().map(Self).ok_or_else(|| {
            ToolError::internal(format!("tool `{}` runs without {}", scope.call.tool, state_name::<S>()))
        })
    }

    fn declare(requirements: &mut Requirements) {
        requirements.state::<S>();
    }
}

/// A clone of the value of type `T` that a layer attached to the call
/// ([`ToolCall::extensions`](crate::ToolCall::extensions)). An [`Extractor`]. `Option<Extension<T>>` accepts calls without it.
///
/// Layers wrap calls of the program and of clients. A call that a running tool makes, in Python or in the host, does not pass
/// them again and has no extensions. Such a call keeps the session, the principal and the trace context of its caller, which
/// [`ToolContext`](crate::ToolContext) contains. A call without the value fails with the error type `MissingExtension`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extension<T>(
    /// The value.
    pub T,
);

impl<T: Clone + Send + Sync + 'static> Extractor for Extension<T> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        Self::extract_optional(scope)?.ok_or_else(|| {
            let message = format!(
                "the tool takes `Extension<{}>`, which no layer attached to the call. Calls that another tool makes pass no \
                 layers; attach it in a layer of the host, or take an `Option`",
                type_name::<T>()
            );
            failure(&scope.call.tool, "MissingExtension", message)
        })
    }
}

impl<T: Clone + Send + Sync + 'static> OptionalExtractor for Extension<T> {
    fn extract_optional(scope: &CallScope<'_>) -> Result<Option<Self>, ToolError> {
        Ok(scope.call.extensions.get::<T>().cloned().map(Self))
    }
}

/// The name of a host value, and whether a state has it.
type RequiredState = (String, fn(&HostState) -> bool);

/// The host state that a [`ToolFn`](super::ToolFn) needs, and the arguments that it takes.
#[derive(Debug, Default)]
pub struct Requirements {
    /// `None` for a function whose arguments are unknown.
    arguments: Option<DerivedArguments>,
    state: Vec<RequiredState>,
    problem: Option<String>,
}

impl Requirements {
    /// The requirements of a function that takes no arguments.
    pub(super) fn of_function() -> Self {
        Self { arguments: Some(DerivedArguments::none()), ..Self::default() }
    }

    /// Declares that the function needs the host's value of this type.
    pub fn state<S: Send + Sync + 'static>(&mut self) {
        self.state.push((state_name::<S>(), |state| state.get::<S>().is_some()));
    }

    /// Declares that the function takes the arguments of this type.
    pub(super) fn arguments<T: DeserializeOwned + JsonSchema>(&mut self) {
        let derived = catch(DerivedArguments::of::<T>).unwrap_or_else(|message| {
            let name = type_name::<T>();
            Err(format!("takes `{name}`, whose `Deserialize` or `JsonSchema` panicked: {message}"))
        });
        match derived {
            Ok(derived) => self.arguments = self.arguments.take().map(|arguments| arguments.merge(derived)),
            Err(problem) => self.problem = self.problem.take().or(Some(problem)),
        }
    }

    /// Declares that the function takes arguments of any names.
    pub(super) fn any_arguments(&mut self) {
        self.arguments = self.arguments.take().map(DerivedArguments::opened);
    }

    /// Adds the arguments to a spec.
    pub(super) fn describe(&self, spec: &mut ToolSpec) {
        if let Some(arguments) = &self.arguments {
            arguments.describe(spec);
        }
    }

    /// Checks that a tool with these requirements can run with this state.
    ///
    /// # Errors
    /// The problem, as a sentence without a subject.
    pub(super) fn check(&self, state: &HostState) -> Result<(), String> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        match self.state.iter().find(|(_, is_present)| !is_present(state)) {
            Some((name, _)) => Err(format!("needs {name}")),
            None => Ok(()),
        }
    }
}

/// The name of a host value, and how to set it, for messages.
fn state_name<S>() -> String {
    let name = type_name::<S>();
    format!("a `State<{name}>`, which the host does not have; set a value of that type by `Builder::state`")
}
