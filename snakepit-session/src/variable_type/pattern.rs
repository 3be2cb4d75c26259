//! Regular expressions from clients, which match in linear time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use regex::{Regex, RegexBuilder};

/// The maximum size of a compiled pattern in bytes, and of its lazy DFA.
const MAX_COMPILED: usize = 1024 * 1024;
const MAX_STATES: usize = 256 * 1024;
/// The capacity of the cache of compiled patterns.
const KEPT: usize = 128;

static COMPILED: Mutex<Option<Kept>> = Mutex::new(None);

/// A valid pattern. Many sessions register the same variables, so compiled patterns are in a shared LRU cache and not in each
/// variable. Reading a variable compiles nothing.
#[derive(Debug)]
pub(super) struct Pattern(Box<str>);

impl Pattern {
    /// Compiles a pattern.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        compiled(pattern)?;
        Ok(Self(pattern.into()))
    }

    /// Wraps a pattern that was compiled before.
    pub(super) fn known(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// # Errors
    /// None, because the pattern is valid.
    pub(super) fn is_match(&self, text: &str) -> Result<bool, String> {
        Ok(compiled(&self.0)?.is_match(text))
    }

    /// Whether the cache contains the pattern. Compiling takes milliseconds.
    pub(super) fn is_compiled(&self) -> bool {
        kept().get_or_insert_default().patterns.contains_key(&self.0)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The LRU cache.
#[derive(Debug, Default)]
struct Kept {
    /// The compiled patterns, each with the time of its last use.
    patterns: HashMap<Box<str>, (Regex, u64)>,
    uses: u64,
}

impl Kept {
    fn get(&mut self, pattern: &str) -> Option<Regex> {
        self.uses += 1;
        let (regex, used) = self.patterns.get_mut(pattern)?;
        *used = self.uses;
        Some(regex.clone())
    }

    fn insert(&mut self, pattern: &str, regex: Regex) {
        if self.patterns.len() >= KEPT && !self.patterns.contains_key(pattern) {
            let oldest = self.patterns.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(pattern, _)| pattern.clone()) {
                self.patterns.remove(&oldest);
            }
        }
        self.uses += 1;
        self.patterns.insert(pattern.into(), (regex, self.uses));
    }
}

fn kept() -> MutexGuard<'static, Option<Kept>> {
    COMPILED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    if let Some(known) = kept().get_or_insert_default().get(pattern) {
        return Ok(known);
    }
    let regex = RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_STATES)
        .build()
        .map_err(|error| format!("constraint `pattern` is no regular expression: {error}"))?;
    kept().get_or_insert_default().insert(pattern, regex.clone());
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patterns_used_last_are_kept() {
        let mut kept = Kept::default();
        let regex = Regex::new("x").unwrap();
        for n in 0..KEPT {
            kept.insert(&n.to_string(), regex.clone());
        }
        assert!(kept.get("0").is_some());
        kept.insert("one more", regex);
        assert!(kept.get("0").is_some() && kept.get("one more").is_some());
        assert!(kept.get("1").is_none(), "it was not used for longest");
        assert_eq!(kept.patterns.len(), KEPT);
    }
}
