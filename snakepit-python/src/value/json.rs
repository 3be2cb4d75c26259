//! Properties of the JSON form that reader and writer share.

/// The maximum nesting depth of values. Readers on the host and in clients support it.
pub(super) const MAX_DEPTH: usize = 127;

/// The key that marks a map as an envelope, which stands for bytes, an array or an escaped map.
pub(super) const ENVELOPE_KEY: &str = "__snakepit__";

/// The strings for floats that have no JSON number, inside other values, and their names in Python's JSON parser.
///
/// The protocol encodes these floats as strings. One letter is escaped to distinguish them from text: no JSON writer
/// escapes it by default, and every reader decodes it to the same string.
pub(super) const MARKED: [(&str, &str); 3] =
    [(r#""\u004eaN""#, "NaN"), (r#""-\u0049nfinity""#, "-Infinity"), (r#""\u0049nfinity""#, "Infinity")];
