//! A compact map of small strings. A host stores millions of them.

use std::{collections::BTreeMap, fmt, ops::Index, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

/// Metadata: strings by name, ordered by name. Clones are cheap, and an empty map does not allocate.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Sorted. A `BTreeMap` would take half a kilobyte for its first entry.
    entries: Option<Arc<[Entry]>>,
}

type Entry = (Box<str>, Box<str>);

impl Metadata {
    /// Returns the value for a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let entries = self.entries();
        let index = entries.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(&entries[index].1)
    }

    /// Iterates over names and values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries().iter().map(|(name, text)| (&**name, &**text))
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether the map is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_none()
    }

    /// The total length of names and values in bytes.
    pub(crate) fn size(&self) -> usize {
        self.iter().map(|(name, text)| name.len() + text.len()).sum()
    }

    /// Merges both maps. Entries of `overrides` take precedence.
    pub(crate) fn merged(&self, overrides: &Self) -> Self {
        self.iter().chain(overrides.iter()).collect::<BTreeMap<_, _>>().into_iter().collect()
    }

    fn entries(&self) -> &[Entry] {
        self.entries.as_deref().unwrap_or_default()
    }
}

impl Index<&str> for Metadata {
    type Output = str;

    /// # Panics
    /// If the name is missing.
    fn index(&self, name: &str) -> &str {
        self.get(name).expect("no metadata entry with this name")
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Metadata {
    /// The last entry with a name takes precedence.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries: BTreeMap<Box<str>, Box<str>> =
            entries.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        Self { entries: (!entries.is_empty()).then(|| entries.into_iter().collect()) }
    }
}

impl From<BTreeMap<String, String>> for Metadata {
    fn from(entries: BTreeMap<String, String>) -> Self {
        entries.into_iter().collect()
    }
}

impl From<&Metadata> for BTreeMap<String, String> {
    fn from(metadata: &Metadata) -> Self {
        metadata.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, String>()? {
                    entries.push(entry);
                }
                Ok(entries.into_iter().collect())
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_a_sorted_map() {
        let metadata: Metadata = [("b", "2"), ("a", "1"), ("b", "3")].into_iter().collect();
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "3")]);
        assert_eq!((metadata.get("b"), metadata.get("c"), &metadata["a"]), (Some("3"), None, "1"));
        assert_eq!((metadata.len(), metadata.size()), (2, 4));
        let over: Metadata = [("a", "x"), ("c", "y")].into_iter().collect();
        assert_eq!(format!("{:?}", metadata.merged(&over)), r#"{"a": "x", "b": "3", "c": "y"}"#);
        let json = serde_json::to_string(&metadata).unwrap();
        assert_eq!((&*json, serde_json::from_str(&json).unwrap()), (r#"{"a":"1","b":"3"}"#, metadata));
        assert!(Metadata::default().is_empty() && Metadata::from(BTreeMap::new()).is_empty());
    }
}
