//! Client-supplied regular expressions. A match takes time linear in the length of the text, with a bounded constant factor.

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

/// The maximum size of a compiled pattern in bytes.
const MAX_COMPILED_BYTES: usize = 1024 * 1024;
/// The maximum size in bytes of the lazy DFA in `regex`, which has a fallback.
const MAX_DFA_BYTES: usize = 256 * 1024;
/// The maximum size in bytes of the lazy DFA without a fallback.
const MAX_LAZY_DFA_BYTES: usize = 512 * 1024;
/// The maximum number of compiled patterns in the cache.
const CACHE_CAPACITY: usize = 128;

static CACHE: Mutex<Option<PatternCache>> = Mutex::new(None);

/// A valid pattern. Many sessions register the same variables, so compiled patterns are in a shared LRU cache and not in each
/// variable. Deserializing a variable does not compile its pattern.
#[derive(Debug)]
pub(super) struct Pattern(Box<str>);

impl Pattern {
    /// Compiles a pattern.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        compile_cached(pattern)?;
        Ok(Self(pattern.into()))
    }

    /// Wraps a pattern that was compiled before.
    pub(super) fn known(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Whether the text matches. `regex` may fall back to simulating the NFA, which takes one step per byte and NFA state.
    /// `steps` is the budget for the simulation. Above the budget, a lazy DFA without a fallback matches in linear time.
    ///
    /// # Errors
    /// Fails if the lazy DFA gives up, because the pattern is too complex for the text.
    pub(super) fn is_match(&self, text: &str, steps: &mut usize) -> Result<bool, String> {
        let compiled = compile_cached(&self.0)?;
        if let Some(remaining) = steps.checked_sub(compiled.states().saturating_mul(text.len())) {
            *steps = remaining;
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
        cache().get_or_insert_default().patterns.get(&self.0).map(|(compiled, _)| compiled.states())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug)]
struct CompiledPattern {
    regex: Regex,
    dfa: DFA,
}

impl CompiledPattern {
    fn new(pattern: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_DFA_BYTES)
            .build()
            .map_err(|error| format!("constraint `pattern` is not a valid regular expression: {error}"))?;
        let nfa = thompson::Config::new()
            .nfa_size_limit(Some(MAX_COMPILED_BYTES))
            .which_captures(WhichCaptures::None);
        let nfa = thompson::Compiler::new().configure(nfa).build(pattern);
        let nfa = nfa.map_err(|error| format!("constraint `pattern` cannot be used: {error}"))?;
        // A new DFA state costs up to one step per NFA state. The DFA gives up if it searches fewer bytes per new state than the
        // NFA has states, so the cost of new states stays linear in the length of the text.
        let config = DFA::config()
            .cache_capacity(MAX_LAZY_DFA_BYTES)
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

/// The LRU cache of compiled patterns.
#[derive(Debug, Default)]
struct PatternCache {
    /// The compiled patterns, each with the time of its last use.
    patterns: HashMap<Box<str>, (Arc<CompiledPattern>, u64)>,
    /// The number of uses so far, which serves as the clock.
    uses: u64,
}

impl PatternCache {
    fn get(&mut self, pattern: &str) -> Option<Arc<CompiledPattern>> {
        self.uses += 1;
        let (compiled, last_use) = self.patterns.get_mut(pattern)?;
        *last_use = self.uses;
        Some(Arc::clone(compiled))
    }

    fn insert(&mut self, pattern: &str, compiled: Arc<CompiledPattern>) {
        if self.patterns.len() >= CACHE_CAPACITY && !self.patterns.contains_key(pattern) {
            let oldest = self.patterns.iter().min_by_key(|(_, (_, last_use))| *last_use);
            if let Some(oldest) = oldest.map(|(pattern, _)| pattern.clone()) {
                self.patterns.remove(&oldest);
            }
        }
        self.uses += 1;
        self.patterns.insert(pattern.into(), (compiled, self.uses));
    }
}

fn cache() -> MutexGuard<'static, Option<PatternCache>> {
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the pattern from the cache, or compiles it.
fn compile_cached(pattern: &str) -> Result<Arc<CompiledPattern>, String> {
    if let Some(cached) = cache().get_or_insert_default().get(pattern) {
        return Ok(cached);
    }
    let compiled = Arc::new(CompiledPattern::new(pattern)?);
    cache().get_or_insert_default().insert(pattern, Arc::clone(&compiled));
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_evicts_the_least_recently_used_pattern() {
        let mut cache = PatternCache::default();
        let compiled = Arc::new(CompiledPattern::new("x").unwrap());
        for n in 0..CACHE_CAPACITY {
            cache.insert(&n.to_string(), Arc::clone(&compiled));
        }
        assert!(cache.get("0").is_some());
        cache.insert("one more", compiled);
        assert!(cache.get("0").is_some() && cache.get("one more").is_some());
        assert!(cache.get("1").is_none(), "it is the least recently used");
        assert_eq!(cache.patterns.len(), CACHE_CAPACITY);
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
        assert_eq!(steps, states, "the lazy DFA does not consume the budget");
    }
}
