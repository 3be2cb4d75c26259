//! The storage of the daemon's sessions, as `--sessions` selects it.

use std::{borrow::Cow, path::PathBuf, str::FromStr, sync::Arc};

use snakepit_session::{MemoryBackend, SessionBackend, SessionError, SessionLimits};

/// The value of `--sessions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionStorage {
    Memory,
    File(PathBuf),
    Redis(String),
}

impl FromStr for SessionStorage {
    type Err = String;

    fn from_str(location: &str) -> Result<Self, String> {
        match location.split_once(':') {
            None if location == "memory" => Ok(Self::Memory),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("redis" | "redis+unix", _)) => Ok(Self::Redis(location.to_owned())),
            Some(("rediss" | "valkeys", _)) => Err(
                "TLS is not supported; give `redis://` and the address of a TLS proxy on this machine, such as stunnel"
                    .to_owned(),
            ),
            _ => Err("it is `memory`, `file:PATH`, `redis://HOST:PORT` or `redis+unix:///PATH`".to_owned()),
        }
    }
}

/// A value of `--sessions` without its credentials and parameters, for error messages.
pub(crate) fn without_credentials(location: &str) -> Cow<'_, str> {
    // A path may contain any character.
    if location.starts_with("file:") {
        return Cow::Borrowed(location);
    }
    // Passwords may contain slashes and question marks.
    let scheme_end = location.find(':').map_or(0, |colon| {
        let rest = &location[colon + 1..];
        colon + 1 + rest.len() - rest.trim_start_matches('/').len()
    });
    let (scheme, rest) = location.split_at(scheme_end);
    let (credentials, address) = rest.rsplit_once('@').map_or(("", rest), |(_, address)| ("***@", address));
    let (address, parameters) =
        address.split_once('?').map_or((address, ""), |(address, _)| (address, "?***"));
    Cow::Owned(format!("{scheme}{credentials}{address}{parameters}"))
}

impl SessionStorage {
    /// Opens the storage.
    ///
    /// # Errors
    /// The file or the Redis server cannot be used, or this build lacks the backend.
    pub(crate) async fn open(self, limits: SessionLimits) -> Result<Arc<dyn SessionBackend>, SessionError> {
        match self {
            Self::Memory => Ok(Arc::new(MemoryBackend::new(limits))),
            #[cfg(feature = "redb")]
            Self::File(path) => {
                let shown = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
                let backend = snakepit_session_redb::RedbBackend::open(path, limits).await?;
                let live = backend.stats().await?.live;
                tracing::info!(file = %shown.display(), sessions = live, "sessions are kept in a file");
                Ok(Arc::new(backend))
            }
            #[cfg(feature = "redis")]
            Self::Redis(url) => {
                let config = snakepit_session_redis::RedisConfig::default();
                Ok(Arc::new(snakepit_session_redis::RedisBackend::connect(&url, config, limits).await?))
            }
            #[cfg(not(all(feature = "redb", feature = "redis")))]
            Self::File(_) | Self::Redis(_) => Err(SessionError::backend(
                "this daemon was built without it; build with the features `redb` and `redis`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_messages_show_no_credentials() {
        for (location, shown) in [
            ("disk", "disk"),
            ("file:/srv/a@b?.redb", "file:/srv/a@b?.redb"),
            ("redsi://:secret@host:1/2", "redsi://***@host:1/2"),
            ("redis://user:se?cr@et/@host", "redis://***@host"),
            ("redis:secret@host", "redis:***@host"),
            ("redis+unix:///run/redis.sock?password=secret", "redis+unix:///run/redis.sock?***"),
            ("secret@host", "***@host"),
        ] {
            assert_eq!(without_credentials(location), shown);
        }
    }

    #[test]
    fn the_scheme_selects_the_backend() {
        assert_eq!("memory".parse(), Ok(SessionStorage::Memory));
        assert_eq!("file:/a:b".parse(), Ok(SessionStorage::File("/a:b".into())));
        assert_eq!("redis://h:1/2".parse(), Ok(SessionStorage::Redis("redis://h:1/2".to_owned())));
        for bad in ["", "disk", "file:", "http://h", "memory:x"] {
            assert!(bad.parse::<SessionStorage>().unwrap_err().contains("file:PATH"), "{bad}");
        }
        assert!("rediss://h".parse::<SessionStorage>().unwrap_err().contains("TLS proxy"));
    }
}
