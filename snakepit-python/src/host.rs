//! The connection to the host: registration at the start, and the calls that tools make back to it.

use std::{future::Future, time::Duration};

use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES, Message,
    address::{Address, AddressError},
    headers, launch, pb,
    pb::bridge_service_client::BridgeServiceClient,
    status::check_request_size,
};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

mod error;

use self::error::unsent;
pub(crate) use self::error::{
    BrokenRuntimeError, CallCancelled, DeadlineExceededError, HostError, HostUnavailableError,
    InvalidArgumentError, NotFoundError, SnakepitError, ToolFailed, UnsupportedError, VariableNotFoundError,
    broke, from_batch, is_not_begun, is_refusal, preload, ran,
};
use crate::{caller::Caller, driver::Driver, fork, io::Io, windows};

/// How long a host may take to accept the worker's connection and to answer its first calls.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How often a request is sent whose connection breaks.
const ATTEMPTS: usize = 3;
/// The pause before the second attempt to connect; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// A client of the host, usable from any thread. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    client: BridgeServiceClient<Channel>,
    driver: Driver,
}

impl Host {
    pub(crate) fn new(channel: Channel, driver: Driver) -> Self {
        let client = BridgeServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, driver }
    }

    /// Connects and makes sure that the host answers.
    ///
    /// # Errors
    /// One line that names the address, when the host does not answer in time.
    pub(crate) async fn connect(address: &str, io: Io) -> Result<Self, String> {
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut pause = FIRST_PAUSE;
        let channel = loop {
            match connect(address, windows::of_client).await {
                Ok(channel) => break channel,
                Err(_) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    return Err(format!(
                        "cannot reach the host at `{address}`: {error}; is it still running?"
                    ));
                }
            }
        };
        let host = Self::new(channel, Driver::Io(io));
        let ping = pb::PingRequest { message: "worker".to_owned() };
        match timeout(CONNECT_WITHIN, host.client.clone().ping(ping)).await {
            Ok(Ok(_)) => Ok(host),
            Ok(Err(status)) => Err(format!("the host at `{address}` refused a ping: {}", status.message())),
            Err(_) => Err(format!("the host at `{address}` did not answer a ping within {CONNECT_WITHIN:?}")),
        }
    }

    /// Registers the tools of this worker, once.
    ///
    /// # Errors
    /// One line that says why the host refused.
    pub(crate) async fn register(
        &self,
        tools: Vec<pb::ToolRegistration>,
        worker_id: &str,
        token: Option<String>,
    ) -> Result<(), String> {
        let (worker_id, version) = (worker_id.to_owned(), launch::VERSION.to_owned());
        let identity = token.map(|token| pb::WorkerIdentity { token, version, protocol: launch::PROTOCOL });
        let request = pb::RegisterToolsRequest { session_id: String::new(), tools, worker_id, identity };
        match timeout(CONNECT_WITHIN, self.client.clone().register_tools(request)).await {
            Ok(Ok(answer)) => {
                let pb::RegisterToolsResponse { success, error_message, .. } = answer.into_inner();
                // A host of the original reports tools that it knows already as duplicates, which does no harm.
                if success || error_message.contains("duplicate_tool") {
                    Ok(())
                } else {
                    Err(format!("the host refused the adapter's tools: {error_message}"))
                }
            }
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => Err(status.message().to_owned()),
            Ok(Err(status)) => Err(format!("the host refused the adapter's tools: {}", status.message())),
            Err(_) => Err(format!("the host did not answer the registration within {CONNECT_WITHIN:?}")),
        }
    }

    /// The stubs.
    pub(crate) fn client(&self) -> BridgeServiceClient<Channel> {
        self.client.clone()
    }

    /// Who drives the connection.
    pub(crate) const fn driver(&self) -> Driver {
        self.driver
    }

    /// Makes one call to the host. It ends early when the caller's own call is cancelled or the time is up.
    /// Cancel safe, as far as the host is.
    ///
    /// A call that surely was not sent, because the connection broke before, is repeated on a new connection.
    pub(crate) async fn call<Q, A, F>(
        &self,
        caller: &Caller,
        message: Q,
        rpc: impl Fn(BridgeServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, HostError>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.ask(caller, message, caller.deadline(), unsent, rpc).await
    }

    /// Like [`call`](Self::call), for requests that change nothing: they are repeated whenever the connection breaks.
    pub(crate) async fn read<Q, A, F>(
        &self,
        caller: &Caller,
        message: Q,
        rpc: impl Fn(BridgeServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, HostError>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.ask(caller, message, caller.deadline(), broke, rpc).await
    }

    /// Like [`read`](Self::read), for requests that open a stream. The host is told no deadline, because the stream may last
    /// longer than its opening may take; who reads it ends it.
    pub(crate) async fn open<Q, A, F>(
        &self,
        caller: &Caller,
        message: Q,
        rpc: impl Fn(BridgeServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, HostError>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.ask(caller, message, None, broke, rpc).await
    }

    /// The deadline that the host is told of is the request's own; this side waits for the caller's.
    async fn ask<Q, A, F>(
        &self,
        caller: &Caller,
        message: Q,
        told: Option<Instant>,
        repeatable: impl Fn(&Status) -> bool,
        rpc: impl Fn(BridgeServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, HostError>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        caller.check()?;
        check_request_size(&message)?;
        let answer = async {
            let mut attempts = 1;
            loop {
                let mut request = Request::new(message.clone());
                caller.introduce(request.metadata_mut());
                if let Some(deadline) = told {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(HostError::Deadline);
                    }
                    request.set_timeout(left.min(headers::MAX_TIMEOUT));
                }
                match rpc(self.client.clone(), request).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if attempts < ATTEMPTS && repeatable(&status) => attempts += 1,
                    Err(status) => return Err(HostError::from(status)),
                }
            }
        };
        let answer = async {
            match caller.deadline() {
                Some(deadline) => timeout_at(deadline, answer).await.map_err(|_| HostError::Deadline)?,
                None => answer.await,
            }
        };
        tokio::select! {
            biased;
            error = caller.cancelled() => Err(error),
            answer = answer => answer,
        }
    }
}

/// Connects, with these settings.
///
/// # Errors
/// What is in the way.
pub(crate) async fn connect(
    address: &str,
    settings: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, String> {
    let text = |error: &dyn std::error::Error| {
        // tonic's own message is just "transport error".
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    };
    let target: Address = address.parse().map_err(|error: AddressError| error.problem().to_owned())?;
    match &target {
        Address::Unix(path) => {
            let path = path.clone();
            // The URI only fills the `:authority` header; a path in it would be refused by HTTP/2.
            let endpoint = settings(Endpoint::from_static("http://localhost"));
            let connector = service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.inspect(fork::close_in_child).map(TokioIo::new) }
            });
            endpoint.connect_with_connector(connector).await.map_err(|e| text(&e))
        }
        Address::Tcp(_) => {
            let endpoint = Endpoint::from_shared(target.to_string()).map_err(|e| text(&e))?;
            settings(endpoint).connect().await.map_err(|e| text(&e))
        }
    }
}
