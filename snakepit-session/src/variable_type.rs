//! The type of a variable and its constraints. Constraints are validated and patterns are compiled at registration. A write
//! compiles a pattern again if the cache has evicted it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value};

use crate::{Payload, SessionError, ValueType};

mod builder;
mod pattern;
mod shape;
mod value;

pub use builder::{InclusiveRange, IntoVariableType, VariableTypeBuilder, variable_kinds};
use pattern::Pattern;

/// The longest constraints accepted, in bytes of JSON.
const MAX_CONSTRAINTS_BYTES: usize = 64 * 1024;

/// The type of a variable with its constraints.
///
/// Build it with [`VariableType::float`] and similar functions, or with [`VariableType::with_constraints`] from constraints in
/// JSON:
///
/// | type | constraints |
/// | --- | --- |
/// | `float`, `integer` | `min`, `max`, both inclusive; either of them excludes NaN |
/// | `string` | `min_length`, `max_length` in characters; `pattern`, a regular expression found anywhere unless anchored; `enum` |
/// | `choice` | `choices` |
/// | `module` | `allowed_modules` |
/// | `embedding` | `dimensions` |
/// | `tensor` | `shape` |
/// | `boolean`, `map`, `list`, `bytes` | none |
pub struct VariableType {
    kind: ValueType,
    /// The JSON of the constraints as the caller passed it.
    json: Box<str>,
    rules: Rules,
}

/// The parsed constraints.
#[derive(Debug)]
enum Rules {
    Float {
        min: Option<f64>,
        max: Option<f64>,
    },
    Integer {
        min: Option<i64>,
        max: Option<i64>,
    },
    String {
        min: Option<usize>,
        max: Option<usize>,
        pattern: Option<Pattern>,
        one_of: Option<Vec<String>>,
    },
    Boolean,
    /// The allowed values of a choice or module.
    OneOf(Option<Vec<String>>),
    Embedding {
        dimensions: Option<usize>,
    },
    Tensor {
        shape: Option<Vec<usize>>,
    },
    Map,
    List,
    Bytes,
}

impl VariableType {
    /// Creates a type without constraints.
    ///
    /// # Errors
    /// Those of [`VariableType::with_constraints`].
    pub fn new(kind: ValueType) -> Result<Arc<Self>, SessionError> {
        Self::with_constraints(kind, "")
    }

    /// Parses the name of a type that variables support.
    ///
    /// # Errors
    /// [`SessionError::InvalidType`] with the names of these types.
    pub fn parse_kind(name: &str) -> Result<ValueType, SessionError> {
        let kind = name.parse().ok().filter(|kind| *kind != ValueType::Null);
        kind.ok_or_else(|| SessionError::InvalidType {
            kind: name.to_owned(),
            problem: format!("variables are {KINDS}"),
        })
    }

    /// Creates a type with constraints, which are a JSON object or empty.
    ///
    /// # Errors
    /// [`SessionError::InvalidType`] for a type that variables do not support (`null`), and for constraints that are
    /// malformed, unknown to the type, or contradictory.
    pub fn with_constraints(kind: ValueType, json: &str) -> Result<Arc<Self>, SessionError> {
        let parsed = Self::parse(kind, json, Pattern::new);
        parsed.map(Arc::new).map_err(|problem| SessionError::InvalidType { kind: kind.to_string(), problem })
    }

    fn parse(
        kind: ValueType,
        json: &str,
        pattern_of: impl Fn(&str) -> Result<Pattern, String>,
    ) -> Result<Self, String> {
        if json.len() > MAX_CONSTRAINTS_BYTES {
            return Err(format!(
                "its constraints have {} bytes, the limit is {MAX_CONSTRAINTS_BYTES}",
                json.len()
            ));
        }
        let constraints = if json.trim().is_empty() {
            Map::new()
        } else {
            match serde_json::from_str(json) {
                Ok(Value::Object(constraints)) => constraints,
                Ok(Value::Null) => Map::new(),
                Ok(_) => return Err("its constraints are not a JSON object".to_owned()),
                Err(error) => return Err(format!("its constraints are not valid JSON: {error}")),
            }
        };
        let mut keys = Keys { remaining: constraints };
        let rules = match kind {
            ValueType::Float => {
                let (min, max) = (keys.number("min")?, keys.number("max")?);
                check_order("min", min, "max", max)?;
                Rules::Float { min, max }
            }
            ValueType::Integer => {
                let (min, max) = (keys.integer("min")?, keys.integer("max")?);
                check_order("min", min, "max", max)?;
                Rules::Integer { min, max }
            }
            ValueType::String => {
                let (min, max) = (keys.count("min_length")?, keys.count("max_length")?);
                check_order("min_length", min, "max_length", max)?;
                let pattern = keys.text("pattern")?.map(|pattern| pattern_of(&pattern)).transpose()?;
                Rules::String { min, max, pattern, one_of: keys.texts("enum")? }
            }
            ValueType::Boolean => Rules::Boolean,
            ValueType::Choice => Rules::OneOf(keys.texts("choices")?),
            ValueType::Module => Rules::OneOf(keys.texts("allowed_modules")?),
            ValueType::Embedding => Rules::Embedding { dimensions: keys.count("dimensions")? },
            ValueType::Tensor => Rules::Tensor { shape: keys.counts("shape")? },
            ValueType::Map => Rules::Map,
            ValueType::List => Rules::List,
            ValueType::Bytes => Rules::Bytes,
            ValueType::Null => return Err(format!("variables are {KINDS}")),
        };
        keys.reject_unknown(rules.keys())?;
        Ok(Self { kind, json: json.into(), rules })
    }

    /// The type of the values.
    #[must_use]
    pub const fn kind(&self) -> ValueType {
        self.kind
    }

    /// The JSON of the constraints as the caller passed it, possibly empty.
    #[must_use]
    pub const fn constraints_json(&self) -> &str {
        &self.json
    }

    /// Validates a value and converts it to the stored form. For example, `5` becomes a float in a float variable.
    ///
    /// # Errors
    /// The reason, which continues a message after the variable's name: `value 11 is above maximum 10`.
    pub fn check(&self, value: Payload) -> Result<Payload, String> {
        self.check_within(value, &mut { MAX_STEPS })
    }

    fn check_within(&self, value: Payload, steps: &mut usize) -> Result<Payload, String> {
        value::check(self.kind, &self.rules, value, steps)
    }

    /// Creates a type that a host has accepted before. The pattern is compiled only when the type checks a value.
    ///
    /// # Errors
    /// Those of [`VariableType::with_constraints`], except for an invalid pattern.
    pub fn known(kind: ValueType, json: &str) -> Result<Arc<Self>, SessionError> {
        let parsed = Self::parse(kind, json, |pattern| Ok(Pattern::known(pattern)));
        parsed.map(Arc::new).map_err(|problem| SessionError::InvalidType { kind: kind.to_string(), problem })
    }
}

/// The types that variables support.
const KINDS: &str = "float, integer, string, boolean, choice, module, embedding, tensor, map, list or bytes";

/// The maximum size in bytes of values that are validated under a lock.
const MAX_CHEAP_BYTES: usize = 64 * 1024;
/// The maximum cost of checks that run under a lock, in steps of an NFA: about two milliseconds, at the rate of ADR 27.
const MAX_CHEAP_STEPS: usize = MAX_CHEAP_BYTES * STEPS_PER_BYTE;
/// The cost of checking a byte without a pattern.
const STEPS_PER_BYTE: usize = 16;
/// The budget of one check, or of a batch, for the simulation of NFAs, in steps: about a tenth of a second, at the rate of ADR 27.
const MAX_STEPS: usize = 64 * 1024 * 1024;

/// The result of checking a value against a type, before the write.
#[derive(Debug, Clone)]
pub struct CheckedValue {
    ty: Arc<VariableType>,
    outcome: Result<Payload, String>,
}

impl CheckedValue {
    /// Returns the result if it applies to this type.
    pub(crate) fn for_type(self, ty: &Arc<VariableType>) -> Option<Result<Payload, String>> {
        (Arc::ptr_eq(&self.ty, ty) || *self.ty == **ty).then_some(self.outcome)
    }

    /// Wraps a value that is known to match the type.
    pub(crate) const fn valid(ty: Arc<VariableType>, value: Payload) -> Self {
        Self { ty, outcome: Ok(value) }
    }

    /// Checks the values of a batch on a blocking thread. Returns `None` if the checks together are cheap. They share a budget.
    pub(crate) async fn all_if_expensive(
        values: Vec<Option<(Arc<VariableType>, Payload)>>,
    ) -> Option<Vec<Option<Self>>> {
        let steps = values.iter().flatten().map(|(ty, value)| ty.steps(value));
        if steps.fold(0, usize::saturating_add) <= MAX_CHEAP_STEPS {
            return None;
        }
        let check = move || {
            let mut steps = MAX_STEPS;
            let mut checked = |(ty, value): (Arc<VariableType>, _)| {
                let outcome = ty.check_within(value, &mut steps);
                Self { ty, outcome }
            };
            values.into_iter().map(|value| value.map(&mut checked)).collect()
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(check).await.ok(),
            Err(_) => Some(check()),
        }
    }
}

/// Whether checking these values may be expensive, depending on the types.
pub(crate) fn may_be_expensive<'a>(values: impl IntoIterator<Item = &'a Payload>) -> bool {
    let mut size = 0_usize;
    values.into_iter().any(|value| {
        size = size.saturating_add(value.size());
        // A string variable accepts values of all these types, and may have a pattern.
        size > MAX_CHEAP_BYTES
            || matches!(value.ty(), ValueType::String | ValueType::Choice | ValueType::Module)
    })
}

impl VariableType {
    #[cfg(test)]
    fn is_expensive(&self, value: &Payload) -> bool {
        self.steps(value) > MAX_CHEAP_STEPS
    }

    /// The maximum cost of a check, in steps. It is `usize::MAX` if the pattern is not compiled yet.
    fn steps(&self, value: &Payload) -> usize {
        let states = match &self.rules {
            Rules::String { pattern: Some(pattern), .. } => pattern.states(),
            _ => Some(0),
        };
        let steps = |states: usize| value.size().saturating_mul(states.max(STEPS_PER_BYTE));
        states.map_or(usize::MAX, steps)
    }
}

impl Rules {
    const fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Float { .. } | Self::Integer { .. } => &["min", "max"],
            Self::String { .. } => &["min_length", "max_length", "pattern", "enum"],
            Self::OneOf(_) => &["choices", "allowed_modules"],
            Self::Embedding { .. } => &["dimensions"],
            Self::Tensor { .. } => &["shape"],
            Self::Boolean | Self::Map | Self::List | Self::Bytes => &[],
        }
    }
}

/// Rejects a lower bound above the upper bound.
fn check_order<T: PartialOrd + fmt::Display>(
    low: &str,
    min: Option<T>,
    high: &str,
    max: Option<T>,
) -> Result<(), String> {
    match (min, max) {
        (Some(min), Some(max)) if min > max => {
            Err(format!("constraint `{low}` {min} is above `{high}` {max}"))
        }
        _ => Ok(()),
    }
}

/// The constraints that are not parsed yet.
struct Keys {
    remaining: Map<String, Value>,
}

impl Keys {
    fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.remaining.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                read(&value).map(Some).ok_or_else(|| format!("constraint `{key}` must be {expected}"))
            }
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, String> {
        self.read(key, "a number", Value::as_f64)
    }

    fn integer(&mut self, key: &str) -> Result<Option<i64>, String> {
        self.read(key, "an integer of 64 bits", value::integer)
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>, String> {
        self.read(key, "an integer that is not negative", count)
    }

    fn counts(&mut self, key: &str) -> Result<Option<Vec<usize>>, String> {
        let read = |value: &Value| value.as_array()?.iter().map(count).collect();
        self.read(key, "a list of integers that are not negative", read)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, String> {
        let read = |value: &Value| {
            let texts: Option<Vec<_>> =
                value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            texts.filter(|texts| !texts.is_empty())
        };
        self.read(key, "a list of strings that is not empty", read)
    }

    /// Rejects the constraints that were not read.
    fn reject_unknown(self, known: &[&str]) -> Result<(), String> {
        match self.remaining.keys().next() {
            None => Ok(()),
            Some(key) if known.is_empty() => {
                Err(format!("constraint `{key}` is unknown; the type takes no constraints"))
            }
            Some(key) => Err(format!("constraint `{key}` is unknown; the type takes {}", known.join(", "))),
        }
    }
}

fn count(value: &Value) -> Option<usize> {
    usize::try_from(value::integer(value)?).ok()
}

impl fmt::Debug for VariableType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind, self.json)
    }
}

/// Compares the types as the callers passed them.
impl PartialEq for VariableType {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.json) == (other.kind, &other.json)
    }
}

impl Serialize for VariableType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.kind, &self.json).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for VariableType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, json) = <(ValueType, String)>::deserialize(deserializer)?;
        // Reading a variable does not compile its pattern; a write does.
        Self::parse(kind, &json, |pattern| Ok(Pattern::known(pattern))).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ValueType, json: &str) -> String {
        VariableType::with_constraints(kind, json).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_type_is_rejected_with_the_types_that_variables_support() {
        assert_eq!(VariableType::parse_kind("module").unwrap(), ValueType::Module);
        for name in ["decimal", "null", ""] {
            let problem = VariableType::parse_kind(name).unwrap_err().to_string();
            assert_eq!(problem, format!("invalid type `{name}` of a variable: variables are {KINDS}"));
            assert!(!KINDS.contains("null"));
        }
        for kind in KINDS.replace(" or ", ", ").split(", ") {
            assert!(VariableType::parse_kind(kind).is_ok(), "{kind}");
        }
    }

    #[test]
    fn bad_constraints_are_rejected_by_name() {
        for (kind, json, expected) in [
            (ValueType::Float, r#"{"min": 1, "max": 0}"#, "`min` 1 is above `max` 0"),
            (ValueType::Float, r#"{"minimum": 1}"#, "`minimum` is unknown; the type takes min, max"),
            (ValueType::Float, r#"{"min": "low"}"#, "`min` must be a number"),
            (ValueType::Integer, r#"{"max": 1.5}"#, "`max` must be an integer"),
            (
                ValueType::String,
                r#"{"min_length": -1}"#,
                "`min_length` must be an integer that is not negative",
            ),
            (ValueType::String, r#"{"pattern": "("}"#, "`pattern` is not a valid regular expression"),
            (ValueType::String, r#"{"pattern": "(a)\\1"}"#, "`pattern` is not a valid regular expression"),
            (
                ValueType::String,
                r#"{"pattern": "(?:a{1000}){1000}"}"#,
                "`pattern` is not a valid regular expression",
            ),
            (ValueType::String, r#"{"enum": []}"#, "`enum` must be a list of strings that is not empty"),
            (ValueType::Choice, r#"{"choices": "a"}"#, "`choices` must be a list"),
            (ValueType::Boolean, r#"{"min": 1}"#, "`min` is unknown; the type takes no constraints"),
            (ValueType::Tensor, r#"{"shape": [2, -1]}"#, "`shape` must be a list of integers"),
            (ValueType::Embedding, "[1]", "not a JSON object"),
            (ValueType::Embedding, "{", "not valid JSON"),
            (ValueType::Null, "", "variables are float"),
        ] {
            let problem = problem(kind, json);
            assert!(problem.contains(expected), "{kind} {json}: {problem}");
        }
        let long = format!(r#"{{"choices": ["{}"]}}"#, "x".repeat(MAX_CONSTRAINTS_BYTES));
        assert!(problem(ValueType::Choice, &long).contains("the limit is 65536"));
    }

    #[test]
    fn deserialized_types_compile_their_pattern_only_for_a_check() {
        let json = r#"["string", "{\"pattern\": \"^only in this test$\"}"]"#;
        let ty: VariableType = serde_json::from_str(json).unwrap();
        let value = || Payload::try_from_serde(&"only in this test").unwrap();
        assert!(ty.is_expensive(&value()));
        ty.check(value()).unwrap();
        assert!(!ty.is_expensive(&value()), "the cache contains the pattern");
    }

    #[test]
    fn the_cost_of_a_check_depends_on_the_pattern_and_on_the_whole_batch() {
        let constraints = r#"{"pattern": "^(?:|[ab]*a[ab]{900}[bd][ab]*)$"}"#;
        let slow = VariableType::with_constraints(ValueType::String, constraints).unwrap();
        let text = |length: usize| Payload::try_from_serde(&"a".repeat(length)).unwrap();
        assert!(slow.is_expensive(&text(10_000)));
        assert!(!slow.is_expensive(&text(10)));
        let list = |length: usize| Payload::try_from_serde(&vec![0; length]).unwrap();
        assert!(!may_be_expensive(&vec![list(1000); 10]));
        assert!(may_be_expensive(&vec![list(1000); 100]));
        let choice = Payload::from_json(ValueType::Choice, text(10).json().clone());
        assert!(may_be_expensive([&choice]), "a string variable accepts it");
    }

    #[test]
    fn absent_constraints_are_accepted_in_every_form() {
        for json in ["", "  ", "{}", "null", r#"{"min": null}"#] {
            VariableType::with_constraints(ValueType::Float, json).unwrap();
        }
    }
}
