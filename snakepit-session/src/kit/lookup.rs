//! The lookup of variables and programs, and the errors for missing ones.

use crate::{ProgramName, SessionError, SessionId, VariableId};

/// Returns the name of the variable with this id or name. An id contains the name, and no name looks like an id.
#[must_use]
pub fn variable_name_in(identifier: &str) -> &str {
    VariableId::name_in(identifier).unwrap_or(identifier)
}

/// The error for a missing variable.
#[must_use]
pub fn variable_not_found(id: &SessionId, identifier: &str) -> SessionError {
    SessionError::VariableNotFound { session: id.clone(), identifier: identifier.to_owned() }
}

/// The error for a program that is missing in a session, or among the global programs for `None`.
#[must_use]
pub fn program_not_found(session: Option<&SessionId>, name: &ProgramName) -> SessionError {
    match session {
        Some(id) => SessionError::ProgramNotFound { session: id.clone(), name: name.to_string() },
        None => SessionError::GlobalProgramNotFound { name: name.to_string() },
    }
}

/// Whether a name matches a pattern, in which `*` matches any characters. An empty pattern matches every name. Takes linear
/// time.
#[must_use]
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_characters() {
        for (pattern, name, matches) in [
            ("", "any", true),
            ("*", "any", true),
            ("any", "any", true),
            ("any", "anything", false),
            ("any*", "anything", true),
            ("*thing", "anything", true),
            ("a*t*g", "anything", true),
            ("a*t*h", "anything", false),
            ("*a*", "b", false),
            ("ab*ba", "aba", false),
            ("**", "x", true),
            ("x*", "x", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), matches, "{pattern} {name}");
        }
    }
}
