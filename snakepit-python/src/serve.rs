//! Serving gRPC: from the first word to the host until SIGTERM.

use std::{future::Future, path::PathBuf, time::Duration};

use snakepit_proto::{
    MAX_MESSAGE_BYTES, launch::ENV_STOP_GRACE, pb::bridge_service_server::BridgeServiceServer,
};
use snakepit_registry::ToolSpec;
use snakepit_wire::spec_to_registration;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    fork, host::Host, io::Io, outflow::Outflow, service::WorkerService, tools::PythonTools, windows,
};

/// How long a running call may go on after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// How much of the time that the host gives is left for Python's own end, after the last call.
const FOR_PYTHON: Duration = Duration::from_secs(3);

/// What serving needs to know.
#[derive(Debug)]
pub(crate) struct ServeConfig {
    /// The host's address; without one there is nobody to register with.
    pub(crate) host: Option<String>,
    /// The socket to bind; without one, loopback TCP.
    pub(crate) socket: Option<PathBuf>,
    /// The TCP port; 0 takes a free one.
    pub(crate) port: u16,
    pub(crate) worker_id: String,
    /// Proves to the host that it launched this worker.
    pub(crate) token: Option<String>,
    pub(crate) specs: Vec<ToolSpec>,
}

/// A worker that is bound, listening and registered.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) host: Option<Host>,
    /// `unix:/path` or `host:port`.
    pub(crate) address: String,
    pub(crate) port: u16,
    /// Dropped, or sent to, when the executor is done.
    pub(crate) executor_done: oneshot::Sender<()>,
    /// Ends once nothing is served any more.
    pub(crate) serving: JoinHandle<()>,
}

enum Incoming {
    Unix(UnixListenerStream),
    Tcp(TcpIncoming),
}

struct Bound {
    host: Option<Host>,
    incoming: Incoming,
    address: String,
    port: u16,
}

/// Connects, registers and listens. What arrives is served from then on, whenever the IO is driven.
///
/// # Errors
/// One line that says what is in the way.
pub(crate) async fn start(config: ServeConfig, tools: PythonTools, io: Io) -> Result<Ready, String> {
    let Bound { host, incoming, address, port } = prepare(config, io).await?;
    let (executor_done, done) = oneshot::channel();
    // Who hears that this worker is ready may ask it to stop.
    let asked_to_stop = [terminated(), terminated()];
    let outflow = io.outflow().clone();
    let serving = io.runtime().spawn(serve(incoming, outflow, tools, done, asked_to_stop));
    Ok(Ready { host, address, port, executor_done, serving })
}

/// First the host, then the socket: who can dial this worker may call it.
async fn prepare(config: ServeConfig, io: Io) -> Result<Bound, String> {
    let ServeConfig { host, socket, port, worker_id, token, specs } = config;
    let host = match host {
        Some(address) => {
            let host = Host::connect(&address, io).await?;
            let tools: Vec<_> = specs.into_iter().map(spec_to_registration).collect();
            // With a token the registration is also where the two tell each other their versions.
            if token.is_some() || !tools.is_empty() {
                host.register(tools, &worker_id, token).await?;
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
        return Ok(Bound {
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
    Ok(Bound { host, incoming, address: address.to_string(), port: address.port() })
}

/// Serves until SIGTERM, and then until the executor has finished what it runs.
async fn serve(
    incoming: Incoming,
    outflow: Outflow,
    tools: PythonTools,
    mut executor_done: oneshot::Receiver<()>,
    [asked_to_stop, asked_long_ago]: [impl Future<Output = ()>; 2],
) {
    let done = CancellationToken::new();
    let service = BridgeServiceServer::new(WorkerService::new(tools.clone(), done.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = windows::of_server(Server::builder());
    let stop_within = stop_within();
    // It is cancelled halfway, so that it may clean up in the rest.
    let cancel_after = stop_within / 2;
    let stop = async {
        asked_to_stop.await;
        tools.close();
        // An error of it means that the executor is gone, which is what is waited for.
        if tokio::time::timeout(cancel_after, &mut executor_done).await.is_err() {
            tools.abandon_all();
            let _ = executor_done.await;
        }
        done.cancel();
    };
    let serving = async {
        match incoming {
            Incoming::Unix(incoming) => {
                let incoming = incoming
                    .map(|stream| stream.inspect(fork::close_in_child).map(|stream| outflow.watch(stream)));
                server.serve_with_incoming_shutdown(service, incoming, stop).await
            }
            Incoming::Tcp(incoming) => {
                let incoming = incoming
                    .map(|stream| stream.inspect(fork::close_in_child).map(|stream| outflow.watch(stream)));
                server.serve_with_incoming_shutdown(service, incoming, stop).await
            }
        }
    };
    let late = async {
        asked_long_ago.await;
        tokio::time::sleep(stop_within).await;
    };
    tokio::select! {
        // Connections are the only thing that can fail here, and each of them fails alone.
        _ = serving => {}
        () = late => exit_now(0),
    }
}

/// How long a running call may go on after SIGTERM: less than what the host gives before it kills.
fn stop_within() -> Duration {
    let grace =
        std::env::var(ENV_STOP_GRACE).ok().and_then(|millis| millis.parse().ok()).map(Duration::from_millis);
    grace.map_or(STOP_WITHIN, |grace| grace - FOR_PYTHON.min(grace / 2))
}

/// Waits for SIGTERM, counting from when this is called. Cancel safe.
fn terminated() -> impl Future<Output = ()> {
    let signal = signal(SignalKind::terminate());
    async move {
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            // Without the handler SIGTERM ends the process by its default.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Ends the process although a tool still runs, or may never have meant to come this far.
#[allow(unsafe_code)]
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and touches no memory of this process. Nothing of Python's or Rust's own
    // clean-up runs, which is the point: it would wait for the tool.
    unsafe { nix::libc::_exit(code) }
}
