//! The readiness of a pool for calls.

use std::fmt;

/// Whether a pool serves calls, and with how many workers: `Pool::readiness`, and `Snakepit::readiness` of `snakepit_server`.
///
/// Serializes with the feature `serde` as a map with the key `state`, such as `{"state": "degraded", "up": 3,
/// "workers": 4}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "state", rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Readiness {
    /// A slot has not had a worker yet. Calls wait in the queue, or run on the workers that are up.
    #[non_exhaustive]
    Starting {
        /// The number of workers that are up.
        up: usize,
        /// The configured number of workers.
        workers: usize,
    },
    /// All workers are up.
    #[non_exhaustive]
    Ready {
        /// The number of workers.
        workers: usize,
    },
    /// The pool has started, but workers are missing: they exited or are being killed, and the pool replaces them. The
    /// pool serves calls unless no worker is up.
    #[non_exhaustive]
    Degraded {
        /// The number of workers that are up.
        up: usize,
        /// The configured number of workers.
        workers: usize,
    },
    /// The pool rejects new calls, because it is shutting down, has shut down, or its runtime has ended. This is final.
    Stopping,
}

impl Readiness {
    /// Whether the pool has started, at least one worker is up, and the pool is not shutting down. A pool without workers
    /// always serves calls until it shuts down. Health checks report this state as "serving".
    #[must_use]
    pub const fn serves_calls(self) -> bool {
        match self {
            Self::Ready { .. } => true,
            Self::Degraded { up, .. } => up > 0,
            Self::Starting { .. } | Self::Stopping => false,
        }
    }

    /// The readiness of a pool that accepts calls.
    pub(crate) const fn of_workers(all_have_started: bool, up: usize, workers: usize) -> Self {
        if !all_have_started {
            Self::Starting { up, workers }
        } else if up == workers {
            Self::Ready { workers }
        } else {
            Self::Degraded { up, workers }
        }
    }
}

impl fmt::Display for Readiness {
    /// For example `degraded (3 of 4 workers up)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { up, workers } => write!(f, "starting ({up} of {workers} workers up)"),
            Self::Ready { workers } => write!(f, "ready ({workers} of {workers} workers up)"),
            Self::Degraded { up, workers } => write!(f, "degraded ({up} of {workers} workers up)"),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn states_serialize_with_their_numbers() {
        let states = [
            (Readiness::of_workers(false, 1, 4), json!({"state": "starting", "up": 1, "workers": 4})),
            (Readiness::of_workers(true, 4, 4), json!({"state": "ready", "workers": 4})),
            (Readiness::of_workers(true, 3, 4), json!({"state": "degraded", "up": 3, "workers": 4})),
            (Readiness::Stopping, json!({"state": "stopping"})),
        ];
        for (state, expected) in states {
            assert_eq!(to_value(state).unwrap(), expected);
        }
        assert_eq!(Readiness::of_workers(true, 3, 4).to_string(), "degraded (3 of 4 workers up)");
        assert!(!Readiness::of_workers(true, 0, 4).serves_calls());
    }
}
