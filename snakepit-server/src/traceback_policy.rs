//! [`TracebackPolicy`]: the principals whose errors include tracebacks.

use std::{fmt, sync::Arc};

use snakepit_registry::{Principal, guard::catch};

/// The principals whose errors include the internals of tools: tracebacks, notes, causes, members of exception groups, and output of
/// workers. They reveal code and paths.
///
/// All principals receive the type, the message, the code, the data, the arguments and the published attributes of an exception.
/// The program that embeds the host, workers and their tools always receive everything.
///
/// ```
/// use snakepit_server::{Principal, TracebackPolicy};
///
/// let alice = Principal::new("alice", "oidc").with_grants(["debug"]);
/// assert!(!TracebackPolicy::Local.shows_to(&alice));
/// assert!(TracebackPolicy::when(|principal| principal.has_grant("debug")).shows_to(&alice));
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum TracebackPolicy {
    /// [Local](Principal::is_local) clients. The default.
    #[default]
    Local,
    /// All clients.
    Always,
    /// No client.
    Never,
    /// The clients that a function selects. See [`when`](Self::when).
    When(Arc<dyn Fn(&Principal) -> bool + Send + Sync>),
}

impl TracebackPolicy {
    /// Creates a policy from a function. The host calls it in the task of each request, so it must return quickly. If it
    /// panics, the error has no internals.
    pub fn when(shows_to: impl Fn(&Principal) -> bool + Send + Sync + 'static) -> Self {
        Self::When(Arc::new(shows_to))
    }

    /// Whether errors for this principal include internals.
    #[must_use]
    pub fn shows_to(&self, principal: &Principal) -> bool {
        let is_internal = principal.is_program() || principal.worker_id().is_some();
        is_internal
            || match self {
                Self::Local => principal.is_local(),
                Self::Always => true,
                Self::Never => false,
                // A function that panics hides them.
                Self::When(shows_to) => catch(|| shows_to(principal)).unwrap_or(false),
            }
    }
}

impl fmt::Debug for TracebackPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "Local",
            Self::Always => "Always",
            Self::Never => "Never",
            Self::When(_) => "When(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_the_program_always_see_tracebacks() {
        let internal =
            [Principal::program(), Principal::worker("w".into()), Principal::remote().in_worker("w".into())];
        let clients = [Principal::user(1), Principal::loopback(), Principal::remote(), Principal::mounted()];
        for (policy, expected) in [
            (TracebackPolicy::Local, [true, true, false, false]),
            (TracebackPolicy::Always, [true; 4]),
            (TracebackPolicy::Never, [false; 4]),
            (
                TracebackPolicy::when(|principal| *principal == Principal::remote()),
                [false, false, true, false],
            ),
        ] {
            assert!(internal.iter().all(|principal| policy.shows_to(principal)), "{policy:?}");
            assert_eq!(
                clients.each_ref().map(|principal| policy.shows_to(principal)),
                expected,
                "{policy:?}"
            );
        }
    }
}
