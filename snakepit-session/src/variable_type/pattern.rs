//! Regular expressions that match in time linear in the text, whoever wrote them.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use regex::{Regex, RegexBuilder};

/// The most memory one compiled pattern may take, in bytes.
const MAX_COMPILED: usize = 1024 * 1024;
/// How many compiled patterns are kept for whoever names them next.
const KEPT: usize = 256;

/// A compiled pattern. The same text is compiled once and shared: variables that are read from a store, and sessions that
/// register the same variables, come with the same few patterns again and again.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        static COMPILED: OnceLock<Mutex<HashMap<String, Regex>>> = OnceLock::new();
        let compiled = COMPILED.get_or_init(Mutex::default);
        if let Some(known) = compiled.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
            return Ok(Self(known.clone()));
        }
        let regex = RegexBuilder::new(pattern)
            .size_limit(MAX_COMPILED)
            .build()
            .map_err(|error| format!("constraint `pattern` is no regular expression: {error}"))?;
        let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= KEPT {
            compiled.clear();
        }
        compiled.insert(pattern.to_owned(), regex.clone());
        Ok(Self(regex))
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}
