//! The addresses of a host: the one in use, and failover to the next one.

use std::{
    error::Error as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use snakepit_proto::{
    address::Address,
    identify::identify,
    pb, proxy,
    status::{SHUTTING_DOWN, details_of, root_cause},
};
use snakepit_registry::ToolError;
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};
use tonic::{Response, Status};

use super::{CallStream, Connection, MAX_ATTEMPTS, cause_of, connection_broke, rejection};
use crate::{Error, status::is_unreachable, transport::BridgeClient};

/// The advice for an address without `https://` whose server requires TLS.
const TLS_ADVICE: &str = "write `https://` before the address";

/// An address and its channel.
#[derive(Debug)]
pub(crate) struct Target {
    /// The address that errors show.
    address: String,
    /// The parsed address, to identify a server that is not a host. `None` for TLS, and for a service of the program.
    peer: Option<Address>,
    client: BridgeClient,
    /// Whether a host has answered at this address.
    has_answered: AtomicBool,
}

/// The failure to open a call stream at one address.
#[derive(Debug)]
pub(super) struct OpenFailure {
    target: usize,
    cause: Result<Status, Elapsed>,
}

impl Target {
    pub(crate) const fn new(address: String, peer: Option<Address>, client: BridgeClient) -> Self {
        Self { address, peer, client, has_answered: AtomicBool::new(false) }
    }

    /// Returns the problem of a failed connection. If another program answers at the address, describes that program instead.
    async fn describe(&self, problem: String, until: Instant) -> String {
        match &self.peer {
            Some(address) => {
                timeout_at(until, identify(address, TLS_ADVICE)).await.ok().flatten().unwrap_or(problem)
            }
            None => problem,
        }
    }
}

impl Connection {
    /// The time limit for connecting to one address: its share of the total.
    fn connect_share(&self) -> Duration {
        self.options.connect_timeout / u32::try_from(self.targets.len()).unwrap_or(u32::MAX)
    }

    /// Opens a call stream at the first address that accepts one, beginning with the one in use.
    pub(super) async fn open_call_stream(&self) -> Result<CallStream, Vec<OpenFailure>> {
        let (count, first) = (self.targets.len(), self.current.load(Ordering::Relaxed));
        let mut failures = Vec::new();
        for index in (0..count).map(|offset| (first + offset) % count) {
            match timeout(self.connect_share(), self.open_at(index)).await {
                Ok(Ok(stream)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(status)) => failures.push(OpenFailure { target: index, cause: Ok(status) }),
                Err(elapsed) => failures.push(OpenFailure { target: index, cause: Err(elapsed) }),
            }
        }
        Err(failures)
    }

    async fn open_at(&self, index: usize) -> Result<CallStream, Status> {
        let target = &self.targets[index];
        // A proxy accepts a stream even if its host is down, so a unary request comes first.
        if !target.has_answered.load(Ordering::Relaxed) {
            let ping = pb::PingRequest { message: "client".to_owned() };
            let mut attempts = 1;
            while let Err(status) = target.client.clone().ping(ping.clone()).await {
                if attempts == MAX_ATTEMPTS || !connection_broke(&status) {
                    return Err(proxy::clarify(status));
                }
                attempts += 1;
            }
            target.has_answered.store(true, Ordering::Relaxed);
        }
        CallStream::open(target.client.clone(), index, &self.close).await
    }

    /// Fails over to the next address, unless another request has already left this one.
    pub(super) fn leave(&self, index: usize) {
        let next = (index + 1) % self.targets.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The error of a call that found no usable stream.
    pub(super) fn reopen_error(&self, failures: &[OpenFailure]) -> ToolError {
        let mut statuses = failures.iter().filter_map(|failure| failure.cause.as_ref().ok());
        if let Some(rejected) = statuses.find_map(rejection) {
            return rejected;
        }
        let problem = |failure: &OpenFailure| match &failure.cause {
            Ok(status) => cause_of(status),
            Err(_) => format!("it did not answer within {:?}", self.connect_share()),
        };
        let problems = failures.iter().map(|failure| self.at_address(failure, problem(failure)));
        let reason = format!("the host cannot be reached: {}", problems.collect::<Vec<_>>().join("; "));
        ToolError::unavailable(reason)
    }

    /// The error of a client that could not connect. `start` is the time of the first attempt.
    pub(super) async fn connect_error(&self, mut failures: Vec<OpenFailure>, start: Instant) -> Error {
        let mut statuses = failures.iter().filter_map(|failure| failure.cause.as_ref().ok());
        if let Some(rejected) = statuses.find_map(rejection) {
            return rejected.into();
        }
        let until = start + self.options.connect_timeout;
        let mut problems = Vec::with_capacity(failures.len());
        for failure in &failures {
            let problem = match &failure.cause {
                Ok(status) => {
                    // A `String`, because a `&dyn Error` is not `Send` and cannot live across the await.
                    let cause = status.source().map(|cause| root_cause(cause).to_string());
                    match cause {
                        Some(cause) => self.targets[failure.target].describe(cause, until).await,
                        None => status.message().to_owned(),
                    }
                }
                Err(_) => format!("it did not answer within {:?}", self.connect_share()),
            };
            problems.push(self.at_address(failure, problem));
        }
        let addresses: Vec<_> = self.targets.iter().map(|target| target.address.as_str()).collect();
        let source = failures.pop().map(|last| match last.cause {
            Ok(status) => status.into(),
            Err(elapsed) => elapsed.into(),
        });
        Error::Connect { address: addresses.join(" or "), problem: problems.join("; "), source }
    }

    /// Prefixes a problem with its address if the client has several addresses.
    fn at_address(&self, failure: &OpenFailure, problem: String) -> String {
        if self.targets.len() == 1 {
            return problem;
        }
        format!("{}: {problem}", self.targets[failure.target].address)
    }

    /// Sends a request. If the address cannot be reached, or its host rejects the request because it shuts down, fails over to
    /// the next address. If `is_repeatable`, also repeats the request when its connection breaks.
    pub(super) async fn request<T, F>(
        &self,
        is_repeatable: bool,
        send: impl Fn(BridgeClient) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (mut attempts, mut addresses_left) = (1, self.targets.len() - 1);
        loop {
            let index = self.current.load(Ordering::Relaxed);
            match send(self.targets[index].client.clone()).await {
                Err(status)
                    if addresses_left > 0
                        && (is_unreachable(&status) || is_rejected_by_shutdown(&status)) =>
                {
                    addresses_left -= 1;
                    self.leave(index);
                }
                Err(status) if is_repeatable && attempts < MAX_ATTEMPTS && connection_broke(&status) => {
                    attempts += 1;
                }
                response => return response,
            }
        }
    }
}

/// Returns whether a host rejected a request because it shuts down.
fn is_rejected_by_shutdown(status: &Status) -> bool {
    let details = details_of(status);
    details.reason.as_deref() == Some(SHUTTING_DOWN) && details.cannot_have_run()
}
