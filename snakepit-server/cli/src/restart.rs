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
of an error in the adapter, the remaining old workers keep serving, and the exit code is 5.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object with the number of workers, the seconds, and the changed tools, which are null if this client may not
    /// see them.
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
    output::check()?;
    let mut client = server.connect().await?;
    let old_tools = tools(&server, &mut client).await?;
    let begin = Instant::now();
    let response = client.restart_workers(pb::RestartWorkersRequest {}).await;
    let response = response.map_err(|status| server.status_failure(status))?.into_inner();
    let pb::RestartWorkersResponse { success, error_message, traceback, replaced_workers } = response;
    if !success {
        let state = match replaced_workers {
            0 => "the old workers keep serving",
            _ => "the remaining old workers keep serving, with the old list of tools",
        };
        let message = format!("{state}: {error_message}");
        return Err(Failure::new(Reason::CannotStart, message).traceback(traceback));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let changes = match old_tools {
        Some(old_tools) => {
            tools(&server, &mut client).await?.map(|after| ToolChanges::diff(&old_tools, &after))
        }
        None => None,
    };
    if json {
        let tools = changes.map(|changes| changes.to_json());
        return output::print_json(&json!({"workers": replaced_workers, "seconds": seconds, "tools": tools}));
    }
    let count = match replaced_workers {
        1 => "1 worker".to_owned(),
        count => format!("{count} workers"),
    };
    let changes = changes.map_or_else(String::new, |changes| changes.to_string());
    output::print(&format!("replaced {count} in {seconds:.1} s{changes}"))
}

/// The tools of the server. `None` if it does not let this client list them.
async fn tools(
    server: &ServerArgs,
    client: &mut BridgeServiceClient<Channel>,
) -> Result<Option<Vec<ToolSpec>>, Failure> {
    let listed = client.list_tools(pb::ListToolsRequest {}).await;
    match listed.map_err(|status| server.status_failure(status)) {
        Ok(listed) => {
            let specs = listed.into_inner().tools.into_iter().filter_map(|tool| tool.spec);
            Ok(Some(specs.map(spec_from_wire).collect()))
        }
        // The restart itself does not depend on the list.
        Err(failure) if failure.reason() == Some(Reason::AccessDenied) => Ok(None),
        Err(failure) => Err(failure),
    }
}
