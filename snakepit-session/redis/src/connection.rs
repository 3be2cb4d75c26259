//! The connection to Redis. It reconnects automatically, and its errors name the address.

use std::time::Duration;

use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, ProtocolVersion, RedisError, RedisResult, Script,
    ServerErrorKind, ToRedisArgs, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, PubSub},
};
use snakepit_session::{SessionError, SessionId};

use super::{RedisConfig, start::StartError};

/// A connection that all callers share. It pipelines their commands.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    manager: ConnectionManager,
    /// The prefix of all keys and channels.
    root: String,
    /// The address without credentials.
    address: String,
    timeout: Duration,
}

impl Connection {
    pub(super) async fn connect(url: &str, config: &RedisConfig) -> Result<Self, StartError> {
        let invalid = |error: RedisError| {
            let problem = "not the URL of a Redis server, such as redis://localhost:6379";
            StartError::Fatal(SessionError::backend(problem).with_source(error))
        };
        let info = redis::IntoConnectionInfo::into_connection_info(url).map_err(invalid)?;
        let address = info.addr().to_string();
        let redis_error = |error: RedisError| StartError::of(&address, error);
        // RESP3 reports the end of a connection, so the client reconnects before the next command.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let db = settings.db();
        let client = Client::open(info.set_redis_settings(settings)).map_err(redis_error)?;
        // Fail fast while Redis is unreachable. The next command reconnects.
        let manager = ConnectionManagerConfig::new()
            .set_response_timeout(Some(config.timeout))
            .set_connection_timeout(Some(config.timeout))
            .set_number_of_retries(2)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(200));
        let manager =
            ConnectionManager::new_with_config(client.clone(), manager).await.map_err(redis_error)?;
        // All databases of a server share its pub/sub channels, so the prefix includes the database. The braces are a hash tag of
        // Redis Cluster.
        let prefix = &config.prefix;
        let root = if db == 0 { format!("{{{prefix}}}") } else { format!("{{{prefix}@{db}}}") };
        Ok(Self { client, manager, root, address, timeout: config.timeout })
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Prepares a call of a script, which [`ScriptCall::run`] executes.
    pub(super) fn call(&self, script: &'static Script) -> ScriptCall<'_> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(1).arg(&self.root);
        ScriptCall { connection: self, script, command }
    }

    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, SessionError> {
        let mut manager = self.manager.clone();
        command.query_async(&mut manager).await.map_err(|error| redis_error(&self.address, error))
    }

    /// Opens a separate connection for published messages.
    pub(super) async fn listen(&self) -> Result<PubSub, SessionError> {
        let connected = tokio::time::timeout(self.timeout, self.client.get_async_pubsub()).await;
        let Ok(connected) = connected else {
            return Err(self.problem(&format!("did not accept a connection within {:?}", self.timeout)));
        };
        connected.map_err(|error| redis_error(&self.address, error))
    }

    /// Converts a reply to `T`.
    pub(super) fn decode<T: FromRedisValue>(&self, value: Value) -> Result<T, SessionError> {
        redis::from_redis_value(value).map_err(|error| redis_error(&self.address, error.into()))
    }

    /// Returns the command that reads fields from a session's hash, or `None` if `fields` is empty.
    pub(super) fn read_fields(&self, hash: char, id: &SessionId, fields: &[String]) -> Option<Cmd> {
        let mut read = redis::cmd("HMGET");
        read.arg(format!("{}:{hash}:{id}", self.root)).arg(fields);
        (!fields.is_empty()).then_some(read)
    }

    /// Returns the command that reads the main hash of a session.
    pub(super) fn read_all_fields(&self, id: &SessionId) -> Cmd {
        let mut read = redis::cmd("HGETALL");
        read.arg(format!("{}:s:{id}", self.root));
        read
    }

    /// Creates the error of an operation that wrote nothing, with the address of the server.
    pub(super) fn not_written(&self, problem: &str) -> SessionError {
        SessionError::not_written(format!("redis at {}: {problem}", self.address))
    }

    /// Creates an error with the address of the server.
    pub(super) fn problem(&self, problem: &str) -> SessionError {
        SessionError::backend(format!("redis at {}: {problem}", self.address))
    }

    /// Creates an error with the address of the server and this cause.
    pub(super) fn redis_error(&self, error: RedisError) -> SessionError {
        redis_error(&self.address, error)
    }
}

/// A call of a script, with its arguments.
pub(super) struct ScriptCall<'a> {
    connection: &'a Connection,
    script: &'static Script,
    command: Cmd,
}

impl ScriptCall<'_> {
    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }

    pub(super) async fn run<T: FromRedisValue>(self) -> Result<T, SessionError> {
        let connection = self.connection;
        self.try_run().await.map_err(|error| redis_error(&connection.address, error))
    }

    /// Like [`run`](Self::run), but returns the original error.
    pub(super) async fn try_run<T: FromRedisValue>(self) -> Result<T, RedisError> {
        let Self { connection, script, command } = self;
        let mut manager = connection.manager.clone();
        match command.query_async(&mut manager).await {
            Err(error) if is_unknown_script(&error) => {
                script.load_async(&mut manager).await?;
                command.query_async(&mut manager).await
            }
            result => result,
        }
    }

    /// Runs the script, and then commands that read large values, which a script would copy several times.
    ///
    /// This is not a transaction, because Redis rejects transactions when it is out of memory, even those that only read. Other
    /// clients may therefore write in between.
    pub(super) async fn run_and_read<T: FromRedisValue>(
        self,
        reads: impl IntoIterator<Item = Cmd>,
    ) -> Result<(T, Vec<Value>), SessionError> {
        let Self { connection, script, command } = self;
        let mut manager = connection.manager.clone();
        let redis_error = |error: RedisError| redis_error(&connection.address, error);
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors().add_command(command);
        for read in reads {
            pipeline.add_command(read);
        }
        let mut replies: Vec<RedisResult<Value>> =
            pipeline.query_async(&mut manager).await.map_err(redis_error)?;
        if matches!(replies.first(), Some(Err(error)) if is_unknown_script(error)) {
            script.load_async(&mut manager).await.map_err(redis_error)?;
            replies = pipeline.query_async(&mut manager).await.map_err(redis_error)?;
        }
        let mut replies = replies.into_iter();
        let reply = replies.next().unwrap_or(Ok(Value::Nil)).map_err(redis_error)?;
        let reply = redis::from_redis_value(reply).map_err(|error| redis_error(error.into()))?;
        Ok((reply, replies.collect::<Result<_, _>>().map_err(redis_error)?))
    }
}

/// Returns whether Redis does not have the script, for example after a restart.
fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Converts an error of the client library.
fn redis_error(address: &str, error: RedisError) -> SessionError {
    SessionError::backend(format!("redis at {address}")).with_source(error)
}
