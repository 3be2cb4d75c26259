//! `snakepit restart`: the rolling restart of a server's workers.

use std::time::Duration;

use serde_json::json;
use snakepit_proto::pb::{self, bridge_service_client::BridgeServiceClient};
use snakepit_server::{Reason, ToolSpec};
use snakepit_wire::spec_from_wire;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    Failure,
    client::{Clock, ServerArgs},
    duration, output,
    tool_changes::ToolChanges,
};

/// The text between the options and the exit codes in the help.
pub(crate) const HELP: &str = "\
In each slot, the new worker is ready before the old one gets no more calls. Old workers
finish their calls, and sessions stay. If a new worker does not start, for example because
of an error in the adapter, the old workers keep serving, and the exit code is 5.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object with the number of workers, the seconds, and the changed tools.
    #[arg(long)]
    pub(crate) json: bool,

    /// Wait at most this long: 700ms, 30s, 2m. The restart continues afterwards [default: no limit].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,
}

impl Args {
    pub(crate) fn start_clock(&mut self) -> Clock {
        self.server.start_clock(self.timeout)
    }
}

pub(crate) async fn run(Args { json, server, .. }: Args) -> Result<(), Failure> {
    let mut client = server.connect().await?;
    let old_tools = tools(&server, &mut client).await?;
    let begin = Instant::now();
    let response = client.restart_workers(pb::RestartWorkersRequest {}).await;
    let response = response.map_err(|status| server.status_failure(status))?.into_inner();
    let pb::RestartWorkersResponse { success, error_message, traceback } = response;
    if !success {
        let message = format!("the old workers keep serving: {error_message}");
        return Err(Failure::new(Reason::CannotStart, message).traceback(traceback));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let changes = ToolChanges::diff(&old_tools, &tools(&server, &mut client).await?);
    let listed = client.list_workers(pb::ListWorkersRequest {}).await;
    let workers = listed.map_err(|status| server.status_failure(status))?.into_inner().workers.len();
    if json {
        return output::print_json(
            &json!({"workers": workers, "seconds": seconds, "tools": changes.to_json()}),
        );
    }
    let noun = if workers == 1 { "worker" } else { "workers" };
    output::print(&format!("replaced {workers} {noun} in {seconds:.1} s{changes}"))
}

async fn tools(
    server: &ServerArgs,
    client: &mut BridgeServiceClient<Channel>,
) -> Result<Vec<ToolSpec>, Failure> {
    let listed = client.list_tools(pb::ListToolsRequest {}).await;
    let listed = listed.map_err(|status| server.status_failure(status))?.into_inner();
    Ok(listed.tools.into_iter().filter_map(|tool| tool.spec).map(spec_from_wire).collect())
}
