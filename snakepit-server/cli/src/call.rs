//! `snakepit call` and `snakepit stream`.

mod arguments;
mod destination;
mod literal;
mod npy;
mod parameter;
mod result;

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use snakepit_proto::{headers, mux::MAX_ITEM_BYTES, pb, value};
use snakepit_server::{Reason, ToolSpec};
use snakepit_wire::spec_from_wire;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tonic::{Request, Status};

use self::{
    arguments::{Argument, Arguments},
    destination::{Destination, Writer},
};
use crate::{
    Failure,
    client::{Clock, ServerArgs, Stage},
    duration,
    live_call::{Answer, LiveCall, LiveEvent, error_message},
    output::{self, print, print_json, to_readable_json},
    serve::is_hang_up_ignored,
};

/// The text between the options and the exit codes in the help of both commands.
pub(crate) const HELP: &str = "\
Arguments of the tool:
  NAME=TEXT    a string, or a number, true or false if the tool declares that type
  NAME:=JSON   a value as JSON
  NAME=@FILE   the content of a file: bytes if the tool takes bytes, an array from a .npy
               file, otherwise text. For a parameter without a type, a file that is not
               UTF-8 is bytes
  NAME:=@FILE  the JSON in a file
  In place of a file, `-` is standard input. A string that begins with @ is NAME:='\"@text\"'.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print an object with the result, the worker id and the execution time, instead of the bare result. Bytes are base64.
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the result to this file, `-` for stdout: bytes as they are, an array if the file ends in .npy, and other values as
    /// JSON. Without this option, bytes and arrays are only described.
    #[arg(long, short, value_name = "FILE", value_parser = Destination::parse, conflicts_with = "json")]
    output: Option<Destination>,

    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StreamArgs {
    /// Print each chunk as an object with its id, data and metadata, instead of the bare data. Bytes are base64.
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the chunks to this file, `-` for stdout: bytes as they are, and other values as lines of JSON. Without this option,
    /// bytes and arrays are only described.
    #[arg(long, short, value_name = "FILE", value_parser = Destination::parse, conflicts_with = "json")]
    output: Option<Destination>,

    #[command(flatten)]
    call: CallArgs,
}

impl Args {
    pub(crate) fn start_clock(&mut self) -> Clock {
        self.call.start_clock()
    }
}

impl StreamArgs {
    pub(crate) fn start_clock(&mut self) -> Clock {
        self.call.start_clock()
    }
}

/// The options of both commands.
#[derive(Debug, clap::Args)]
struct CallArgs {
    /// The name of the tool. `snakepit tools` lists all tools.
    tool: String,

    /// Arguments of the tool: NAME=TEXT, NAME:=JSON, NAME=@FILE or NAME:=@FILE.
    #[arg(value_name = "ARGUMENT", value_parser = Argument::parse)]
    arguments: Vec<Argument>,

    /// Pass these arguments too, a JSON object with a value for each parameter. `@FILE` reads it from a file, and `-` from
    /// standard input.
    #[arg(long, value_name = "JSON", default_value = "{}", allow_hyphen_values = true)]
    args: String,

    /// Call the tool in this session, which is created if it does not exist.
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// Limit the duration of the call, including the wait for a worker: 700ms, 0.7s, 2m [default: set by the server].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// The end of the timeout, which also covers the connection and the opening of the session.
    #[arg(skip)]
    deadline: Option<Instant>,

    /// Show the output of the tool on stderr while it runs. The server sends it only to callers that may see tracebacks.
    #[arg(long)]
    logs: bool,

    /// Show the progress that the tool reports on stderr, even if stderr is not a terminal.
    #[arg(long)]
    progress: bool,

    #[command(flatten)]
    server: ServerArgs,
}

impl CallArgs {
    /// Computes the deadline, and returns the clock of the command.
    fn start_clock(&mut self) -> Clock {
        self.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.server.start_clock(self.timeout)
    }

    /// Reads the arguments of the tool, and checks that its result can be printed, before anything is sent.
    fn read_arguments(&self, output: Option<&Destination>) -> Result<Arguments, Failure> {
        if !matches!(output, Some(Destination::File(_))) {
            output::check()?;
        }
        Arguments::read(&self.args, &self.arguments)
    }

    /// Converts the arguments to the types of the tool, which the server knows.
    async fn request(
        &self,
        client: &mut Client,
        arguments: Arguments,
    ) -> Result<pb::ExecuteToolRequest, Failure> {
        let spec = match arguments.require_spec() {
            true => self.spec(client).await?,
            false => None,
        };
        let mut request = pb::ExecuteToolRequest {
            session_id: self.session.clone().unwrap_or_default(),
            tool_name: self.tool.clone(),
            ..pb::ExecuteToolRequest::default()
        };
        for (name, value) in arguments.into_values(spec.as_ref())? {
            let (any, buffer) = value::encode(value);
            if let Some(buffer) = buffer {
                request.binary_parameters.insert(name.clone(), buffer);
            }
            request.parameters.insert(name, any);
        }
        Ok(request)
    }

    /// The spec of the tool. `None` if the server does not list it, or does not let this client list its tools.
    async fn spec(&self, client: &mut Client) -> Result<Option<ToolSpec>, Failure> {
        let listed = match client.list_tools(self.with_timeout(pb::ListToolsRequest {})).await {
            Ok(listed) => listed,
            Err(status) => {
                let failure = self.server.status_failure(status);
                return match failure.reason() {
                    Some(Reason::AccessDenied) => Ok(None),
                    // The call itself was not sent.
                    _ => Err(failure.may_have_run(false)),
                };
            }
        };
        let specs = listed.into_inner().tools.into_iter().filter_map(|tool| tool.spec);
        Ok(specs.into_iter().find(|spec| spec.name == self.tool).map(spec_from_wire))
    }

    /// Creates a request whose timeout is the remaining time.
    fn with_timeout<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(deadline) = self.deadline {
            // The header cannot hold a longer timeout.
            let remaining = deadline.saturating_duration_since(Instant::now());
            request.set_timeout(remaining.min(headers::MAX_TIMEOUT));
        }
        request
    }

    /// Starts a call whose reports appear on stderr. Returns `None` if the user asks for no reports, or if the server cannot send them.
    async fn start_live(
        &self,
        client: &Client,
        request: &pb::ExecuteToolRequest,
        stream: bool,
    ) -> Result<Option<LiveCall>, Status> {
        let (logs, progress) = (self.logs, self.progress || std::io::stderr().is_terminal());
        let fits = snakepit_proto::Message::encoded_len(request) <= MAX_ITEM_BYTES;
        if !fits || !(logs || progress) {
            return Ok(None);
        }
        let remaining = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout_us =
            remaining.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
        let wanted = pb::CallReports { progress, logs };
        LiveCall::start(client.clone(), request.clone(), stream, timeout_us, wanted).await
    }

    /// Makes a unary call.
    async fn answer(&self, mut client: Client, request: pb::ExecuteToolRequest) -> Result<Answer, Status> {
        if let Some(mut live) = self.start_live(&client, &request, false).await? {
            loop {
                if let LiveEvent::End(reply) = live.next().await? {
                    return Answer::of(reply);
                }
            }
        }
        let response = client.execute_tool(self.with_timeout(request)).await?;
        let worker = response.metadata().get(headers::WORKER_ID).and_then(|id| id.to_str().ok());
        let worker = worker.unwrap_or_default().to_owned();
        Ok(Answer { response: response.into_inner(), worker })
    }

    async fn open_session(&self, client: &mut Client) -> Result<(), Failure> {
        let Some(session_id) = self.session.clone() else { return Ok(()) };
        let request = pb::InitializeSessionRequest { session_id, ..pb::InitializeSessionRequest::default() };
        self.server.enter(Stage::Session);
        client.initialize_session(self.with_timeout(request)).await.map_err(|status| {
            // The call itself was not sent.
            self.server.status_failure(status).may_have_run(false)
        })?;
        self.server.enter(Stage::Answer);
        Ok(())
    }
}

/// Returns the problem of a string that is not a JSON object, as a clause.
fn problem_of_arguments(json: &str, error: &serde_json::Error) -> String {
    match json.trim_start().bytes().next() {
        None => "it is empty".to_owned(),
        // The text begins with valid JSON of another type, so a position in it would not help.
        Some(first) if error.is_data() => {
            let kind = match first {
                b'[' => "a list",
                b'"' => "a string",
                b't' | b'f' => "a boolean",
                b'n' => "null",
                _ => "a number",
            };
            format!("it is {kind}")
        }
        Some(_) => match excerpt(json, error) {
            Some(text) => format!("{error}, near `{text}`"),
            None => error.to_string(),
        },
    }
}

/// The start of the text at which a JSON text is malformed. `None` if the text ends early.
fn excerpt<'a>(json: &'a str, error: &serde_json::Error) -> Option<&'a str> {
    const MAX_CHARS: usize = 24;
    if error.is_eof() {
        return None;
    }
    let line = json.lines().nth(error.line().checked_sub(1)?)?;
    let rest = line.get(error.column().checked_sub(1)?..)?;
    let end = rest.char_indices().nth(MAX_CHARS).map_or(rest.len(), |(end, _)| end);
    (!rest.is_empty()).then_some(&rest[..end])
}

type Client = pb::bridge_service_client::BridgeServiceClient<tonic::transport::Channel>;

/// The result of a call with `--json`. Prints the JSON of a tool unchanged, because a `serde_json::Value` rounds large numbers.
#[derive(Debug, Serialize)]
struct ResultLine<'a> {
    execution_time_ms: i64,
    result: &'a RawValue,
    worker: Option<&'a str>,
}

/// A chunk with `--json`.
#[derive(Debug, Serialize)]
struct ChunkLine<'a> {
    chunk_id: &'a str,
    data: &'a RawValue,
    metadata: &'a BTreeMap<String, String>,
}

pub(crate) async fn unary(Args { json, output, call }: Args) -> Result<(), Failure> {
    let arguments = call.read_arguments(output.as_ref())?;
    let mut client = call.server.connect().await?;
    let request = call.request(&mut client, arguments).await?;
    call.open_session(&mut client).await?;
    let answer = call.answer(client, request).await;
    let Answer { response, worker } = answer.map_err(|status| {
        let failure = call.server.status_failure(status);
        // For a unary call, this reason means that the tool streams, so the message names the other command.
        match failure.reason() {
            Some(Reason::Unsupported) => Failure::new(
                Reason::Unsupported,
                format!("tool `{0}` streams its results; use `snakepit stream {0}`", call.tool),
            )
            .may_have_run(failure.may_have_run),
            _ => failure,
        }
    })?;
    if !response.success {
        return Err(tool_failed(&call.tool, &response.error_message, response.failure));
    }
    let (value, buffer) = (response.result.unwrap_or_default(), response.binary_result);
    if let Some(destination) = output {
        let content = result::to_file(&destination, value, buffer)?;
        let write = async {
            let mut writer = destination.open()?;
            writer.write(&content)?;
            writer.finish()
        };
        // Does not wait, so a signal takes effect only after the write.
        return unless_stopped(destination.is_replaced(), write).await;
    }
    if !json && let Some(description) = result::describe_whole(&value, &buffer) {
        return print(&description);
    }
    let result = to_readable_json(value, buffer)?;
    if json {
        print_json(&ResultLine {
            execution_time_ms: response.execution_time_ms,
            result: &result,
            worker: (!worker.is_empty()).then_some(&*worker),
        })
    } else {
        print_json(&result::describe_nested(&result).unwrap_or(result))
    }
}

pub(crate) async fn stream(args: StreamArgs) -> Result<(), Failure> {
    let has_file = args.output.as_ref().is_some_and(Destination::is_replaced);
    unless_stopped(has_file, receive_stream(args)).await
}

/// Ends a command that replaces a file at a signal. Dropping the command removes its temporary file. Without such a file, installs no
/// handlers, because a signal ends a write to a pipe without a reader only then.
async fn unless_stopped(
    has_file: bool,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        // Installs the handlers before the command creates the file.
        biased;
        name = stop_signal(), if has_file => {
            let problem = format!("stopped by {name} before the result was complete");
            Err(Failure::new(Reason::Cancelled, problem).may_have_run(true))
        }
        ended = command => ended,
    }
}

/// Waits for a signal that ends a command, and returns its name.
async fn stop_signal() -> &'static str {
    // Under nohup, the command continues.
    let is_hang_up_ignored = is_hang_up_ignored();
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hang_up)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hang_up.recv(), if !is_hang_up_ignored => "SIGHUP",
    }
}

async fn receive_stream(StreamArgs { json, output, call }: StreamArgs) -> Result<(), Failure> {
    let arguments = call.read_arguments(output.as_ref())?;
    let mut client = call.server.connect().await?;
    let request = call.request(&mut client, arguments).await?;
    call.open_session(&mut client).await?;
    let mut chunks = Chunks { json, output, writer: None };
    let rejected = |status| call.server.status_failure(status);
    if let Some(mut live) = call.start_live(&client, &request, true).await.map_err(rejected)? {
        loop {
            match live.next().await.map_err(rejected)? {
                LiveEvent::Chunks(received) => {
                    live.display.clear();
                    received.iter().try_for_each(|chunk| chunks.print(chunk))?;
                    live.display.draw();
                }
                LiveEvent::End(pb::CallReply { failure: Some(failure), .. }) => {
                    return Err(tool_failed(&call.tool, &error_message(&failure), Some(*failure)));
                }
                LiveEvent::End(_) => return chunks.end(),
            }
        }
    }
    let mut stream =
        client.execute_streaming_tool(call.with_timeout(request)).await.map_err(rejected)?.into_inner();
    while let Some(chunk) = stream.message().await.map_err(rejected)? {
        if !(chunk.is_final && chunk.data.is_empty()) {
            chunks.print(&chunk)?;
        }
    }
    chunks.end()
}

/// The output of `snakepit stream`.
struct Chunks {
    json: bool,
    output: Option<Destination>,
    /// The open output. `None` before the first chunk.
    writer: Option<Writer>,
}

impl Chunks {
    fn print(&mut self, chunk: &pb::ToolChunk) -> Result<(), Failure> {
        let data: Box<RawValue> = serde_json::from_slice(&chunk.data).map_err(|e| {
            Failure::new(Reason::Rejected, format!("chunk `{}` is not JSON: {e}", chunk.chunk_id))
        })?;
        let json = self.json;
        match self.writer()? {
            Some(writer) => writer.write(&result::item_to_file(&data)?),
            None if json => {
                print_json(&ChunkLine { chunk_id: &chunk.chunk_id, data: &data, metadata: &chunk.metadata })
            }
            None => match result::describe_item(&data) {
                Some(description) => print(&description),
                None => print_json(&result::describe_nested(&data).unwrap_or(data)),
            },
        }
    }

    /// Opens the output at the first use, so that a rejected call leaves an existing file unchanged.
    fn writer(&mut self) -> Result<Option<&mut Writer>, Failure> {
        if let (Some(output), None) = (&self.output, &self.writer) {
            self.writer = Some(output.open()?);
        }
        Ok(self.writer.as_mut())
    }

    /// Ends the stream. Without chunks, the output is empty.
    fn end(mut self) -> Result<(), Failure> {
        self.writer()?;
        self.writer.map_or(Ok(()), Writer::finish)
    }
}

fn tool_failed(tool: &str, message: &str, failure: Option<pb::ToolFailure>) -> Failure {
    let failed = Failure::new(Reason::ToolFailed, format!("tool `{tool}` failed: {message}"));
    match failure {
        Some(failure) => failed.exception(failure),
        None => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::Entries;

    #[test]
    fn an_error_in_the_arguments_shows_its_position() {
        let excerpt_of = |json: &str| {
            let error = serde_json::from_str::<Entries<'_>>(json).unwrap_err();
            excerpt(json, &error).map(str::to_owned)
        };
        assert_eq!(excerpt_of("{a: 1}").as_deref(), Some("a: 1}"));
        assert_eq!(excerpt_of(r#"{"a": 1 "b": 2}"#).as_deref(), Some(r#""b": 2}"#));
        assert_eq!(excerpt_of("{\n\"a\": 1,\n}").as_deref(), Some("}"));
        assert_eq!(excerpt_of(r#"{"a": "#), None);
    }
    #[test]
    fn arguments_that_are_not_an_object_are_named_by_their_kind() {
        let problem_of =
            |json: &str| problem_of_arguments(json, &serde_json::from_str::<Entries<'_>>(json).unwrap_err());
        for (json, problem) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("null", "it is null"),
            (" [1, 2]", "it is a list"),
            (r#""text""#, "it is a string"),
            ("true", "it is a boolean"),
            ("false", "it is a boolean"),
            ("-1", "it is a number"),
            ("1.5e3", "it is a number"),
            ("nul", "EOF while parsing a value at line 1 column 3"),
            (r#"{"a": 1"#, "EOF while parsing an object at line 1 column 7"),
            (r#"{"é": nul}"#, "expected ident at line 1 column 11, near `}`"),
            ("{} x", "trailing characters at line 1 column 4, near `x`"),
        ] {
            assert_eq!(problem_of(json), problem, "{json:?}");
        }
    }
}
