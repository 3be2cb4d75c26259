//! Regular expressions that match in time linear in the text, whoever wrote them.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use regex::{Regex, RegexBuilder};

/// The most memory one compiled pattern may take, in bytes, and the most its cache of states may.
const MAX_COMPILED: usize = 1024 * 1024;
const MAX_STATES: usize = 256 * 1024;
/// How many compiled patterns are kept. So many a host holds at the most, however many variables have one.
const KEPT: usize = 64;

/// A pattern that compiles. A few patterns come again and again, with sessions that register the same variables, and with
/// variables that are read from a store; so they are compiled when they are used and kept for whoever is next.
#[derive(Debug)]
pub(super) struct Pattern(Box<str>);

impl Pattern {
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        compiled(pattern)?;
        Ok(Self(pattern.into()))
    }

    /// # Errors
    /// None: it compiled before.
    pub(super) fn is_match(&self, text: &str) -> Result<bool, String> {
        Ok(compiled(&self.0)?.is_match(text))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    static COMPILED: OnceLock<Mutex<HashMap<Box<str>, Regex>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(Mutex::default);
    if let Some(known) = compiled.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return Ok(known.clone());
    }
    let regex = RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_STATES)
        .build()
        .map_err(|error| format!("constraint `pattern` is no regular expression: {error}"))?;
    let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    compiled.insert(pattern.into(), regex.clone());
    Ok(regex)
}
