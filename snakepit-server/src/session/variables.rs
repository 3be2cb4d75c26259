//! The variables of a session, as a program holds them.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream, PollNext},
};
use serde::{Serialize, de::DeserializeOwned};
use snakepit_registry::ToolError;
use snakepit_session::{
    Batch, NewVariable, Note, Payload, SessionError, SetVariable, Variable, VariableId, VariableName,
    VariableType, VariableVersion, WatchEvent,
};
use tokio::time::Instant;

use super::SessionHandle;
use crate::{Error, call::Target};

/// How long [`SessionHandle::update`] tries before it gives up. With each failure somebody else succeeded.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many attempts the longest pause between two of them takes at most. All who write wait for as long on average, so none
/// falls behind because it has lost more often.
const MAX_PAUSE: u32 = 16;

/// What an attempt takes at least, for pauses.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// A random number from 0 to 1.
fn random_fraction() -> f64 {
    // Each such state has other random keys.
    let random = RandomState::new().hash_one(());
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

impl SessionHandle {
    /// Registers a variable with its first value, which becomes version 0, and returns its id.
    ///
    /// # Errors
    /// [`Error::Session`] when the name is odd or taken, the value outside the type, or the session full or gone;
    /// [`Error::Payload`] when the value does not serialize.
    pub async fn register(
        &self,
        name: &str,
        ty: Arc<VariableType>,
        value: impl Serialize,
    ) -> Result<VariableId, Error> {
        let value = Payload::try_from_serde(&value)?;
        self.register_with(name, NewVariable { ty, value, note: Note::default() }).await
    }

    /// Registers a variable with a note, or with a raw buffer such as a [`Payload::tensor`] for its first value.
    ///
    /// # Errors
    /// [`Error::Session`] as for [`register`](Self::register).
    pub async fn register_with(&self, name: &str, new: NewVariable) -> Result<VariableId, Error> {
        let name = VariableName::try_new(name)?;
        match &self.target {
            Target::Host(host) => Ok(host.sessions.register_variable(&self.id, &name, new).await?.id),
            Target::Remote(remote) => remote.register_variable(&self.id, &name, new).await,
        }
    }

    /// Returns the value of a variable, by id or name: of a tensor or an embedding nested lists of numbers, whether it was
    /// written as such or as a raw buffer.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there; [`Error::Payload`] when the value does not fit `T`.
    pub async fn get<T: DeserializeOwned>(&self, identifier: &str) -> Result<T, Error> {
        Ok(self.variable(identifier).await?.value.to_serde()?)
    }

    /// Returns a variable, by id or name, with its version and all else that is known of it.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn variable(&self, identifier: &str) -> Result<Variable, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.variable(&self.id, identifier).await?),
            Target::Remote(remote) => remote.variable(&self.id, identifier).await,
        }
    }

    /// Lists the variables whose names match a pattern, ordered by name. `*` stands for any characters; an empty pattern
    /// lists all.
    ///
    /// # Errors
    /// [`Error::Session`] when the session is gone.
    pub async fn variables(&self, pattern: &str) -> Result<Vec<Variable>, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.list_variables(&self.id, pattern).await?),
            Target::Remote(remote) => remote.variables(&self.id, pattern).await,
        }
    }

    /// Writes a variable, by id or name, and returns its new version. Floats that may be NaN or infinite go by
    /// [`write`](Self::write) and [`Payload::float`].
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there, or the value outside its type;
    /// [`Error::Payload`] when the value does not serialize.
    pub async fn set(&self, identifier: &str, value: impl Serialize) -> Result<u32, Error> {
        self.write(SetVariable::new(identifier, Payload::try_from_serde(&value)?)).await
    }

    /// Writes a variable with conditions, a note, or a raw buffer, and returns its new version.
    ///
    /// # Errors
    /// [`Error::Session`]; [`SessionError::VersionConflict`] when the variable is not at the version expected.
    pub async fn write(&self, write: SetVariable) -> Result<u32, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.set_variable(&self.id, write).await?),
            Target::Remote(remote) => remote.set_variable(&self.id, write).await,
        }
    }

    /// Writes all of these or none, and returns the new versions in their order.
    ///
    /// # Errors
    /// [`Error::Session`]; [`SessionError::BatchRefused`] with everything that is wrong. [`Error::Refused`] when the
    /// notes differ and the host is elsewhere, as a batch has one on the wire.
    pub async fn write_all(&self, writes: Vec<SetVariable>) -> Result<Vec<u32>, Error> {
        let host = match &self.target {
            Target::Host(host) => host,
            Target::Remote(remote) => return remote.set_variables(&self.id, writes).await,
        };
        let versions = host.sessions.set_variables(&self.id, writes, Batch::Atomic).await?;
        Ok(versions.into_iter().collect::<Result<_, _>>()?)
    }

    /// Makes a variable's next value of its last one, and returns it. Nothing that others write meanwhile is lost: then the
    /// function is called again, with what they wrote. The value is written as by [`set`](Self::set); for floats that may become
    /// NaN or infinite, and for arrays that are to stay buffers, there is [`update_payload`](Self::update_payload).
    ///
    /// # Errors
    /// [`Error::Session`] and [`Error::Payload`] as for [`get`](Self::get) and [`set`](Self::set);
    /// [`SessionError::VersionConflict`] when others were faster for a minute.
    ///
    /// # Cancel safety
    /// The variable is written or not, never half.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        identifier: &str,
        mut next: impl FnMut(T) -> T,
    ) -> Result<T, Error> {
        let make = |seen: &Variable| {
            let value = next(seen.value.to_serde()?);
            Ok((Payload::try_from_serde(&value)?, value))
        };
        Ok(self.write_next(identifier, make).await?.1)
    }

    /// Makes a variable's next value of what it was, as a payload, and returns its new version. As
    /// [`update`](Self::update) does, it goes again when others were faster.
    ///
    /// # Errors
    /// As for [`update`](Self::update), and those of the function.
    ///
    /// # Cancel safety
    /// The variable is written or not, never half.
    pub async fn update_payload(
        &self,
        identifier: &str,
        mut next: impl FnMut(&Variable) -> Result<Payload, Error>,
    ) -> Result<u32, Error> {
        Ok(self.write_next(identifier, |seen| Ok((next(seen)?, ()))).await?.0)
    }

    async fn write_next<T>(
        &self,
        identifier: &str,
        mut make: impl FnMut(&Variable) -> Result<(Payload, T), Error>,
    ) -> Result<(u32, T), Error> {
        let began = Instant::now();
        let mut pause = 1;
        loop {
            let attempt = Instant::now();
            let seen = self.variable(identifier).await?;
            let (payload, value) = make(&seen)?;
            let write = SetVariable::new(seen.id.as_str(), payload).if_version(seen.version);
            match self.write(write).await {
                Err(Error::Session(SessionError::VersionConflict { .. }))
                    if began.elapsed() < UPDATE_TIMEOUT =>
                {
                    // At random, so that those who got into each other's way do not do so again.
                    let longest = attempt.elapsed().max(SHORTEST_PAUSE) * pause;
                    tokio::time::sleep(longest.mul_f64(random_fraction())).await;
                    pause = MAX_PAUSE.min(pause * 2);
                }
                written => return written.map(|version| (version, value)),
            }
        }
    }

    /// Deletes a variable, by id or name.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn delete_variable(&self, identifier: &str) -> Result<(), Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.delete_variable(&self.id, identifier).await.map(drop)?),
            Target::Remote(remote) => remote.delete_variable(&self.id, identifier).await,
        }
    }

    /// Returns the newest versions of a variable that are kept, newest first; at most `limit`, 0 for all.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn history(&self, identifier: &str, limit: usize) -> Result<Vec<VariableVersion>, Error> {
        match &self.target {
            Target::Host(host) => Ok(host.sessions.variable_history(&self.id, identifier, limit).await?),
            Target::Remote(remote) => remote.history(&self.id, identifier, limit).await,
        }
    }

    /// Gives a variable the value that it had at a version, as a new version.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there, or the version no longer kept.
    pub async fn rollback(&self, identifier: &str, version: u32) -> Result<Variable, Error> {
        match &self.target {
            Target::Host(host) => {
                Ok(host.sessions.rollback_variable(&self.id, identifier, version, Note::default()).await?)
            }
            Target::Remote(remote) => remote.rollback(&self.id, identifier, version).await,
        }
    }

    /// Watches variables, by id or name, or without any all that the session has or will have. `initial` begins with what
    /// they are now.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or one of the variables is not there.
    pub async fn watch(&self, identifiers: &[&str], initial: bool) -> Result<SessionWatch, Error> {
        let identifiers: Vec<_> = identifiers.iter().map(|&identifier| identifier.to_owned()).collect();
        let events = match &self.target {
            Target::Host(host) => {
                let watch = host.sessions.watch_variables(&self.id, &identifiers, initial).await?;
                let stopped = host.stop.clone().cancelled_owned();
                let end =
                    stream::once(stopped).map(|()| Err(ToolError::ShuttingDown { delivered: false }.into()));
                // Events first: what happened before the end still comes. Nothing comes after an error.
                let events = watch.map(|event| event.map_err(Error::from));
                until_error(stream::select_with_strategy(events, Box::pin(end), |(): &mut ()| PollNext::Left))
                    .boxed()
            }
            Target::Remote(remote) => remote.watch(&self.id, identifiers, initial).await?,
        };
        Ok(SessionWatch { events })
    }
}

/// Ends a stream after its first error, without waiting for anything more.
fn until_error<T>(
    stream: impl Stream<Item = Result<T, Error>> + Unpin,
) -> impl Stream<Item = Result<T, Error>> {
    stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let item = stream.next().await?;
        let rest = item.is_ok().then_some(stream);
        Some((item, rest))
    })
}

/// What a watch is made of.
pub(crate) type EventStream = BoxStream<'static, Result<WatchEvent, Error>>;

/// The changes of some variables of a session, as a stream: [`SessionHandle::watch`].
///
/// Every change comes once, in the order in which they happened. Nobody who writes waits for a watcher: one that falls too
/// far behind loses the oldest changes and is told how many ([`WatchEvent::Lost`]), at the place where they are missing. The
/// stream ends with an error when the session ends, the host shuts down or the connection to a host elsewhere is lost. A watch does not renew the session.
///
/// # Cancel safety
/// Dropping a future that waits for the next event loses nothing. Dropping the watch ends it.
pub struct SessionWatch {
    events: EventStream,
}

impl SessionWatch {
    /// Waits for the next event. `None` after the error that ends the watch.
    ///
    /// # Errors
    /// [`Error::Session`] once, when the session ended; [`ToolError::ShuttingDown`] when the host shuts down;
    /// [`Error::Unreachable`] when the connection is lost.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        self.events.next().await
    }
}

impl Stream for SessionWatch {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

impl fmt::Debug for SessionWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionWatch").finish_non_exhaustive()
    }
}
