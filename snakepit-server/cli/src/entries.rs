//! [`Entries`]: the entries of a JSON object, including duplicate keys. Parsers usually keep only the last value of a key.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The entries of a JSON object in their order.
#[derive(Debug)]
pub(crate) struct Entries<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}

/// The deepest level that [`duplicate_key`] searches: the recursion limit of `serde_json`. The search skips deeper values, so that
/// they cannot overflow the stack.
const MAX_DEPTH: usize = 128;

/// The path of a key that occurs twice in the same object, down to [`MAX_DEPTH`] levels.
pub(crate) fn duplicate_key(entries: &[(String, &RawValue)]) -> Option<String> {
    duplicate_among(entries, 1)
}

fn duplicate_among(entries: &[(String, &RawValue)], depth: usize) -> Option<String> {
    let mut seen = HashSet::new();
    for (key, value) in entries {
        if !seen.insert(key) {
            return Some(format!("`{key}`"));
        }
        if let Some(inner) = duplicate_inside(value, depth) {
            return Some(format!("`{key}`.{inner}"));
        }
    }
    None
}

fn duplicate_inside(value: &RawValue, depth: usize) -> Option<String> {
    if depth >= MAX_DEPTH {
        return None;
    }
    let json = value.get();
    match json.as_bytes().first()? {
        b'{' => duplicate_among(&serde_json::from_str::<Entries<'_>>(json).ok()?.0, depth + 1),
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            items.into_iter().find_map(|item| duplicate_inside(item, depth + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_found_at_any_depth() {
        let duplicate = |json: &str| duplicate_key(&serde_json::from_str::<Entries<'_>>(json).unwrap().0);
        assert_eq!(duplicate(r#"{"a": 1, "b": {"a": 2}, "c": [{"a": 3}, {"a": 4}]}"#), None);
        assert_eq!(duplicate(r#"{"a": 1, "b": 2, "a": 3}"#).as_deref(), Some("`a`"));
        assert_eq!(duplicate(r#"{"a": 1, "\u0061": 1}"#).as_deref(), Some("`a`"));
        let nested = r#"{"a": [1, {"b": "}", "b": 1e999}]}"#;
        assert_eq!(duplicate(nested).as_deref(), Some("`a`.`b`"));
    }

    #[test]
    fn deeply_nested_text_does_not_overflow_the_stack() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let json = format!("{{\"a\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
            assert_eq!(duplicate_key(&serde_json::from_str::<Entries<'_>>(&json).unwrap().0), None);
        }
    }
}
