//! Regular expressions from clients, which match in linear time with a bounded factor.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use regex::{Regex, RegexBuilder};
use regex_automata::{
    Input,
    hybrid::dfa::DFA,
    nfa::thompson::{self, WhichCaptures},
};

/// The maximum size of a compiled pattern in bytes, and of its lazy DFA.
const MAX_COMPILED: usize = 1024 * 1024;
const MAX_STATES: usize = 256 * 1024;
/// The same for a lazy DFA without a fallback.
const MAX_LAZY_STATES: usize = 512 * 1024;
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

    /// Whether the text matches. `regex` may fall back to simulating the NFA, which takes a step for each byte and NFA state;
    /// `steps` is the budget for that. Above it, a lazy DFA without a fallback matches in linear time.
    ///
    /// # Errors
    /// The lazy DFA gave up, because the pattern is too complex for the text.
    pub(super) fn is_match(&self, text: &str, steps: &mut usize) -> Result<bool, String> {
        let compiled = compiled(&self.0)?;
        if let Some(left) = steps.checked_sub(compiled.states().saturating_mul(text.len())) {
            *steps = left;
            return Ok(compiled.regex.is_match(text));
        }
        compiled.is_match_in_linear_time(text).ok_or_else(|| {
            format!(
                "value of {} bytes takes too long to match with pattern {}; simplify the pattern or shorten the value",
                text.len(),
                self.0
            )
        })
    }

    /// The number of NFA states, or `None` if the cache does not contain the pattern. Compiling takes milliseconds.
    pub(super) fn states(&self) -> Option<usize> {
        kept().get_or_insert_default().patterns.get(&self.0).map(|(compiled, _)| compiled.states())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug)]
struct Compiled {
    regex: Regex,
    dfa: DFA,
}

impl Compiled {
    fn new(pattern: &str) -> Result<Self, String> {
        let regex =
            RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_STATES).build().map_err(
                |error| format!("constraint `pattern` is not a valid regular expression: {error}"),
            )?;
        let nfa =
            thompson::Config::new().nfa_size_limit(Some(MAX_COMPILED)).which_captures(WhichCaptures::None);
        let nfa = thompson::Compiler::new().configure(nfa).build(pattern);
        let nfa = nfa.map_err(|error| format!("constraint `pattern` cannot be used: {error}"))?;
        // Each state of the DFA costs up to a step for each state of the NFA. It gives up unless it searches as many bytes.
        let config = DFA::config()
            .cache_capacity(MAX_LAZY_STATES)
            .skip_cache_capacity_check(true)
            .unicode_word_boundary(true)
            .minimum_cache_clear_count(Some(1))
            .minimum_bytes_per_state(Some(nfa.states().len()));
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa);
        let dfa = dfa.map_err(|error| format!("constraint `pattern` cannot be used: {error}"))?;
        Ok(Self { regex, dfa })
    }

    fn states(&self) -> usize {
        self.dfa.get_nfa().states().len()
    }

    /// Returns `None` if the lazy DFA gives up.
    fn is_match_in_linear_time(&self, text: &str) -> Option<bool> {
        let mut cache = self.dfa.create_cache();
        let found = self.dfa.try_search_fwd(&mut cache, &Input::new(text).earliest(true));
        found.ok().map(|found| found.is_some())
    }
}

/// The LRU cache.
#[derive(Debug, Default)]
struct Kept {
    /// The compiled patterns, each with the time of its last use.
    patterns: HashMap<Box<str>, (Arc<Compiled>, u64)>,
    uses: u64,
}

impl Kept {
    fn get(&mut self, pattern: &str) -> Option<Arc<Compiled>> {
        self.uses += 1;
        let (compiled, used) = self.patterns.get_mut(pattern)?;
        *used = self.uses;
        Some(Arc::clone(compiled))
    }

    fn insert(&mut self, pattern: &str, compiled: Arc<Compiled>) {
        if self.patterns.len() >= KEPT && !self.patterns.contains_key(pattern) {
            let oldest = self.patterns.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(pattern, _)| pattern.clone()) {
                self.patterns.remove(&oldest);
            }
        }
        self.uses += 1;
        self.patterns.insert(pattern.into(), (compiled, self.uses));
    }
}

fn kept() -> MutexGuard<'static, Option<Kept>> {
    COMPILED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn compiled(pattern: &str) -> Result<Arc<Compiled>, String> {
    if let Some(known) = kept().get_or_insert_default().get(pattern) {
        return Ok(known);
    }
    let compiled = Arc::new(Compiled::new(pattern)?);
    kept().get_or_insert_default().insert(pattern, Arc::clone(&compiled));
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patterns_used_last_are_kept() {
        let mut kept = Kept::default();
        let compiled = Arc::new(Compiled::new("x").unwrap());
        for n in 0..KEPT {
            kept.insert(&n.to_string(), Arc::clone(&compiled));
        }
        assert!(kept.get("0").is_some());
        kept.insert("one more", compiled);
        assert!(kept.get("0").is_some() && kept.get("one more").is_some());
        assert!(kept.get("1").is_none(), "it was not used for longest");
        assert_eq!(kept.patterns.len(), KEPT);
    }

    #[test]
    fn a_match_that_takes_more_than_linear_time_is_rejected() {
        let hostile = "^(?:|[ab]*a[ab]{900}[bd][ab]*)$";
        // Random letters, so that the DFA needs a new state for each byte.
        let mut bits = 1_u32;
        let text: String = std::iter::repeat_with(|| {
            bits ^= bits << 13;
            bits ^= bits >> 17;
            bits ^= bits << 5;
            if bits & 1 == 0 { 'a' } else { 'b' }
        })
        .take(100_000)
        .collect();
        let is_match = |pattern: &str, text: &str, steps: usize| {
            Pattern::new(pattern).unwrap().is_match(text, &mut { steps })
        };
        let problem = is_match(hostile, &text, 0).unwrap_err();
        assert!(problem.starts_with("value of 100000 bytes takes too long to match"), "{problem}");
        assert!(is_match(hostile, &text[..1000], usize::MAX).unwrap());
        for (pattern, text, matches) in [
            ("^[ab]+$", text.clone(), true),
            ("^[ab]+$", text + "c", false),
            (r"^[\w ]+$", "Grüße aus Köln ".repeat(10_000), true),
            (r"\bend$", "the ".repeat(10_000) + "end", true),
        ] {
            assert_eq!(is_match(pattern, &text, 0), Ok(matches), "{pattern}");
        }
    }

    #[test]
    fn a_match_consumes_the_budget_of_steps() {
        let pattern = Pattern::new("^a+$").unwrap();
        let states = pattern.states().unwrap();
        let mut steps = 3 * states;
        assert!(pattern.is_match("aa", &mut steps).unwrap());
        assert_eq!(steps, states);
        assert!(pattern.is_match("aa", &mut steps).unwrap());
        assert_eq!(steps, states, "the DFA consumes none");
    }
}
