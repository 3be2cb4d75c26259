//! Converts the return values of host tools to payloads, and their errors to failures.

use std::{
    any::{Any, type_name},
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use snakepit_session::Payload;

use crate::{HostError, ToolFailure};

/// A value that the closure of a host tool may return.
///
/// | type | answer |
/// | --- | --- |
/// | `Result<T, E>`, `T: Serialize`, `E: Display` | `T`, or an exception with the message of `E` and the name of its type. A [`HostError`] chooses the exception's class, code and data |
/// | [`Json<T>`], `T: Serialize` | `T`, for structs and enums without a `Result` |
/// | numbers, `bool`, `char`, strings, `()`, `serde_json::Value` | the value |
/// | `Option<T>`, `Vec<T>`, arrays, maps, sets, tuples, `Arc<T>` of `T: Serialize` | the value |
/// | [`Payload`], `Option<Payload>`, and a `Result` of them | the payload, including a buffer; `None` is null |
///
/// Implement the trait for your own types, or wrap them in [`Json`]. The compiler suggests the wrapper:
///
/// ```compile_fail,E0277
/// # use snakepit_registry::FnTool;
/// #[derive(serde::Serialize)]
/// struct Area {
///     area: f64,
/// }
/// FnTool::typed("area", |(): ()| async { Area { area: 1.0 } }); // return `Json(value)`, or `Result<T, E>`
/// ```
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use snakepit_registry::{FnTool, Json};
///
/// #[derive(Deserialize)]
/// struct Circle {
///     radius: f64,
/// }
///
/// #[derive(Serialize)]
/// struct Area {
///     area: f64,
/// }
///
/// // A value that cannot fail:
/// FnTool::typed("diameter", |c: Circle| async move { c.radius * 2.0 });
/// // A struct:
/// FnTool::typed("area", |c: Circle| async move { Json(Area { area: c.radius * c.radius * 3.14 }) });
/// // A tool that can fail:
/// FnTool::typed("root", |c: Circle| async move {
///     if c.radius < 0.0 { Err("the radius is negative") } else { Ok(Area { area: c.radius.sqrt() }) }
/// });
/// ```
#[diagnostic::on_unimplemented(
    message = "a host tool cannot return `{Self}`",
    label = "not an answer of a host tool",
    note = "return `Json(value)`, or `Result<T, E>` with `T: Serialize` and `E: Display`",
    note = "numbers, strings, collections, `()`, `serde_json::Value` and `Payload` need no wrapper"
)]
pub trait IntoAnswer {
    /// Converts the value to a payload.
    ///
    /// # Errors
    /// The failure that the caller receives. The host fills in [`ToolFailure::tool`].
    fn into_answer(self) -> Result<Payload, Box<ToolFailure>>;
}

/// A wrapper that makes any [`Serialize`] value an [answer](IntoAnswer) of a host tool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(
    /// The value.
    pub T,
);

impl<T: Serialize + 'static, E: fmt::Display + 'static> IntoAnswer for Result<T, E> {
    fn into_answer(self) -> Result<Payload, Box<ToolFailure>> {
        self.map_err(failure).and_then(serialize)
    }
}

impl IntoAnswer for Payload {
    fn into_answer(self) -> Result<Self, Box<ToolFailure>> {
        Ok(self)
    }
}

impl<T: Serialize + 'static> IntoAnswer for Json<T> {
    fn into_answer(self) -> Result<Payload, Box<ToolFailure>> {
        serialize(self.0)
    }
}

/// Implements [`IntoAnswer`] for types through serde. `Result` is excluded, because its error would become an answer.
macro_rules! impl_into_answer {
    ($([$($parameters:tt)*] $type:ty,)+) => {$(
        impl<$($parameters)*> IntoAnswer for $type {
            fn into_answer(self) -> Result<Payload, Box<ToolFailure>> {
                serialize(self)
            }
        }
    )+};
}

impl_into_answer! {
    [] bool,
    [] char,
    [] i8,
    [] i16,
    [] i32,
    [] i64,
    [] i128,
    [] isize,
    [] u8,
    [] u16,
    [] u32,
    [] u64,
    [] u128,
    [] usize,
    [] f32,
    [] f64,
    [] (),
    [] String,
    [] &'static str,
    [] Cow<'static, str>,
    [] Duration,
    [] serde_json::Value,
    [] serde_json::Map<String, serde_json::Value>,
    [T: Serialize + 'static] Option<T>,
    [T: Serialize + 'static] Vec<T>,
    [T: Serialize + 'static] VecDeque<T>,
    [T: Serialize + 'static] &'static [T],
    [T: Serialize + 'static] BTreeSet<T>,
    [T: Serialize + 'static, S: 'static] HashSet<T, S>,
    [K: Serialize + 'static, V: Serialize + 'static] BTreeMap<K, V>,
    [K: Serialize + 'static, V: Serialize + 'static, S: 'static] HashMap<K, V, S>,
    [A: Serialize + 'static] (A,),
    [A: Serialize + 'static, B: Serialize + 'static] (A, B),
    [A: Serialize + 'static, B: Serialize + 'static, C: Serialize + 'static] (A, B, C),
    [A: Serialize + 'static, B: Serialize + 'static, C: Serialize + 'static, D: Serialize + 'static] (A, B, C, D),
}

impl<T: 'static, const N: usize> IntoAnswer for [T; N]
where
    [T; N]: Serialize,
{
    fn into_answer(self) -> Result<Payload, Box<ToolFailure>> {
        serialize(self)
    }
}

/// A shared answer, such as a cached one.
impl<T: Serialize + 'static> IntoAnswer for Arc<T> {
    fn into_answer(self) -> Result<Payload, Box<ToolFailure>> {
        serialize_shared(&*self)
    }
}

fn serialize<T: Serialize + 'static>(value: T) -> Result<Payload, Box<ToolFailure>> {
    serialize_shared(&value)
}

fn serialize_shared<T: Serialize + 'static>(value: &T) -> Result<Payload, Box<ToolFailure>> {
    // Serializing a payload would produce its storage format, but callers receive the payload itself.
    let any = value as &dyn Any;
    if let Some(payload) = any.downcast_ref::<Payload>() {
        return Ok(payload.clone());
    }
    if let Some(payload) = any.downcast_ref::<Option<Payload>>() {
        return Ok(payload.clone().unwrap_or_else(Payload::null));
    }
    Payload::try_from_serde(value).map_err(failure)
}

fn failure<E: fmt::Display + 'static>(error: E) -> Box<ToolFailure> {
    let mut error = Some(error);
    // A downcast of a reference cannot move the error, but `Option::take` can.
    if let Some(host_error) =
        (&mut error as &mut dyn Any).downcast_mut::<Option<HostError>>().and_then(Option::take)
    {
        return host_error.into_failure();
    }
    let message = error.map(|error| error.to_string()).unwrap_or_default();
    Box::new(ToolFailure { error_type: short_type_name::<E>().to_owned(), message, ..ToolFailure::default() })
}

/// Returns the name of a type without its modules, or a generic name for strings, which are not error types.
pub(crate) fn short_type_name<E>() -> &'static str {
    let name = type_name::<E>();
    match name.split('<').next().and_then(|name| name.rsplit("::").next()) {
        Some("String" | "&str") | None => "HostToolError",
        Some(short) => short,
    }
}
