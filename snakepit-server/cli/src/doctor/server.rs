//! Checks of the port, and of a running server.

use std::{
    io::ErrorKind,
    time::{Duration, SystemTime},
};

use snakepit_proto::{launch::VERSION, pb};
use tokio::net::TcpListener;

use super::Check;
use crate::client::ServerArgs;

/// The clock difference between this machine and the server above which the check warns.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// Binds the port of the settings, and releases it.
pub(super) async fn port(listen: &str) -> Check {
    let fix = "stop the other program, or choose another port with --listen or $SNAKEPIT_LISTEN; port 0 selects a free one";
    match TcpListener::bind(listen).await {
        Ok(_) => Check::ok("port", format!("{listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let is_server = match ServerArgs::at(listen) {
                Some(server) => server.connect().await.is_ok(),
                None => false,
            };
            match is_server {
                true => Check::ok("port", format!("a running snakepit server uses {listen}")),
                false => Check::failed("port", format!("another program uses {listen}"), fix),
            }
        }
        Err(error) => {
            let fix = "choose an address of this machine with --listen or $SNAKEPIT_LISTEN";
            Check::failed("port", format!("cannot listen on {listen}: {error}"), fix)
        }
    }
}

/// Connects to the server of the commands. Without a server at the default address, there is nothing to check.
pub(super) async fn reachable(server: &ServerArgs) -> Check {
    let address = server.address();
    let mut client = match server.connect().await {
        Ok(client) => client,
        Err(failure) if server.is_default() => {
            return Check::skipped("server", format!("none answers at {address}: {}", failure.message));
        }
        Err(failure) => {
            let fix = "start it, or correct --server or $SNAKEPIT_SERVER";
            return Check::failed("server", failure.message, fix);
        }
    };
    let sent = SystemTime::now();
    let ping = client.ping(pb::PingRequest { message: "doctor".to_owned() }).await;
    let status = client.get_pool_status(pb::GetPoolStatusRequest {}).await;
    let (pong, status) = match (ping, status) {
        (Ok(pong), Ok(status)) => (pong.into_inner(), status.into_inner()),
        (Err(error), _) | (_, Err(error)) => {
            let fix = "see the log of the server";
            return Check::failed("server", format!("{address}: {}", error.message()), fix);
        }
    };
    let up = status.workers.iter().filter(|worker| worker.started_at.is_some()).count();
    let version = if pong.version.is_empty() { "an unknown version" } else { &pong.version };
    let evidence =
        format!("snakepit {version} answers at {address}, with {up} of {} workers up", status.workers.len());
    if pong.version != VERSION {
        let evidence = format!("{evidence}; this program is {VERSION}");
        return Check::warning("server", evidence, "install the same version on both sides");
    }
    if up == 0 && !status.workers.is_empty() {
        return Check::failed("server", evidence, "see the log of the server for the error of its workers");
    }
    let skew = pong
        .server_time
        .and_then(|time| SystemTime::try_from(time).ok())
        .map(|time| time.duration_since(sent).unwrap_or_else(|early| early.duration()));
    match skew {
        Some(skew) if skew > MAX_SKEW => {
            let evidence = format!("{evidence}, but its clock differs by {} s", skew.as_secs());
            Check::warning("server", evidence, "synchronize both clocks")
        }
        _ => Check::ok("server", evidence),
    }
}
