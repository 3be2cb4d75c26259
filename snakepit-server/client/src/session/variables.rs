//! The variables of a session: reads, writes, optimistic updates and watches.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{StreamExt, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{
    IntoVariableType, NewVariable, Note, Payload, SessionError, SessionId, SetVariable, Variable, VariableId,
    VariableName, VariableVersion, WatchEvent,
};
use tokio::time::Instant;

use super::SessionHandle;
use crate::{Error, EventStream, HostHandle, RemoteHost};

/// The time after which [`SessionHandle::update`] stops retrying. Each conflict means that another writer succeeded.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(60);

/// The upper limit of a backoff, as a multiple of the last attempt's duration. All writers reach the same limit, so a
/// writer that lost several times does not fall further behind.
const MAX_BACKOFF_FACTOR: u32 = 16;

/// The assumed minimum duration of an attempt.
const MIN_ATTEMPT: Duration = Duration::from_millis(1);

/// Returns a random number from 0 to 1.
fn random_fraction() -> f64 {
    // Each `RandomState` has different keys.
    let random = RandomState::new().hash_one(());
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

impl<H: HostHandle> SessionHandle<H> {
    /// Registers a variable and returns its id. `value` becomes version 0.
    ///
    /// ```no_run
    /// use snakepit_client::{Client, VariableType};
    ///
    /// # async fn example() -> Result<(), snakepit_client::Error> {
    /// let session = Client::connect("127.0.0.1:50051").await?.session("alice").await?;
    /// session.register("rate", VariableType::float().range(0.0..=1.0), 0.1).await?;
    /// session.register("name", VariableType::string().length(1..=80), "Alice").await?;
    /// session.register("size", VariableType::choice(["small", "large"]), "small").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Session`] if the type or the name is invalid, the name is taken, the value does not fit the type, or the session
    ///   is full or does not exist,
    /// - [`Error::Payload`] if the value does not serialize.
    pub async fn register(
        &self,
        name: &str,
        ty: impl IntoVariableType,
        value: impl Serialize,
    ) -> Result<VariableId, Error> {
        let (ty, value) = (ty.into_variable_type()?, Payload::try_from_serde(&value)?);
        self.register_with(name, NewVariable { ty, value, note: Note::default() }).await
    }

    /// Registers a variable with a note, or with a raw buffer such as a [`Payload::tensor`] as its first value.
    ///
    /// # Errors
    /// [`Error::Session`] as for [`register`](Self::register).
    pub async fn register_with(&self, name: &str, new: NewVariable) -> Result<VariableId, Error> {
        self.host().register_variable(self.id(), &VariableName::try_new(name)?, new).await
    }

    /// Returns the value of a variable, by id or name. `T` is the type of the value:
    /// `session.get::<serde_json::Value>("rate")` for any value that JSON can express. A tensor or an embedding becomes nested lists
    /// of numbers, even if it was written as a raw buffer. [`variable`](Self::variable) returns the buffer.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist; [`Error::Payload`] if the value does not fit `T`.
    pub async fn get<T: DeserializeOwned>(&self, identifier: &str) -> Result<T, Error> {
        Ok(self.variable(identifier).await?.value.to_serde()?)
    }

    /// Returns a variable with its version and metadata, by id or name.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist.
    pub async fn variable(&self, identifier: &str) -> Result<Variable, Error> {
        self.host().variable(self.id(), identifier).await
    }

    /// Lists the variables whose names match a pattern, ordered by name. `*` matches any characters; an empty pattern lists
    /// all variables.
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist.
    pub async fn variables(&self, pattern: &str) -> Result<Vec<Variable>, Error> {
        self.host().variables(self.id(), pattern).await
    }

    /// Writes a variable, by id or name, and returns its new version. For floats that may be NaN or infinite, use
    /// [`write`](Self::write) with [`Payload::float`].
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist, or the value does not fit the type;
    /// [`Error::Payload`] if the value does not serialize.
    pub async fn set(&self, identifier: &str, value: impl Serialize) -> Result<u32, Error> {
        self.write(SetVariable::new(identifier, Payload::try_from_serde(&value)?)).await
    }

    /// Writes a variable with an expected version, a note or a raw buffer, and returns its new version.
    ///
    /// # Errors
    /// [`Error::Session`]; in particular [`SessionError::VersionConflict`] if the variable is not at the expected version.
    pub async fn write(&self, write: SetVariable) -> Result<u32, Error> {
        self.host().set_variable(self.id(), write).await
    }

    /// Computes the next value of a variable from its current value, writes it, and returns it. The function names the type of
    /// the value: `session.update("count", |count: i64| count + 1)`. If another writer was faster,
    /// the handle calls the function again with the newer value, so no write is lost.
    ///
    /// The value is written as by [`set`](Self::set). Use [`update_payload`](Self::update_payload) for floats that may become
    /// NaN or infinite, and for arrays that stay buffers.
    ///
    /// # Errors
    /// [`Error::Session`] and [`Error::Payload`] as for [`get`](Self::get) and [`set`](Self::set);
    /// [`SessionError::VersionConflict`] after a minute of conflicts.
    ///
    /// # Cancel safety
    /// If the future is dropped, the variable has either the old or the new value.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        identifier: &str,
        mut next: impl FnMut(T) -> T,
    ) -> Result<T, Error> {
        let compute = |current: &Variable| {
            let value = next(current.value.to_serde()?);
            Ok((Payload::try_from_serde(&value)?, value))
        };
        Ok(self.compare_and_swap(identifier, compute).await?.1)
    }

    /// Computes the next value of a variable as a payload, writes it, and returns the new version. Retries conflicts like
    /// [`update`](Self::update).
    ///
    /// # Errors
    /// As for [`update`](Self::update), and the errors of the function.
    ///
    /// # Cancel safety
    /// If the future is dropped, the variable has either the old or the new value.
    pub async fn update_payload(
        &self,
        identifier: &str,
        mut next: impl FnMut(&Variable) -> Result<Payload, Error>,
    ) -> Result<u32, Error> {
        Ok(self.compare_and_swap(identifier, |current| Ok((next(current)?, ()))).await?.0)
    }

    /// Reads a variable, computes its next value, and writes it unless the variable has changed meanwhile. Retries conflicts with
    /// a random backoff.
    async fn compare_and_swap<T>(
        &self,
        identifier: &str,
        mut compute: impl FnMut(&Variable) -> Result<(Payload, T), Error>,
    ) -> Result<(u32, T), Error> {
        let start = Instant::now();
        let mut backoff_factor = 1;
        loop {
            let attempt_start = Instant::now();
            let current = self.variable(identifier).await?;
            let (payload, value) = compute(&current)?;
            let write = SetVariable::new(current.id.as_str(), payload).if_version(current.version);
            match self.write(write).await {
                Err(Error::Session(SessionError::VersionConflict { .. }))
                    if start.elapsed() < UPDATE_TIMEOUT =>
                {
                    // Jitter, so that writers that collided do not collide again.
                    let max_backoff = attempt_start.elapsed().max(MIN_ATTEMPT) * backoff_factor;
                    tokio::time::sleep(max_backoff.mul_f64(random_fraction())).await;
                    backoff_factor = MAX_BACKOFF_FACTOR.min(backoff_factor * 2);
                }
                result => return result.map(|version| (version, value)),
            }
        }
    }

    /// Deletes a variable, by id or name.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist.
    pub async fn delete_variable(&self, identifier: &str) -> Result<(), Error> {
        self.host().delete_variable(self.id(), identifier).await
    }

    /// Returns up to `limit` kept versions of a variable, newest first. A limit of 0 returns all of them.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist.
    pub async fn history(&self, identifier: &str, limit: usize) -> Result<Vec<VariableVersion>, Error> {
        self.host().history(self.id(), identifier, limit).await
    }

    /// Writes the value of an older version as a new version.
    ///
    /// # Errors
    /// [`Error::Session`] if the session or the variable does not exist, or the version is no longer kept.
    pub async fn rollback(&self, identifier: &str, version: u32) -> Result<Variable, Error> {
        self.host().rollback(self.id(), identifier, version).await
    }

    /// Watches variables, by id or name: `watch(["rate", "name"])`. Without identifiers it watches all variables, like
    /// [`watch_all`](Self::watch_all).
    ///
    /// ```no_run
    /// use snakepit_client::{Client, WatchEvent};
    ///
    /// # async fn example() -> Result<(), snakepit_client::Error> {
    /// let session = Client::connect("127.0.0.1:50051").await?.session("alice").await?;
    /// let mut watch = session.watch(["rate"]).with_initial().await?;
    /// while let Some(event) = watch.next().await {
    ///     if let WatchEvent::Update(update) = event? {
    ///         println!("version {}: {:?}", update.variable.version, update.variable.value);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch<I: Into<String>>(&self, identifiers: impl IntoIterator<Item = I>) -> WatchBuilder<H> {
        let identifiers = identifiers.into_iter().map(Into::into).collect();
        WatchBuilder {
            host: self.host().clone(),
            session: self.id().clone(),
            identifiers,
            include_initial: false,
        }
    }

    /// Watches all variables of the session, including later ones.
    pub fn watch_all(&self) -> WatchBuilder<H> {
        self.watch::<String>([])
    }
}

/// A builder of a watch, created by [`SessionHandle::watch`]. Awaiting it starts the watch.
#[derive(Debug, Clone)]
#[must_use = "a watch does not start until it is awaited"]
pub struct WatchBuilder<H = RemoteHost> {
    host: H,
    session: SessionId,
    identifiers: Vec<String>,
    include_initial: bool,
}

impl<H> WatchBuilder<H> {
    /// Starts the watch with the current values. Without this, it starts with the first change.
    pub const fn with_initial(mut self) -> Self {
        self.include_initial = true;
        self
    }
}

impl<H: HostHandle> IntoFuture for WatchBuilder<H> {
    /// # Errors
    /// [`Error::Session`] if the session or one of the variables does not exist.
    type Output = Result<SessionWatch, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { host, session, identifiers, include_initial } = self;
        Box::pin(async move {
            Ok(SessionWatch { events: host.watch(&session, identifiers, include_initial).await? })
        })
    }
}

/// A stream of changes to a session's variables: [`SessionHandle::watch`].
///
/// The watch delivers each change once and in order. Writers do not wait for watchers. A watcher that falls too far behind
/// loses the oldest changes, and receives [`WatchEvent::Lost`] with their number in their place.
///
/// The stream ends with an error when the session ends, the host shuts down, or the connection to a remote host fails. A watch
/// does not renew the session.
///
/// # Cancel safety
/// Dropping a future that waits for the next event does not lose an event. Dropping the watch ends it.
pub struct SessionWatch {
    events: EventStream,
}

impl SessionWatch {
    /// Waits for the next event. Returns `None` after the error that ended the watch.
    ///
    /// # Errors
    /// - [`Error::Session`] if the session ended,
    /// - [`ToolError::ShuttingDown`](snakepit_registry::ToolError::ShuttingDown) if the host shuts down,
    /// - [`Error::Unreachable`] if the connection failed.
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
