//! The sources of errors: [`SharedError`] stores a source in a `Clone` error, and [`error_chain`] prints an error with all of its
//! sources.

use std::{error::Error, fmt, ops::Deref, sync::Arc};

/// An error of any type that clones share, as the source of an error that is `Clone`.
///
/// It dereferences to the error, so that you can downcast it. Two shared errors are equal if their messages are equal.
///
/// ```
/// use std::io;
///
/// use snakepit_session::SharedError;
///
/// let error = SharedError::new(io::Error::from(io::ErrorKind::NotFound));
/// assert!(error.clone().is::<io::Error>());
/// assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
/// ```
#[derive(Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

impl SharedError {
    /// Shares an error. A string becomes an error with this message.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self(error.into())
    }
}

impl Deref for SharedError {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl PartialEq for SharedError {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl Eq for SharedError {}

/// Displays an error with its sources: their messages, separated by `: `.
///
/// The message of an error describes only its own level, and [`source`](Error::source) returns the cause. Some errors of other
/// crates repeat their cause in the message. If the message contains the root cause, only the message is printed.
///
/// ```
/// use snakepit_session::{SessionError, error_chain};
///
/// let error = SessionError::backend("cannot open `s.redb`").with_source("permission denied");
/// assert_eq!(error.to_string(), "session backend failed: cannot open `s.redb`");
/// assert_eq!(error_chain(&error).to_string(), "session backend failed: cannot open `s.redb`: permission denied");
/// ```
#[must_use]
pub fn error_chain<'a>(error: &'a (dyn Error + 'static)) -> ErrorChain<'a> {
    ErrorChain(error)
}

/// An error with its sources, as [`error_chain`] displays them.
#[derive(Debug, Clone, Copy)]
pub struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = std::iter::successors(self.0.source(), |&cause| cause.source());
        let messages: Vec<String> =
            sources.map(ToString::to_string).filter(|message| !message.is_empty()).collect();
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        if messages.last().is_none_or(|root| last.contains(root)) {
            return Ok(());
        }
        for message in messages {
            // A transparent error has the message of its source.
            if !last.contains(&message) {
                write!(f, ": {message}")?;
                last = message;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Level {
        message: &'static str,
        #[source]
        cause: SharedError,
    }

    impl Level {
        fn new(message: &'static str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
            Self { message, cause: SharedError::new(cause) }
        }
    }

    #[test]
    fn a_chain_contains_each_cause_once() {
        let shown = |error: Level| error_chain(&error).to_string();
        assert_eq!(shown(Level::new("a", Level::new("b", "c"))), "a: b: c");
        assert_eq!(shown(Level::new("a", Level::new("b", ""))), "a: b", "an empty message adds nothing");
        assert_eq!(shown(Level::new("a: c", Level::new("b", "c"))), "a: c", "it names its root cause");
        assert_eq!(shown(Level::new("a", Level::new("a", "c"))), "a: c", "a transparent error");
        assert_eq!(shown(Level::new("a", Level::new("b: c", Level::new("c", "d")))), "a: b: c: d");
    }

    #[test]
    fn shared_errors_keep_their_type_and_compare_by_message() {
        let error = Level::new("a", io::Error::other("disk"));
        assert!(error.source().unwrap().is::<io::Error>());
        assert_eq!(error.cause, SharedError::new("disk"));
        assert_ne!(error.cause, SharedError::new("network"));
        assert_eq!(error.cause.to_string(), "disk");
    }
}
