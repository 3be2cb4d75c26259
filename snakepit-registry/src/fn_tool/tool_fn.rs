//! [`ToolFn`]: closures and functions that can be host tools.

use std::future::{self, Future};

use futures_core::Stream;
use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{
    HostState, ReplyFuture, Requirements,
    extract::{CallScope, Extractor},
    reply, stream_reply,
};
use crate::{IntoAnswer, ToolCall, ToolError, arguments::from_arguments};

/// A closure or function that can be a host tool. Implemented for all functions with up to eight arguments, each of which is one
/// of these:
///
/// | argument | value |
/// | --- | --- |
/// | any `T: DeserializeOwned + JsonSchema`, or [`Args<T>`](super::Args) | the arguments of the call as one value, such as a struct or a map |
/// | [`Arguments`](crate::Arguments) | the arguments of the call as payloads, of any names |
/// | [`ToolContext`](super::ToolContext) | the id, session, metadata and deadline of the call |
/// | [`State<S>`](super::State) | a clone of the host's value of the type `S` |
/// | [`Extension<T>`](super::Extension), `Option<Extension<T>>` | a clone of the value that a layer attached to the call |
/// | `Host` of `snakepit-server` | the host, to call other tools |
/// | `SessionHandle`, `Option<SessionHandle>` of `snakepit-server` | the session of the call |
/// | other types | implement [`Extractor`] |
///
/// The function returns a future of an [`IntoAnswer`], or a stream of them. A stream makes the tool a streaming one. Items with a
/// buffer are errors. An error ends the stream.
///
/// Annotate the types of a closure's arguments, because the compiler cannot infer them.
///
/// `M` distinguishes the implementations. The compiler infers it.
#[diagnostic::on_unimplemented(
    message = "this function cannot be a host tool",
    label = "not a host tool",
    note = "it takes up to 8 annotated arguments: the tool's arguments (`T: DeserializeOwned + JsonSchema`), and extractors",
    note = "it returns a future of an answer, or a stream of answers: `Json(value)`, or `Result<T, E>` with `T: Serialize` and \
            `E: Display`; numbers, strings, collections, `()` and `Payload` need no wrapper",
    note = "`FnTool::typed` takes argument types without a JSON Schema"
)]
pub trait ToolFn<M>: Send + Sync + 'static {
    /// Whether the function returns a stream.
    #[doc(hidden)]
    const STREAMS: bool;

    /// The requirements of the function's arguments.
    #[doc(hidden)]
    fn requirements() -> Requirements;

    /// Runs a call.
    #[doc(hidden)]
    fn run(&self, call: ToolCall, state: &HostState) -> ReplyFuture;
}

/// Marks an argument that is deserialized from the arguments of the call.
#[derive(Debug)]
pub struct ViaArguments;

/// Marks an argument that is an [`Extractor`].
#[derive(Debug)]
pub struct ViaExtractor;

/// Marks a function that returns a future.
#[derive(Debug)]
pub struct Unary;

/// Marks a function that returns a stream.
#[derive(Debug)]
pub struct Streaming;

/// An argument of a [`ToolFn`].
#[diagnostic::on_unimplemented(
    message = "a host tool cannot take an argument of the type `{Self}`",
    note = "derive `serde::Deserialize` and `schemars::JsonSchema` for the tool's arguments, or implement `Extractor`"
)]
pub trait FromCall<M>: Sized + Send {
    fn declare(requirements: &mut Requirements);
    fn from_call(scope: &CallScope<'_>) -> Result<Self, ToolError>;
}

impl<T: DeserializeOwned + JsonSchema + Send> FromCall<ViaArguments> for T {
    fn declare(requirements: &mut Requirements) {
        requirements.arguments::<T>();
    }

    fn from_call(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        from_arguments(&scope.call().tool, &scope.call().arguments)
    }
}

impl<T: Extractor> FromCall<ViaExtractor> for T {
    fn declare(requirements: &mut Requirements) {
        T::declare(requirements);
    }

    fn from_call(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        T::extract(scope)
    }
}

/// The arguments of a [`ToolFn`], as a tuple. `M` is the tuple of their markers.
trait ArgumentTuple<M>: Sized {
    fn requirements() -> Requirements;
    fn from_call(call: &ToolCall, state: &HostState) -> Result<Self, ToolError>;
}

/// Implements [`ToolFn`] for functions with these arguments.
macro_rules! impl_tool_fn {
    ($($marker:ident $argument:ident),*) => {
        #[allow(unused_mut, unused_variables, reason = "functions without arguments")]
        impl<$($marker, $argument: FromCall<$marker>,)*> ArgumentTuple<($($marker,)*)> for ($($argument,)*) {
            fn requirements() -> Requirements {
                let mut requirements = Requirements::of_function();
                $($argument::declare(&mut requirements);)*
                requirements
            }

            fn from_call(call: &ToolCall, state: &HostState) -> Result<Self, ToolError> {
                let scope = CallScope::new(call, state);
                Ok(($($argument::from_call(&scope)?,)*))
            }
        }

        #[allow(non_snake_case, reason = "generated names")]
        impl<F, Fut, R, $($marker, $argument,)*> ToolFn<(Unary, $(($marker, $argument),)*)> for F
        where
            F: Fn($($argument),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = R> + Send + 'static,
            R: IntoAnswer + 'static,
            $($argument: FromCall<$marker>,)*
        {
            const STREAMS: bool = false;

            fn requirements() -> Requirements {
                <($($argument,)*) as ArgumentTuple<($($marker,)*)>>::requirements()
            }

            fn run(&self, call: ToolCall, state: &HostState) -> ReplyFuture {
                match ArgumentTuple::<($($marker,)*)>::from_call(&call, state) {
                    Ok(($($argument,)*)) => reply(call.tool, call.mode, self($($argument),*)),
                    Err(error) => future::ready(Err(error)).boxed(),
                }
            }
        }

        #[allow(non_snake_case, reason = "generated names")]
        impl<F, S, R, $($marker, $argument,)*> ToolFn<(Streaming, $(($marker, $argument),)*)> for F
        where
            F: Fn($($argument),*) -> S + Send + Sync + 'static,
            S: Stream<Item = R> + Send + 'static,
            R: IntoAnswer + 'static,
            $($argument: FromCall<$marker>,)*
        {
            const STREAMS: bool = true;

            fn requirements() -> Requirements {
                <($($argument,)*) as ArgumentTuple<($($marker,)*)>>::requirements()
            }

            fn run(&self, call: ToolCall, state: &HostState) -> ReplyFuture {
                let arguments = ArgumentTuple::<($($marker,)*)>::from_call(&call, state);
                let items = arguments.map(|($($argument,)*)| self($($argument),*));
                future::ready(items.map(|items| stream_reply(call.tool, items))).boxed()
            }
        }
    };
}

impl_tool_fn!();
impl_tool_fn!(M1 A1);
impl_tool_fn!(M1 A1, M2 A2);
impl_tool_fn!(M1 A1, M2 A2, M3 A3);
impl_tool_fn!(M1 A1, M2 A2, M3 A3, M4 A4);
impl_tool_fn!(M1 A1, M2 A2, M3 A3, M4 A4, M5 A5);
impl_tool_fn!(M1 A1, M2 A2, M3 A3, M4 A4, M5 A5, M6 A6);
impl_tool_fn!(M1 A1, M2 A2, M3 A3, M4 A4, M5 A5, M6 A6, M7 A7);
impl_tool_fn!(M1 A1, M2 A2, M3 A3, M4 A4, M5 A5, M6 A6, M7 A7, M8 A8);
