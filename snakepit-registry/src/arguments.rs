//! [`Arguments`] of a call, and their deserializer. It reads all arguments as one map, directly from the bytes of each payload.

use std::{slice, sync::Arc, vec};

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
    forward_to_deserialize_any,
};
use snakepit_session::Payload;

use crate::ToolError;

/// The arguments of a call, sorted by parameter name.
///
/// Clones share the arguments, so a retry can keep a cheap copy of its call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments(Arc<Vec<(String, Payload)>>);

impl Arguments {
    /// Creates an empty set of arguments.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an argument, or replaces the argument with the same name.
    pub fn insert(&mut self, name: String, value: Payload) {
        let position = self.search(&name);
        let entries = Arc::make_mut(&mut self.0);
        match position {
            Ok(index) => entries[index].1 = value,
            Err(index) => entries.insert(index, (name, value)),
        }
    }

    /// The argument with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Payload> {
        self.search(name).ok().map(|index| &self.0[index].1)
    }

    /// Iterates over all names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Payload)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The number of arguments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no arguments.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The total size of all values, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|(_, value)| value.size()).sum()
    }

    /// The index of a name, or the index at which to insert it.
    fn search(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.as_str().cmp(name))
    }
}

impl Extend<(String, Payload)> for Arguments {
    /// Keeps the last of several values with the same name.
    fn extend<I: IntoIterator<Item = (String, Payload)>>(&mut self, more: I) {
        let entries = Arc::make_mut(&mut self.0);
        entries.extend(more);
        // The sort is stable, so the last value with a name remains last. It is fast for sorted input.
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries.dedup_by(|later, earlier| {
            let is_replaced = later.0 == earlier.0;
            if is_replaced {
                std::mem::swap(later, earlier);
            }
            is_replaced
        });
    }
}

impl FromIterator<(String, Payload)> for Arguments {
    fn from_iter<I: IntoIterator<Item = (String, Payload)>>(entries: I) -> Self {
        let mut arguments = Self::new();
        arguments.extend(entries);
        arguments
    }
}

impl IntoIterator for Arguments {
    type Item = (String, Payload);
    type IntoIter = ArgumentsIntoIter;

    fn into_iter(self) -> ArgumentsIntoIter {
        ArgumentsIntoIter(match Arc::try_unwrap(self.0) {
            Ok(entries) => Entries::Owned(entries.into_iter()),
            Err(entries) => Entries::Shared { entries, next: 0 },
        })
    }
}

/// Iterates over the names and values of [`Arguments`], sorted by name. Copies an entry when it yields it, if other clones share
/// the arguments.
#[derive(Debug)]
pub struct ArgumentsIntoIter(Entries);

#[derive(Debug)]
enum Entries {
    Owned(vec::IntoIter<(String, Payload)>),
    Shared { entries: Arc<Vec<(String, Payload)>>, next: usize },
}

impl Iterator for ArgumentsIntoIter {
    type Item = (String, Payload);

    fn next(&mut self) -> Option<(String, Payload)> {
        match &mut self.0 {
            Entries::Owned(entries) => entries.next(),
            Entries::Shared { entries, next } => {
                let entry = entries.get(*next)?.clone();
                *next += 1;
                Some(entry)
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let remaining = match &self.0 {
            Entries::Owned(entries) => entries.len(),
            Entries::Shared { entries, next } => entries.len() - next,
        };
        (remaining, Some(remaining))
    }
}

impl ExactSizeIterator for ArgumentsIntoIter {}

/// Deserializes all arguments into one Rust value. Accepts 5.0 as an integer and 5 as a float, at any depth.
///
/// # Errors
/// [`ToolError::InvalidArguments`], with the name of the argument if serde reports it.
pub(crate) fn from_arguments<A: DeserializeOwned>(tool: &str, arguments: &Arguments) -> Result<A, ToolError> {
    let deserialize = |accepts_whole_floats| {
        let mut current_name = None;
        let deserializer =
            ArgumentsDeserializer { arguments, accepts_whole_floats, current_name: &mut current_name };
        A::deserialize(deserializer).map_err(|error| (error, current_name))
    };
    // The second pass accepts whole floats as integers. It runs only if the first one fails.
    deserialize(false).or_else(|_| deserialize(true)).map_err(|(error, current_name)| {
        let problem = format!("does not fit: {error}");
        // Outside of an argument, the error is that an argument is missing or that `A` is not a map. Only serde's message
        // contains the missing name.
        let argument = current_name.map_or_else(
            || first_quoted(&error.to_string()).unwrap_or("arguments").to_owned(),
            str::to_owned,
        );
        ToolError::invalid_argument(tool, argument, problem)
    })
}

/// The first text in backticks, such as `x` in "missing field `x`".
fn first_quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

struct ArgumentsDeserializer<'a, 'c> {
    arguments: &'a Arguments,
    accepts_whole_floats: bool,
    /// The name of the argument that is being deserialized, for error messages.
    current_name: &'c mut Option<&'a str>,
}

impl<'a, 'c> ArgumentsDeserializer<'a, 'c> {
    fn access(self) -> ArgumentsAccess<'a, 'c> {
        ArgumentsAccess {
            entries: self.arguments.0.iter(),
            accepts_whole_floats: self.accepts_whole_floats,
            value: None,
            current_name: self.current_name,
        }
    }
}

impl<'de, 'a: 'de> Deserializer<'de> for ArgumentsDeserializer<'a, '_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(self.access())
    }

    /// The name of the only argument selects the variant. Its value is the content of the variant.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.arguments.len() != 1 {
            let problem = "takes exactly one, whose name is that of a variant: ";
            return Err(serde_json::Error::custom(format!("the tool {problem}{}", variants.join(", "))));
        }
        visitor.visit_enum(MapAccessDeserializer::new(self.access()))
    }

    /// Accepts `()` for a tool without arguments.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.arguments.is_empty() { visitor.visit_unit() } else { self.deserialize_any(visitor) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.arguments.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf seq tuple tuple_struct map
        struct identifier ignored_any
    }
}

struct ArgumentsAccess<'a, 'c> {
    entries: slice::Iter<'a, (String, Payload)>,
    accepts_whole_floats: bool,
    /// The value of the key that was read last.
    value: Option<&'a Payload>,
    current_name: &'c mut Option<&'a str>,
}

impl<'de, 'a: 'de> MapAccess<'de> for ArgumentsAccess<'a, '_> {
    type Error = serde_json::Error;

    fn next_key_seed<K: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, value)) = self.entries.next() else {
            *self.current_name = None;
            return Ok(None);
        };
        *self.current_name = Some(name);
        self.value = Some(value);
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        let value = self.value.take().ok_or_else(|| serde_json::Error::custom("a value without its key"))?;
        let result = if value.may_contain_large_integer() {
            value.read_exact(seed, self.accepts_whole_floats)?
        } else if self.accepts_whole_floats {
            value.read_whole(seed)?
        } else {
            value.read(seed)?
        };
        *self.current_name = None;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(number: u32) -> Payload {
        Payload::try_from_serde(&number).unwrap()
    }

    fn entries_of(arguments: &Arguments) -> Vec<(&str, u32)> {
        arguments.iter().map(|(name, value)| (name, value.to_serde().unwrap())).collect()
    }

    #[test]
    fn names_are_sorted_and_the_last_value_of_a_name_applies() {
        let entries = [("b", 1), ("a", 2), ("c", 3), ("b", 4), ("b", 5)];
        let collected: Arguments = entries.iter().map(|(name, n)| ((*name).to_owned(), value(*n))).collect();
        let mut inserted = Arguments::new();
        entries.iter().for_each(|(name, n)| inserted.insert((*name).to_owned(), value(*n)));
        assert_eq!(entries_of(&collected), [("a", 2), ("b", 5), ("c", 3)]);
        assert_eq!(collected, inserted);
        assert_eq!((collected.get("c"), collected.get("d")), (Some(&value(3)), None));
    }

    #[test]
    fn integers_beyond_64_bits_keep_their_digits_or_are_rejected() {
        use std::collections::BTreeMap;

        use serde_json::Value;

        let large = || Payload::of_json("[1, 18446744073709551617]".into());
        let arguments: Arguments = [("n".to_owned(), large())].into_iter().collect();
        let exact: BTreeMap<String, (i64, u128)> = from_arguments("t", &arguments).unwrap();
        assert_eq!(exact["n"], (1, (1 << 64) + 1));
        let floats: BTreeMap<String, Vec<f64>> = from_arguments("t", &arguments).unwrap();
        assert!((floats["n"][1] - 1.844_674_407_370_955_2e19).abs() < 1.0, "the type asks for a float");
        let payloads: BTreeMap<String, Payload> = from_arguments("t", &arguments).unwrap();
        assert_eq!(payloads["n"], large());
        for error in [
            from_arguments::<BTreeMap<String, Value>>("t", &arguments).unwrap_err(),
            from_arguments::<BTreeMap<String, Vec<Value>>>("t", &arguments).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.starts_with("argument `n` of tool `t` does not fit: the integer 18446744073709551617"),
                "{text}"
            );
            assert!(text.contains("take it as `i128`, `f64` or `Payload`"), "{text}");
        }
    }

    #[test]
    fn a_change_does_not_affect_a_clone() {
        let mut arguments = Arguments::new();
        arguments.insert("a".into(), value(1));
        let clone = arguments.clone();
        arguments.insert("a".into(), value(2));
        assert_eq!((entries_of(&clone), entries_of(&arguments)), (vec![("a", 1)], vec![("a", 2)]));
        assert_eq!(clone.into_iter().count(), 1);
    }

    #[test]
    fn owned_and_shared_arguments_yield_the_same_entries() {
        let arguments: Arguments =
            [("b", 1), ("a", 2)].map(|(name, n)| (name.to_owned(), value(n))).into_iter().collect();
        let clone = arguments.clone();
        let mut shared = clone.clone().into_iter();
        assert_eq!((shared.len(), shared.next().unwrap().0.as_str(), shared.len()), (2, "a", 1));
        drop(clone);
        let mut owned = arguments.into_iter();
        assert_eq!((owned.len(), owned.next().unwrap().0.as_str(), owned.len()), (2, "a", 1));
        assert_eq!(shared.collect::<Vec<_>>(), owned.collect::<Vec<_>>());
    }
}
