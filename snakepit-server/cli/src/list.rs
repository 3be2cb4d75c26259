//! `snakepit status`, `workers`, `sessions` and `variables`, which print a table or lines of JSON.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use snakepit_proto::pb;
use snakepit_worker::escaping::escape;
use tonic::Status;

use crate::{
    Failure,
    client::{Clock, ServerArgs},
    duration, output,
};

/// Explains the columns of `snakepit workers`.
pub(crate) const WORKER_COLUMNS: &str = "\
Columns:
  WORKER    the id, POOL-SLOT-GENERATION: the third worker in slot 2 of the pool `default`
            is default-2-3. An id is never reused
  PID       the process id; empty, and null with --json, while no process runs
  STATE     starting, idle, busy, quarantined (until a cancelled call has ended),
            stopping or dead. A retired worker finishes its calls beside its replacement
  CALLS     the number of calls that ended in this slot, including failed ones
  RESTARTS  the number of times that the pool has replaced the worker in this slot
  UP        the time since this worker started";

/// Explains the columns of `snakepit status`.
pub(crate) const STATUS_COLUMNS: &str = "\
Columns:
  WORKERS    the number of workers that are up, and the number of slots
  QUEUED     the calls that wait for a worker
  WAITING    the calls that wait for room in the full queue
  IN FLIGHT  the calls that hold a worker
  The others count calls since the server started, by outcome. A retry of a call after its
  worker was lost counts as RETRIED. The object of --json also lists the workers";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object per line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Wait at most this long for the server: 700ms, 0.7s, 2m.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "30s")]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

impl Args {
    pub(crate) fn start_clock(&mut self) -> Clock {
        self.server.start_clock(Some(self.timeout))
    }

    pub(crate) fn rejection(&self, status: Status) -> Failure {
        self.server.status_failure(status)
    }

    /// Prints rows as a table with these column names, or as JSON objects.
    pub(crate) fn print(
        &self,
        heads: &[&str],
        rows: Vec<(Vec<String>, impl Serialize)>,
    ) -> Result<(), Failure> {
        if self.json {
            return rows.iter().try_for_each(|(_, object)| output::print_json(object));
        }
        // Rows that are written to a pipe or a file stay on one line.
        let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0);
        output::print(&table_of(heads, rows.into_iter().map(|(cells, _)| cells), width))
    }
}

/// Renders a table. Wraps its cells if it would be wider than `width` columns.
fn table_of(heads: &[&str], rows: impl Iterator<Item = Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads);
    table.add_rows(rows.map(|cells| cells.iter().map(|cell| escape(cell).into_owned()).collect::<Vec<_>>()));
    if let Some(width) = width {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.to_string()
}

pub(crate) async fn workers(args: Args) -> Result<(), Failure> {
    let workers = args
        .server
        .connect()
        .await?
        .list_workers(pb::ListWorkersRequest {})
        .await
        .map_err(|status| args.rejection(status))?;
    let pb::ListWorkersResponse { workers, retired_workers } = workers.into_inner();
    let workers = workers.into_iter().map(|worker| worker_row(worker, false));
    let rows = workers.chain(retired_workers.into_iter().map(|worker| worker_row(worker, true)));
    args.print(&["WORKER", "PID", "STATE", "CALLS", "RESTARTS", "UP", "LAST END"], rows.collect())
}

fn worker_row(worker: pb::WorkerInfo, is_retired: bool) -> (Vec<String>, Value) {
    // The server sends 0 if no process is running. As an argument of `kill`, 0 would mean the caller's process group.
    let pid = (worker.pid != 0).then_some(worker.pid);
    let object = json!({
        "worker_id": worker.worker_id,
        "pid": pid,
        "state": worker.state,
        "address": worker.address,
        "started_at": worker.started_at.as_ref().map(|at| rfc3339(*at)),
        "calls": worker.calls,
        "restarts": worker.restarts,
        "last_end": (!worker.last_end.is_empty()).then_some(&worker.last_end),
        "retired": is_retired,
    });
    let up = worker.started_at.map(age).unwrap_or_default();
    let cells = vec![
        worker.worker_id,
        pid.map(|pid| pid.to_string()).unwrap_or_default(),
        if is_retired { format!("{}, retired", worker.state) } else { worker.state },
        worker.calls.to_string(),
        worker.restarts.to_string(),
        up,
        worker.last_end,
    ];
    (cells, object)
}

pub(crate) async fn status(args: Args) -> Result<(), Failure> {
    let mut client = args.server.connect().await?;
    let status = client
        .get_pool_status(pb::GetPoolStatusRequest {})
        .await
        .map_err(|status| args.rejection(status))?
        .into_inner();
    let pb::GetPoolStatusResponse {
        name,
        queued,
        waiting_for_room,
        in_flight,
        workers,
        calls,
        retired_workers,
    } = status;
    let calls = calls.unwrap_or_default();
    let up = workers.iter().filter(|worker| worker.started_at.is_some()).count();
    let workers_up = format!("{up}/{}", workers.len());
    let object = json!({
        "name": name,
        "queued": queued,
        "waiting_for_room": waiting_for_room,
        "in_flight": in_flight,
        "workers": workers.into_iter().map(|worker| worker_row(worker, false).1).collect::<Vec<_>>(),
        "retired_workers": retired_workers.into_iter().map(|worker| worker_row(worker, true).1).collect::<Vec<_>>(),
        "calls": {
            "succeeded": calls.succeeded,
            "failed": calls.failed,
            "rejected": calls.rejected,
            "timed_out": calls.timed_out,
            "cancelled": calls.cancelled,
            "lost": calls.lost,
            "retried": calls.retried,
        },
    });
    let figures = [
        queued,
        waiting_for_room,
        in_flight,
        calls.succeeded,
        calls.failed,
        calls.rejected,
        calls.timed_out,
        calls.cancelled,
        calls.lost,
        calls.retried,
    ];
    let cells = [name, workers_up].into_iter().chain(figures.map(|figure| figure.to_string())).collect();
    let heads = [
        "POOL",
        "WORKERS",
        "QUEUED",
        "WAITING",
        "IN FLIGHT",
        "SUCCEEDED",
        "FAILED",
        "REJECTED",
        "TIMED OUT",
        "CANCELLED",
        "LOST",
        "RETRIED",
    ];
    args.print(&heads, vec![(cells, object)])
}

#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Print counters and totals of all sessions instead of a list.
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    pub(crate) list: Args,
}

pub(crate) async fn sessions(SessionArgs { stats, list: args }: SessionArgs) -> Result<(), Failure> {
    if stats {
        return session_stats(args).await;
    }
    let mut client = args.server.connect().await?;
    let mut rows = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListSessionsRequest { page_size: 1000, page_token };
        let page = client.list_sessions(request).await.map_err(|status| args.rejection(status))?.into_inner();
        rows.extend(page.sessions.into_iter().map(session_row));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    args.print(&["SESSION", "AGE", "EXPIRES IN", "VARIABLES", "PROGRAMS", "BYTES", "LAST WORKER"], rows)
}

async fn session_stats(args: Args) -> Result<(), Failure> {
    let mut client = args.server.connect().await?;
    let stats = client
        .get_session_stats(pb::GetSessionStatsRequest {})
        .await
        .map_err(|status| args.rejection(status))?
        .into_inner();
    let pb::GetSessionStatsResponse { created, deleted, expired, sweeps, live, variables, programs, bytes } =
        stats;
    let object = json!({
        "live": live,
        "variables": variables,
        "programs": programs,
        "bytes": bytes,
        "created": created,
        "deleted": deleted,
        "expired": expired,
        "sweeps": sweeps,
    });
    let figures = [live, variables, programs, bytes, created, deleted, expired, sweeps];
    let heads = ["LIVE", "VARIABLES", "PROGRAMS", "BYTES", "CREATED", "DELETED", "EXPIRED", "SWEEPS"];
    args.print(&heads, vec![(figures.map(|figure| figure.to_string()).into(), object)])
}

#[derive(Debug, clap::Args)]
pub(crate) struct VariableArgs {
    /// The id of the session.
    session: String,

    /// List only variables whose name matches this pattern, in which `*` matches any text.
    #[arg(default_value = "*")]
    pattern: String,

    #[command(flatten)]
    pub(crate) list: Args,
}

pub(crate) async fn variables(args: VariableArgs) -> Result<(), Failure> {
    let VariableArgs { session: session_id, pattern, list: args } = args;
    let mut client = args.server.connect().await?;
    let request = pb::ListVariablesRequest { session_id, pattern };
    let listed =
        client.list_variables(request).await.map_err(|status| args.rejection(status))?.into_inner().variables;
    let rows = listed.into_iter().map(variable_row).collect();
    args.print(&["VARIABLE", "TYPE", "VALUE", "VERSION", "SOURCE", "WRITTEN", "CONSTRAINTS"], rows)
}

/// A variable with `--json`. Prints its JSON unchanged, because a `serde_json::Value` rounds large numbers.
#[derive(Debug, Serialize)]
struct VariableLine {
    constraints: Option<Box<RawValue>>,
    id: String,
    metadata: BTreeMap<String, String>,
    name: String,
    source: &'static str,
    r#type: String,
    updated_at: Option<String>,
    value: Option<Box<RawValue>>,
    version: i32,
}

fn variable_row(variable: pb::Variable) -> (Vec<String>, VariableLine) {
    let source = match variable.source() {
        pb::variable::Source::Elixir => "host",
        pb::variable::Source::Python => "python",
    };
    // A malformed value does not prevent the listing of the others.
    let value = output::to_readable_json(variable.value.unwrap_or_default(), variable.binary_value).ok();
    let cells = vec![
        variable.name.clone(),
        variable.r#type.clone(),
        shorten(value.as_ref().map_or("(cannot be read)", |value| value.get())),
        variable.version.to_string(),
        source.to_owned(),
        variable.last_updated_at.map(|at| age(at) + " ago").unwrap_or_default(),
        shorten(&variable.constraints_json),
    ];
    let line = VariableLine {
        constraints: serde_json::from_str(&variable.constraints_json).ok(),
        id: variable.id,
        metadata: variable.metadata.into_iter().collect(),
        name: variable.name,
        source,
        r#type: variable.r#type,
        updated_at: variable.last_updated_at.map(rfc3339),
        value,
        version: variable.version,
    };
    (cells, line)
}

/// Shortens a string for a table, and replaces control characters.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 48;
    let mut shown: String = text
        .chars()
        .take(MAX_CHARS)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

fn session_row(session: pb::SessionInfo) -> (Vec<String>, Value) {
    let object = json!({
        "session_id": session.session_id,
        "metadata": session.metadata,
        "created_at": session.created_at.as_ref().map(|at| rfc3339(*at)),
        "expires_at": session.expires_at.as_ref().map(|at| rfc3339(*at)),
        "variables": session.variable_count,
        "programs": session.program_count,
        "bytes": session.bytes,
        "last_worker_id": session.last_worker_id,
    });
    let cells = vec![
        session.session_id,
        session.created_at.map(age).unwrap_or_default(),
        session.expires_at.map(time_left).unwrap_or_default(),
        session.variable_count.to_string(),
        session.program_count.to_string(),
        session.bytes.to_string(),
        session.last_worker_id,
    ];
    (cells, object)
}

/// Converts a time of the server. Times before 1970 or after 9999 become the nearest time in that range.
fn system_time(mut at: prost_types::Timestamp) -> SystemTime {
    const LAST_SECOND: i64 = 253_402_300_799;
    at.normalize();
    match u64::try_from(at.seconds.min(LAST_SECOND)) {
        Ok(seconds) => {
            let nanos = u32::try_from(at.nanos).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
        }
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn rfc3339(at: prost_types::Timestamp) -> String {
    humantime::format_rfc3339_millis(system_time(at)).to_string()
}

fn age(at: prost_types::Timestamp) -> String {
    whole_seconds(system_time(at).elapsed().unwrap_or_default())
}

fn time_left(at: prost_types::Timestamp) -> String {
    whole_seconds(system_time(at).duration_since(SystemTime::now()).unwrap_or_default())
}

fn whole_seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_wraps_at_the_width_of_the_terminal() {
        let signature = (0..20).map(|n| format!("parameter_{n}: integer")).collect::<Vec<_>>().join(", ");
        let rows = || [vec!["train".to_owned(), signature.clone(), "Trains a model.".to_owned()]].into_iter();
        let heads = ["TOOL", "PARAMETERS", "DESCRIPTION"];
        let wrapped = table_of(&heads, rows(), Some(80));
        assert!(wrapped.lines().all(|line| line.chars().count() <= 80), "{wrapped}");
        assert!(wrapped.contains("parameter_19: integer"), "{wrapped}");
        let wide = table_of(&heads, rows(), None);
        assert_eq!(wide.lines().count(), 2, "{wide}");
    }

    #[test]
    fn extreme_times_are_clamped() {
        for (seconds, nanos, shown) in [
            (i64::MIN, 0, "1970-01-01T00:00:00.000Z"),
            (-1, 0, "1970-01-01T00:00:00.000Z"),
            (0, -1, "1970-01-01T00:00:00.000Z"),
            (1, 500_000_000, "1970-01-01T00:00:01.500Z"),
            (253_402_300_799, 999_999_999, "9999-12-31T23:59:59.999Z"),
            (253_402_300_800, 0, "9999-12-31T23:59:59.000Z"),
            (i64::MAX, i32::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            let at = prost_types::Timestamp { seconds, nanos };
            let written = rfc3339(at);
            assert_eq!(written[..19], shown[..19], "{at:?}");
            assert!(!age(at).is_empty() && !time_left(at).is_empty());
        }
    }
}
