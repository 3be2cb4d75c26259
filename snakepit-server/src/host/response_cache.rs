//! A cache for a response that depends only on the registry.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use snakepit_registry::Registry;

/// The encoded response to `InitializeSession`, with the revision of the registry from which it was encoded. The response describes
/// all tools, so it can take several MiB.
#[derive(Debug, Default)]
pub(crate) struct ResponseCache(Mutex<Option<(u64, Bytes)>>);

impl ResponseCache {
    /// Returns the cached response. If a tool has changed, encodes it again while other requests wait.
    pub(crate) fn get(&self, registry: &Registry, encode: impl FnOnce(&Registry) -> Bytes) -> Bytes {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The revision is read first, so that a change during the encoding invalidates the cached response.
        let revision = registry.revision();
        match &*cached {
            Some((cached_revision, encoded)) if *cached_revision == revision => encoded.clone(),
            _ => {
                let encoded = encode(registry);
                *cached = Some((revision, encoded.clone()));
                encoded
            }
        }
    }
}
