//! `snakepit call` and `snakepit stream`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::value::RawValue;
use snakepit_proto::{headers, pb, value};
use tokio::time::Instant;
use tonic::Request;

use crate::{
    Failure,
    client::{Server, refused},
    duration, exit,
    output::{print_json, readable},
};

/// The server's reason for refusing the way a tool is called.
const UNSUPPORTED: &str = "UNSUPPORTED";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print an object with the result, the worker and the tool's own time instead of the bare result.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    call: Call,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StreamArgs {
    /// Print each chunk as an object with its id, data and metadata instead of the bare data.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    call: Call,
}

impl Args {
    pub(crate) fn begin(&mut self) -> Option<Duration> {
        self.call.begin()
    }
}

impl StreamArgs {
    pub(crate) fn begin(&mut self) -> Option<Duration> {
        self.call.begin()
    }
}

/// What both commands take.
#[derive(Debug, clap::Args)]
struct Call {
    /// The tool's name; `snakepit tools` lists them.
    tool: String,

    /// The arguments, as a JSON object from parameter names to values.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    args: String,

    /// The session to call in; created if it does not exist.
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// How long the call may take, queueing included: 700ms, 0.7s, 2m [default: the server's].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// When that time is up; connecting and opening the session count.
    #[arg(skip)]
    deadline: Option<Instant>,

    #[command(flatten)]
    server: Server,
}

impl Call {
    /// Starts the clock, and says how long the command may take.
    fn begin(&mut self) -> Option<Duration> {
        self.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.timeout
    }

    fn request(&self) -> Result<pb::ExecuteToolRequest, Failure> {
        let arguments: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&self.args).map_err(|e| {
            Failure::new(
                exit::USAGE,
                format!("--args is not a JSON object: {e}; it looks like '{{\"a\": 1, \"b\": 2}}'"),
            )
        })?;
        let parameters = arguments.into_iter().map(|(name, json)| (name, any(&json))).collect();
        Ok(pb::ExecuteToolRequest {
            session_id: self.session.clone().unwrap_or_default(),
            tool_name: self.tool.clone(),
            parameters,
            ..pb::ExecuteToolRequest::default()
        })
    }

    /// A request that the server answers within what is left of the time.
    fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(deadline) = self.deadline {
            // A longer one does not fit into the header.
            let left = deadline.saturating_duration_since(Instant::now());
            request.set_timeout(left.min(headers::MAX_TIMEOUT));
        }
        request
    }

    async fn open_session(&self, client: &mut Client) -> Result<(), Failure> {
        let Some(session_id) = self.session.clone() else { return Ok(()) };
        let request = pb::InitializeSessionRequest { session_id, ..pb::InitializeSessionRequest::default() };
        client.initialize_session(self.timed(request)).await.map_err(refused)?;
        Ok(())
    }
}

type Client = pb::bridge_service_client::BridgeServiceClient<tonic::transport::Channel>;

fn any(json: &RawValue) -> pb::Any {
    let text = json.get();
    let type_name = value::infer_type(text.as_bytes()).unwrap_or("null").into();
    value::encode(value::TypedValue { type_name, json: text.to_owned().into(), binary: None }).0
}

pub(crate) async fn unary(Args { json, call }: Args) -> Result<(), Failure> {
    let request = call.request()?;
    let mut client = call.server.connect().await?;
    call.open_session(&mut client).await?;
    let response = client.execute_tool(call.timed(request)).await.map_err(|status| {
        let failure = refused(status);
        // The server says so in the words of the protocol, and of a unary call only if the tool streams.
        match failure.code.as_str() {
            UNSUPPORTED => Failure::new(
                exit::REFUSED,
                format!("tool `{0}` streams its results; use `snakepit stream {0}`", call.tool),
            )
            .code(UNSUPPORTED),
            _ => failure,
        }
    })?;
    let worker =
        response.metadata().get(headers::WORKER_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let response = response.into_inner();
    if !response.success {
        return Err(tool_failed(&call.tool, response));
    }
    let result = readable(response.result.unwrap_or_default(), response.binary_result)?;
    if json {
        print_json(&serde_json::json!({
            "result": result,
            "worker": worker,
            "execution_time_ms": response.execution_time_ms,
        }))
    } else {
        print_json(&result)
    }
}

pub(crate) async fn stream(StreamArgs { json, call }: StreamArgs) -> Result<(), Failure> {
    let request = call.request()?;
    let mut client = call.server.connect().await?;
    call.open_session(&mut client).await?;
    let mut chunks = client.execute_streaming_tool(call.timed(request)).await.map_err(refused)?.into_inner();
    while let Some(chunk) = chunks.message().await.map_err(refused)? {
        if chunk.is_final && chunk.data.is_empty() {
            continue;
        }
        let data: Box<RawValue> = serde_json::from_slice(&chunk.data).map_err(|e| {
            Failure::new(exit::REFUSED, format!("chunk `{}` is not JSON: {e}", chunk.chunk_id))
        })?;
        if json {
            print_json(&serde_json::json!({
                "chunk_id": chunk.chunk_id,
                "data": data,
                "metadata": chunk.metadata,
            }))?;
        } else {
            print_json(&data)?;
        }
    }
    Ok(())
}

fn tool_failed(tool: &str, response: pb::ExecuteToolResponse) -> Failure {
    let traceback = response.failure.map(|failure| failure.traceback).unwrap_or_default();
    Failure::new(exit::TOOL_FAILED, format!("tool `{tool}` failed: {}", response.error_message))
        .traceback(traceback)
}
