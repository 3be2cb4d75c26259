//! Serves gRPC, from the registration with the host until SIGTERM.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use snakepit_proto::launch::ENV_STOP_GRACE;
use snakepit_registry::ToolSpec;
use snakepit_wire::spec_to_registration;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    backpressure::Backpressure,
    exit::exit_now,
    fork,
    host::Host,
    http2::configure_server,
    io::Io,
    open_streams::OpenStreams,
    service::{WorkerRoutes, WorkerService},
    telemetry,
    tools::PythonTools,
};

/// The default time that cancelled calls, and calls of a worker without a host, may continue after SIGTERM.
const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The part of the host's stop grace that is reserved for Python's finalization.
const FINALIZATION_RESERVE: Duration = Duration::from_secs(3);

/// The configuration of the server.
#[derive(Debug)]
pub(crate) struct ServeConfig {
    /// The host's address. `None` for a worker without a host, which does not register.
    pub(crate) host: Option<String>,
    /// The Unix socket to bind. `None` for TCP on loopback.
    pub(crate) socket: Option<PathBuf>,
    /// The TCP port. 0 selects a free one.
    pub(crate) port: u16,
    pub(crate) worker_id: String,
    /// The token that proves to the host that it launched this worker.
    pub(crate) token: Option<String>,
    pub(crate) specs: Vec<ToolSpec>,
    /// Whether the adapter serves calls of any name.
    pub(crate) serves_any_tool: bool,
}

/// A worker that is registered and listening.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) host: Option<Host>,
    /// `unix:/path` or `host:port`.
    pub(crate) address: String,
    pub(crate) port: u16,
    /// Notifies the server, by a message or by being dropped, that the executor has ended.
    pub(crate) executor_done: oneshot::Sender<()>,
    /// The server task.
    pub(crate) serving: JoinHandle<()>,
    /// The time of SIGTERM, once it has arrived.
    pub(crate) terminated_at: Arc<OnceLock<Instant>>,
}

enum Incoming {
    Unix(UnixListenerStream),
    Tcp(TcpIncoming),
}

/// The connection to the host, and the bound listener.
struct Prepared {
    host: Option<Host>,
    incoming: Incoming,
    address: String,
    port: u16,
}

/// Connects, registers and listens. Requests are served whenever the IO is driven.
///
/// # Errors
/// A sentence that names the problem.
pub(crate) async fn start(config: ServeConfig, tools: PythonTools, io: Io) -> Result<Ready, String> {
    let Prepared { host, incoming, address, port } = prepare(config, io).await?;
    let drain = if host.is_some() { Drain::UntilCancelled } else { Drain::Timed };
    let (executor_done, done) = oneshot::channel();
    // Installs the handlers now, because a host may send SIGTERM as soon as this worker is ready.
    let sigterm = [terminated(), terminated()];
    let backpressure = io.backpressure().clone();
    let terminated_at = Arc::new(OnceLock::new());
    let serving = serve(incoming, backpressure, tools, done, sigterm, drain, Arc::clone(&terminated_at));
    let serving = io.runtime().spawn(serving);
    Ok(Ready { host, address, port, executor_done, serving, terminated_at })
}

/// Connects to the host before it binds the socket, because clients may send calls once the socket exists.
async fn prepare(config: ServeConfig, io: Io) -> Result<Prepared, String> {
    let ServeConfig { host, socket, port, worker_id, token, specs, serves_any_tool } = config;
    let host = match host {
        Some(address) => {
            let host = Host::connect(&address, io).await?;
            let tools: Vec<_> = specs.into_iter().map(spec_to_registration).collect();
            // With a token, the registration also exchanges versions.
            if token.is_some() || !tools.is_empty() {
                host.register(tools, &worker_id, token, serves_any_tool).await?;
            }
            Some(host)
        }
        None => None,
    };
    if let Some(path) = socket {
        let listener = UnixListener::bind(&path)
            .map_err(|error| format!("cannot listen on socket `{}`: {error}", path.display()))?;
        fork::close_in_child(&listener);
        let address = format!("unix:{}", path.display());
        return Ok(Prepared {
            host,
            incoming: Incoming::Unix(UnixListenerStream::new(listener)),
            address,
            port: 0,
        });
    }
    let failed = |error: std::io::Error| format!("cannot listen on 127.0.0.1:{port}: {error}");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(failed)?;
    fork::close_in_child(&listener);
    let address = listener.local_addr().map_err(failed)?;
    let incoming = Incoming::Tcp(TcpIncoming::from(listener).with_nodelay(Some(true)));
    Ok(Prepared { host, incoming, address: address.to_string(), port: address.port() })
}

/// The time that SIGTERM leaves to the running call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// Until it ends or the host cancels it. A host that stops its workers cancels their calls first. SIGTERM from any other
    /// process, such as a service manager that signals the whole control group, must not end a call that the host lets
    /// finish.
    UntilCancelled,
    /// Half of the stop timeout, for a worker without a host.
    Timed,
}

/// Serves until SIGTERM, and then until the executor has finished the running call.
async fn serve(
    incoming: Incoming,
    backpressure: Backpressure,
    tools: PythonTools,
    mut executor_done: oneshot::Receiver<()>,
    [terminated, exit_signal]: [impl Future<Output = ()>; 2],
    drain: Drain,
    terminated_at: Arc<OnceLock<Instant>>,
) {
    let streams = OpenStreams::default();
    let service = WorkerRoutes::new(WorkerService::new(tools.clone(), streams.clone()));
    let server = configure_server(Server::builder());
    let stop_timeout = stop_timeout();
    // A call is cancelled after half of that time, which leaves it the other half for cleanup.
    let cancel_after = stop_timeout / 2;
    let stop = async {
        terminated.await;
        let _ = terminated_at.set(Instant::now());
        tools.close();
        let cancelled = async {
            match drain {
                Drain::UntilCancelled => std::future::pending().await,
                Drain::Timed => tokio::time::sleep(cancel_after).await,
            }
        };
        tokio::select! {
            biased;
            // An error means that the executor has ended, too.
            _ = &mut executor_done => {}
            () = cancelled => {
                tools.abandon_all();
                let _ = executor_done.await;
            }
        }
        streams.end();
        telemetry::end();
    };
    let serving = async {
        match incoming {
            Incoming::Unix(incoming) => {
                let incoming = incoming.map(|stream| {
                    stream.inspect(fork::close_in_child).map(|stream| backpressure.monitor(stream))
                });
                server.serve_with_incoming_shutdown(service, incoming, stop).await
            }
            Incoming::Tcp(incoming) => {
                let incoming = incoming.map(|stream| {
                    stream.inspect(fork::close_in_child).map(|stream| backpressure.monitor(stream))
                });
                server.serve_with_incoming_shutdown(service, incoming, stop).await
            }
        }
    };
    let stop_timed_out = async {
        exit_signal.await;
        if drain == Drain::UntilCancelled {
            tools.close();
            tools.ended_or_cancelled().await;
        }
        tokio::time::sleep(stop_timeout).await;
    };
    tokio::select! {
        // The server does not fail: an error of a connection ends only that connection.
        _ = serving => {}
        () = stop_timed_out => exit_now(0),
    }
}

/// Returns the time that cancelled calls, and calls of a worker without a host, may continue after SIGTERM. It is shorter than
/// the grace period after which the host kills this process.
pub(crate) fn stop_timeout() -> Duration {
    static TIMEOUT: OnceLock<Duration> = OnceLock::new();
    *TIMEOUT.get_or_init(|| {
        let millis = std::env::var(ENV_STOP_GRACE).ok().and_then(|millis| millis.parse().ok());
        let grace = millis.map(Duration::from_millis);
        grace.map_or(DEFAULT_STOP_TIMEOUT, |grace| grace - FINALIZATION_RESERVE.min(grace / 2))
    })
}

/// Waits for SIGTERM. Also notices a signal that arrives between this call and the first poll. Cancel safe.
fn terminated() -> impl Future<Output = ()> {
    let signal = signal(SignalKind::terminate());
    async move {
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            // Without the handler, SIGTERM ends the process by its default action.
            Err(_) => std::future::pending().await,
        }
    }
}
