//! Converts the return values of host tools to payloads, and their errors to failures.

use std::{
    any::{Any, type_name},
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    error::Error,
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use snakepit_session::{Payload, PayloadError, SessionError, error_chain};

use crate::{HostError, ToolError, ToolFailure};

/// A value that the closure of a host tool may return.
///
/// | type | answer |
/// | --- | --- |
/// | `Result<T, E>`, `T: Serialize`, `E: Display` | `T`, or an exception with the message of `E` and the name of its type. A [`HostError`] chooses the exception's class, code and data |
/// | [`Json<T>`], `T: Serialize` | `T`, for structs and enums without a `Result` |
/// | numbers, `bool`, `char`, strings, `()`, `serde_json::Value` | the value |
/// | `Option<T>`, `Vec<T>`, arrays, maps, sets, tuples, `Arc<T>` of `T: Serialize` | the value |
/// | [`Payload`], `Option<Payload>`, and a `Result` of them | the payload, including a buffer; `None` is null |
/// | a value that contains a [`Payload`] or bytes, such as a `Vec<Payload>` | the value, including all buffers |
///
/// NaN and infinities arrive as numbers. An answer that is nested deeper than 127 levels is an error.
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

/// Returns the message of an error. For the error types of this project, includes the sources, because their messages omit them.
/// Other types are only known to implement `Display`.
fn message_of<E: fmt::Display + 'static>(error: &E) -> String {
    let any = error as &dyn Any;
    let payload = any.downcast_ref::<PayloadError>().map(|error| error as &(dyn Error + 'static));
    let session = || any.downcast_ref::<SessionError>().map(|error| error as _);
    let tool = || any.downcast_ref::<ToolError>().map(|error| error as _);
    match payload.or_else(session).or_else(tool) {
        Some(error) => error_chain(error).to_string(),
        None => error.to_string(),
    }
}

fn failure<E: fmt::Display + 'static>(error: E) -> Box<ToolFailure> {
    let mut error = Some(error);
    // Moves a `HostError` out of the generic type. A downcast of a reference cannot move the error, but `Option::take` can.
    if let Some(error) =
        (&mut error as &mut dyn Any).downcast_mut::<Option<HostError>>().and_then(Option::take)
    {
        return error.into_failure();
    }
    let message = error.as_ref().map(message_of).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Serialize)]
    struct Labelled {
        label: &'static str,
        value: Payload,
    }

    #[test]
    fn a_payload_inside_of_an_answer_is_its_value() {
        let number = || Payload::try_from_serde(&1.5).unwrap();
        let read = |answer: Result<Payload, Box<ToolFailure>>| answer.unwrap().to_serde::<Value>().unwrap();
        assert_eq!(read(vec![number(), Payload::null()].into_answer()), json!([1.5, null]));
        assert_eq!(read(BTreeMap::from([("a", number())]).into_answer()), json!({"a": 1.5}));
        let labelled = Json(Labelled { label: "x", value: number() });
        assert_eq!(read(labelled.into_answer()), json!({"label": "x", "value": 1.5}));

        let arrays = vec![Payload::embedding(&[1.0_f32])].into_answer().unwrap();
        let [array] = arrays.to_serde::<[Payload; 1]>().unwrap();
        assert_eq!(*array.items::<f32>().unwrap(), [1.0]);
    }

    #[test]
    fn errors_of_this_project_keep_their_sources() {
        let failed = SessionError::backend("cannot read").with_source("the disk is broken");
        let failure = Err::<(), _>(failed).into_answer().unwrap_err();
        assert_eq!(failure.message, "session backend failed: cannot read: the disk is broken");
    }
}
