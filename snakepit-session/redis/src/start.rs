//! Parses the URL, waits for a server that is starting, and checks its version and permissions.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use snakepit_session::{SessionError, error_chain};
use tokio::time::Instant;

use super::{RedisConfig, connection::Connection, scripts};

/// The oldest supported major version.
const OLDEST_VERSION: u32 = 7;
/// The delay between connection attempts.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// The reason why a server cannot be used.
#[derive(Debug)]
pub(super) enum StartError {
    /// The server is starting or not reachable yet.
    Retryable(SessionError),
    Fatal(SessionError),
}

impl StartError {
    pub(super) fn of(address: &str, error: RedisError) -> Self {
        use ServerErrorKind::{BusyLoading, MasterDown, TryAgain};
        let is_retryable = error.is_io_error()
            || error.is_timeout()
            || matches!(error.kind(), ErrorKind::Server(BusyLoading | MasterDown | TryAgain));
        let advice = match error.kind() {
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                "; it is a read-only replica, which cannot store sessions; use the address of its primary"
            }
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                "; sessions need a user with permission for scripts (EVALSHA, SCRIPT LOAD), the commands in them, and SUBSCRIBE"
            }
            ErrorKind::Parse => "; it is not a Redis server; check the port",
            _ if error.to_string().contains("user executing the script") => {
                "; sessions need a user with permission for the commands in the scripts, on all keys that begin with the prefix"
            }
            _ => "",
        };
        let problem = format!("redis at {address} cannot be used{advice}");
        let error = SessionError::backend(problem).with_source(error);
        if is_retryable { Self::Retryable(error) } else { Self::Fatal(error) }
    }
}

/// Connects to a server and waits while it is unreachable or loading.
pub(super) async fn connect(url: &str, config: &RedisConfig) -> Result<Connection, SessionError> {
    let (url, config) = parse_url(url, config)?;
    let deadline = Instant::now() + config.start_wait;
    let mut is_logged = false;
    loop {
        let error = match try_connect(&url, &config).await {
            Ok(connection) => return Ok(connection),
            Err(StartError::Fatal(error)) => return Err(error),
            Err(StartError::Retryable(error)) => error,
        };
        if Instant::now() + RETRY_DELAY > deadline {
            return Err(error);
        }
        if !std::mem::replace(&mut is_logged, true) {
            tracing::warn!(error = %error_chain(&error), seconds = config.start_wait.as_secs(), "waiting for redis");
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn try_connect(url: &str, config: &RedisConfig) -> Result<Connection, StartError> {
    let connection = Connection::connect(url, config).await?;
    let result: Result<u32, RedisError> = connection.call(&scripts::START).try_run().await;
    match result {
        Ok(_) => {}
        Err(error) if error.to_string().contains("OOM") => {
            tracing::warn!(redis = connection.address(), error = %error_chain(&error), "redis is out of memory: sessions can only be read and deleted");
        }
        Err(_) if is_sentinel(&connection).await => {
            let problem = "it is a Sentinel, which stores no data; use the address of the primary that it monitors, which \
                           `SENTINEL get-master-addr-by-name NAME` returns";
            return Err(StartError::Fatal(connection.problem(problem)));
        }
        Err(error) => return Err(StartError::of(connection.address(), error)),
    }
    // A user without permission for INFO may still use the server.
    if let Ok(info) = connection.query::<String>(&redis::cmd("INFO")).await {
        check_info(&connection, &info).map_err(StartError::Fatal)?;
    }
    Ok(connection)
}

async fn is_sentinel(connection: &Connection) -> bool {
    let info = connection.query::<String>(redis::cmd("INFO").arg("server")).await;
    info.is_ok_and(|info| info.contains("redis_mode:sentinel"))
}

fn check_info(connection: &Connection, info: &str) -> Result<(), SessionError> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let version = field("redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < OLDEST_VERSION) {
        return Err(connection.problem(&format!(
            "it is version {version}, and sessions need Redis {OLDEST_VERSION} or newer"
        )));
    }
    match field("maxmemory_policy") {
        Some(policy) if policy != "noeviction" => tracing::warn!(
            redis = connection.address(),
            policy,
            "redis may evict sessions when its memory is full: set `maxmemory-policy noeviction`"
        ),
        _ => {}
    }
    Ok(())
}

/// Splits the URL into an address for the client library and parameters of the configuration.
fn parse_url(url: &str, config: &RedisConfig) -> Result<(String, RedisConfig), SessionError> {
    let invalid = |problem: String| SessionError::backend(problem);
    let mut config = config.clone();
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    if address.starts_with("rediss:") || address.starts_with("valkeys:") {
        return Err(invalid(
            "rediss:// (TLS) is not supported; use redis:// and a TLS proxy on this machine, such as stunnel"
                .to_owned(),
        ));
    }
    let is_socket = address.starts_with("redis+unix:") || address.starts_with("unix:");
    let (mut client_parameters, mut names) = (Vec::new(), Vec::new());
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if names.contains(&name) {
            return Err(invalid(format!("the Redis URL has parameter `{name}` twice; give it once")));
        }
        names.push(name);
        match name {
            "prefix" => value.clone_into(&mut config.prefix),
            "db" | "user" | "pass" if is_socket => client_parameters.push(parameter),
            "protocol" => client_parameters.push(parameter),
            _ => {
                let known = if is_socket { "prefix, protocol, db, user, pass" } else { "prefix, protocol" };
                let problem =
                    format!("unknown parameter `{name}` in the Redis URL; the parameters are {known}");
                return Err(invalid(problem));
            }
        }
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@/".contains(c);
    if config.prefix.is_empty() || !config.prefix.chars().all(is_plain) {
        return Err(invalid(format!(
            "the Redis key prefix {:?} is invalid; use one or more letters, digits or -_.:@/ in `?prefix=` of the URL or \
             in `RedisConfig::prefix`",
            config.prefix
        )));
    }
    let url = if client_parameters.is_empty() {
        address.to_owned()
    } else {
        format!("{address}?{}", client_parameters.join("&"))
    };
    Ok((url, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_set_the_prefix_and_unknown_parameters_are_rejected() {
        let parse = |url: &str| parse_url(url, &RedisConfig::default());
        let (url, config) = parse("redis://h:1/2?prefix=shop-1").unwrap();
        assert_eq!((&*url, &*config.prefix), ("redis://h:1/2", "shop-1"));
        let (url, config) = parse("redis+unix:///s?db=1&prefix=a&user=u").unwrap();
        assert_eq!((&*url, &*config.prefix), ("redis+unix:///s?db=1&user=u", "a"));
        assert_eq!(parse("redis://h").unwrap().1.prefix, "snakepit");
        for (url, expected) in [
            ("redis://h?prefx=a", "`prefx`"),
            ("redis://h?db=1", "`db`"),
            ("redis://h?prefix=a&prefix=b", "`prefix` twice"),
            ("redis+unix:///s?db=1&prefix=a&db=1", "`db` twice"),
            ("redis://h?prefix=", "use one or more letters"),
            ("redis://h?prefix={a}", "use one or more letters"),
            ("rediss://h", "TLS"),
        ] {
            let problem = parse(url).unwrap_err().to_string();
            assert!(problem.contains(expected), "{url}: {problem}");
        }
    }
}
