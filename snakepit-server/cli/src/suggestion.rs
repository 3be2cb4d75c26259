//! Suggestions for misspelled names.

/// The similarity from which a name counts as a misspelling of another.
const MIN_SIMILARITY: f64 = 0.8;

/// The known name that is most similar to an unknown one, if any is similar enough.
pub(crate) fn closest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |known: &str| strsim::jaro_winkler(unknown, known);
    known
        .filter(|known| similarity(known) >= MIN_SIMILARITY)
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}
