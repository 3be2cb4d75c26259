//! Typed builders, so that Rust programs do not write constraints as JSON.

use std::{
    marker::PhantomData,
    ops::{Bound, RangeBounds, RangeFrom, RangeInclusive, RangeToInclusive},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::VariableType;
use crate::{SessionError, ValueType};

/// The kinds of [`VariableTypeBuilder`], one for each set of constraints.
pub mod variable_kinds {
    /// A float.
    #[derive(Debug, Clone, Copy)]
    pub struct Float;
    /// An integer of 64 bits.
    #[derive(Debug, Clone, Copy)]
    pub struct Integer;
    /// A string.
    #[derive(Debug, Clone, Copy)]
    pub struct Text;
    /// The name of a module.
    #[derive(Debug, Clone, Copy)]
    pub struct Module;
    /// A vector of numbers.
    #[derive(Debug, Clone, Copy)]
    pub struct Embedding;
    /// An array of numbers.
    #[derive(Debug, Clone, Copy)]
    pub struct Tensor;
    /// A type without other constraints.
    #[derive(Debug, Clone, Copy)]
    pub struct Plain;
}

/// Builds a [`VariableType`] with constraints. Created by [`VariableType::float`] and similar functions.
///
/// Functions that take a type also accept a builder, and return an error for invalid constraints such as an empty range.
/// Elsewhere, call [`build`](Self::build).
///
/// ```
/// use snakepit_session::{Payload, VariableType};
///
/// let rate = VariableType::float().range(0.0..=1.0).build()?;
/// assert!(rate.check(Payload::float(0.5)).is_ok());
/// assert_eq!(rate.check(Payload::float(2.0)).unwrap_err(), "value 2 is above maximum 1");
///
/// let name = VariableType::string().length(1..=80).pattern("^[a-z]+$");
/// let size = VariableType::choice(["small", "large"]);
/// let matrix = VariableType::tensor().shape([3, 3]);
/// # (name.build()?, size.build()?, matrix.build()?);
///
/// // The ends of a range must be in order.
/// let (low, high) = (10, 1);
/// assert!(VariableType::integer().range(low..=high).build().is_err());
/// # Ok::<(), snakepit_session::SessionError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is passed on or `build` is called"]
pub struct VariableTypeBuilder<K> {
    kind: ValueType,
    constraints: Map<String, Value>,
    /// The first error.
    problem: Option<String>,
    marker: PhantomData<K>,
}

impl VariableType {
    /// A float. Restrict it with [`range`](VariableTypeBuilder::<variable_kinds::Float>::range).
    pub fn float() -> VariableTypeBuilder<variable_kinds::Float> {
        VariableTypeBuilder::new(ValueType::Float)
    }

    /// An integer of 64 bits. Restrict it with [`range`](VariableTypeBuilder::<variable_kinds::Integer>::range).
    pub fn integer() -> VariableTypeBuilder<variable_kinds::Integer> {
        VariableTypeBuilder::new(ValueType::Integer)
    }

    /// A string. Restrict it with its length, a pattern, or a list of strings.
    pub fn string() -> VariableTypeBuilder<variable_kinds::Text> {
        VariableTypeBuilder::new(ValueType::String)
    }

    /// `true` or `false`.
    pub fn boolean() -> VariableTypeBuilder<variable_kinds::Plain> {
        VariableTypeBuilder::new(ValueType::Boolean)
    }

    /// One of these strings.
    pub fn choice<S: Into<String>>(
        choices: impl IntoIterator<Item = S>,
    ) -> VariableTypeBuilder<variable_kinds::Plain> {
        VariableTypeBuilder::new(ValueType::Choice).strings("choices", choices)
    }

    /// The name of a module. Restrict it with [`one_of`](VariableTypeBuilder::<variable_kinds::Module>::one_of).
    pub fn module() -> VariableTypeBuilder<variable_kinds::Module> {
        VariableTypeBuilder::new(ValueType::Module)
    }

    /// A vector of numbers. Restrict it with its [`dimensions`](VariableTypeBuilder::<variable_kinds::Embedding>::dimensions).
    pub fn embedding() -> VariableTypeBuilder<variable_kinds::Embedding> {
        VariableTypeBuilder::new(ValueType::Embedding)
    }

    /// An array of numbers. Restrict it with its [`shape`](VariableTypeBuilder::<variable_kinds::Tensor>::shape).
    pub fn tensor() -> VariableTypeBuilder<variable_kinds::Tensor> {
        VariableTypeBuilder::new(ValueType::Tensor)
    }

    /// A map with string keys.
    pub fn map() -> VariableTypeBuilder<variable_kinds::Plain> {
        VariableTypeBuilder::new(ValueType::Map)
    }

    /// A list.
    pub fn list() -> VariableTypeBuilder<variable_kinds::Plain> {
        VariableTypeBuilder::new(ValueType::List)
    }
}

impl<K> VariableTypeBuilder<K> {
    fn new(kind: ValueType) -> Self {
        Self { kind, constraints: Map::new(), problem: None, marker: PhantomData }
    }

    /// Checks the constraints and creates the type.
    ///
    /// # Errors
    /// [`SessionError::InvalidType`] if a constraint is contradictory, not finite, empty or too long, or if the pattern is invalid.
    pub fn build(self) -> Result<Arc<VariableType>, SessionError> {
        if let Some(problem) = self.problem {
            return Err(SessionError::InvalidType { kind: self.kind.to_string(), problem });
        }
        if self.constraints.is_empty() {
            return VariableType::new(self.kind);
        }
        VariableType::with_constraints(self.kind, &Value::Object(self.constraints).to_string())
    }

    /// Sets a constraint, or removes it.
    fn constrain(mut self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.constraints.insert(key.to_owned(), value.into()),
            None => self.constraints.remove(key),
        };
        self
    }

    fn strings<S: Into<String>>(self, key: &str, strings: impl IntoIterator<Item = S>) -> Self {
        let strings: Vec<String> = strings.into_iter().map(Into::into).collect();
        self.constrain(key, Some(strings))
    }

    /// Stores the first error.
    fn with_problem(mut self, problem: String) -> Self {
        self.problem.get_or_insert(problem);
        self
    }

    /// Sets two inclusive bounds from a range of integers.
    fn bounds<T: BoundInteger>(self, low: &str, high: &str, range: &impl RangeBounds<T>) -> Self {
        let min = match range.start_bound() {
            Bound::Included(min) => Ok(Some(*min)),
            Bound::Excluded(min) => min.next().map(Some).ok_or(()),
            Bound::Unbounded => Ok(None),
        };
        let max = match range.end_bound() {
            Bound::Included(max) => Ok(Some(*max)),
            Bound::Excluded(max) => max.previous().map(Some).ok_or(()),
            Bound::Unbounded => Ok(None),
        };
        match (min, max) {
            (Ok(min), Ok(max)) => self
                .constrain(low, min.map(BoundInteger::value))
                .constrain(high, max.map(BoundInteger::value)),
            _ => self.with_problem(format!("the range from `{low}` to `{high}` is empty")),
        }
    }

    /// Sets a float bound. The bound `unbounded`, an infinity, removes it.
    fn float_bound(self, key: &str, bound: Option<f64>, unbounded: f64) -> Self {
        match bound {
            Some(bound) if !bound.is_finite() && bound != unbounded => {
                self.with_problem(format!("constraint `{key}` is {bound}; set it to a finite number"))
            }
            bound => self.constrain(key, bound.filter(|bound| bound.is_finite())),
        }
    }
}

impl VariableTypeBuilder<variable_kinds::Float> {
    /// Sets the smallest and the largest value, both inclusive: `0.0..=1.0`, `0.0..` or `..=1.0`. Excludes NaN.
    pub fn range(self, range: impl InclusiveRange) -> Self {
        let (min, max) = range.ends();
        self.float_bound("min", min, f64::NEG_INFINITY).float_bound("max", max, f64::INFINITY)
    }
}

impl VariableTypeBuilder<variable_kinds::Integer> {
    /// Sets the minimum and maximum: `1..=6`, `1..7`, `0..` or `..10`.
    pub fn range(self, range: impl RangeBounds<i64>) -> Self {
        self.bounds("min", "max", &range)
    }
}

impl VariableTypeBuilder<variable_kinds::Text> {
    /// Sets the minimum and maximum length, in characters: `1..=80`, `1..` or `..=80`.
    pub fn length(self, range: impl RangeBounds<usize>) -> Self {
        self.bounds("min_length", "max_length", &range)
    }

    /// Sets a regular expression, in the syntax of the crate `regex`. It may match anywhere unless `^` and `$` anchor it.
    pub fn pattern(self, pattern: impl Into<String>) -> Self {
        self.constrain("pattern", Some(pattern.into()))
    }

    /// Allows only these strings.
    pub fn one_of<S: Into<String>>(self, strings: impl IntoIterator<Item = S>) -> Self {
        self.strings("enum", strings)
    }
}

impl VariableTypeBuilder<variable_kinds::Module> {
    /// Allows only these modules.
    pub fn one_of<S: Into<String>>(self, modules: impl IntoIterator<Item = S>) -> Self {
        self.strings("allowed_modules", modules)
    }
}

impl VariableTypeBuilder<variable_kinds::Embedding> {
    /// Sets the number of dimensions.
    pub fn dimensions(self, dimensions: usize) -> Self {
        self.constrain("dimensions", Some(dimensions))
    }
}

impl VariableTypeBuilder<variable_kinds::Tensor> {
    /// Sets the length of each axis.
    pub fn shape(self, shape: impl Into<Vec<usize>>) -> Self {
        self.constrain("shape", Some(shape.into()))
    }
}

/// A range of floats with inclusive ends. Exclusive ranges such as `0.0..1.0` do not implement it, because the constraints of
/// floats are inclusive.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a range of floats with inclusive ends",
    note = "write `low..=high`, `low..` or `..=high`"
)]
pub trait InclusiveRange: sealed::Sealed {
    /// The smallest and the largest value.
    #[doc(hidden)]
    fn ends(self) -> (Option<f64>, Option<f64>);
}

impl InclusiveRange for RangeInclusive<f64> {
    fn ends(self) -> (Option<f64>, Option<f64>) {
        (Some(*self.start()), Some(*self.end()))
    }
}

impl InclusiveRange for RangeFrom<f64> {
    fn ends(self) -> (Option<f64>, Option<f64>) {
        (Some(self.start), None)
    }
}

impl InclusiveRange for RangeToInclusive<f64> {
    fn ends(self) -> (Option<f64>, Option<f64>) {
        (None, Some(self.end))
    }
}

/// A type for a new variable: a [`VariableType`], or a builder such as `VariableType::float().range(0.0..=1.0)`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the type of a variable",
    note = "pass `VariableType::float()`, `VariableType::string()` or the like, or an `Arc<VariableType>`"
)]
pub trait IntoVariableType: sealed::Sealed {
    /// Creates the type.
    ///
    /// # Errors
    /// [`SessionError::InvalidType`] if the constraints of a builder are invalid.
    fn into_variable_type(self) -> Result<Arc<VariableType>, SessionError>;
}

impl IntoVariableType for Arc<VariableType> {
    fn into_variable_type(self) -> Result<Self, SessionError> {
        Ok(self)
    }
}

impl IntoVariableType for &Arc<VariableType> {
    fn into_variable_type(self) -> Result<Arc<VariableType>, SessionError> {
        Ok(Arc::clone(self))
    }
}

impl<K> IntoVariableType for VariableTypeBuilder<K> {
    fn into_variable_type(self) -> Result<Arc<VariableType>, SessionError> {
        self.build()
    }
}

mod sealed {
    use std::{
        ops::{RangeFrom, RangeInclusive, RangeToInclusive},
        sync::Arc,
    };

    use super::{VariableType, VariableTypeBuilder};

    /// Implemented in this crate only.
    pub trait Sealed {}

    impl Sealed for RangeInclusive<f64> {}
    impl Sealed for RangeFrom<f64> {}
    impl Sealed for RangeToInclusive<f64> {}
    impl Sealed for Arc<VariableType> {}
    impl Sealed for &Arc<VariableType> {}
    impl<K> Sealed for VariableTypeBuilder<K> {}
}

/// An integer type of range bounds.
trait BoundInteger: Copy {
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
    fn value(self) -> Value;
}

impl BoundInteger for i64 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn value(self) -> Value {
        self.into()
    }
}

impl BoundInteger for usize {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn value(self) -> Value {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<K>(builder: VariableTypeBuilder<K>) -> String {
        builder.build().unwrap().constraints_json().to_owned()
    }

    fn problem<K>(builder: VariableTypeBuilder<K>) -> String {
        builder.build().unwrap_err().to_string()
    }

    #[test]
    fn builders_write_the_constraints_of_each_type() {
        assert_eq!(json(VariableType::float()), "");
        assert_eq!(json(VariableType::float().range(0.0..=1.0)), r#"{"max":1.0,"min":0.0}"#);
        assert_eq!(json(VariableType::float().range(-0.5..)), r#"{"min":-0.5}"#);
        assert_eq!(json(VariableType::float().range(..=f64::INFINITY)), "");
        assert_eq!(json(VariableType::integer().range(1..7)), r#"{"max":6,"min":1}"#);
        assert_eq!(json(VariableType::integer().range(..=i64::MAX)), r#"{"max":9223372036854775807}"#);
        let text = VariableType::string().length(1..=3).pattern("^a").one_of(["a", "ab"]);
        let expected = r#"{"enum":["a","ab"],"max_length":3,"min_length":1,"pattern":"^a"}"#;
        assert_eq!(json(text), expected);
        assert_eq!(json(VariableType::choice(["a", "b"])), r#"{"choices":["a","b"]}"#);
        assert_eq!(json(VariableType::module().one_of(["math"])), r#"{"allowed_modules":["math"]}"#);
        assert_eq!(json(VariableType::embedding().dimensions(768)), r#"{"dimensions":768}"#);
        assert_eq!(json(VariableType::tensor().shape([2, 3])), r#"{"shape":[2,3]}"#);
        for plain in [VariableType::boolean(), VariableType::map(), VariableType::list()] {
            assert_eq!(json(plain), "");
        }
    }

    #[test]
    fn a_later_constraint_replaces_an_earlier_one() {
        assert_eq!(json(VariableType::integer().range(1..=6).range(3..)), r#"{"min":3}"#);
    }

    #[test]
    fn invalid_constraints_are_rejected_by_name() {
        assert!(problem(VariableType::float().range(f64::NAN..)).contains("`min` is NaN"));
        assert!(problem(VariableType::float().range(..=f64::NEG_INFINITY)).contains("`max` is -inf"));
        assert!(problem(VariableType::float().range(1.0..=0.0)).contains("`min` 1 is above `max` 0"));
        assert!(problem(VariableType::integer().range(1..1)).contains("`min` 1 is above `max` 0"));
        assert!(problem(VariableType::integer().range(..i64::MIN)).contains("is empty"));
        assert!(problem(VariableType::string().length(..0)).contains("is empty"));
        assert!(problem(VariableType::string().pattern("(")).contains("not a valid regular expression"));
        assert!(problem(VariableType::choice::<&str>([])).contains("`choices` must be a list of strings"));
    }
}
