//! Writes the results as tables for readers and as JSON.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use snakepit_tests::root;

use crate::{
    growth::Curve,
    measurements::Runs,
    plot::svg,
    sample::short,
    targets::{SESSION_TARGETS, TARGETS, Target, Verdict, ratio_text},
};

/// A page of results.
pub(crate) struct Report {
    /// The base name of its files in docs/bench.
    name: &'static str,
    command: &'static str,
    notes: &'static str,
    targets: &'static [Target],
}

/// The results of `cargo xtask bench`.
pub(crate) const CALLS: Report =
    Report { name: "results", command: "cargo xtask bench", notes: NOTES, targets: &TARGETS };
/// The results of `cargo xtask bench session`.
pub(crate) const SESSIONS: Report = Report {
    name: "sessions",
    command: "cargo xtask bench session",
    notes: SESSION_NOTES,
    targets: &SESSION_TARGETS,
};

/// Explains the table of sessions.
const SESSION_NOTES: &str = "\
The figures are medians over the rounds. Each ratio is the median of the ratios of the rounds.

- `session-`, `variable-`: the memory backend, called through its trait, with 10,000 sessions. An update reads a session and
  writes its last worker. Each session has one entry of metadata. For `variable-`, it also has a float variable with a minimum.
- `bare-get`, `bare-update`: a `DashMap` whose values have the fields of a session. A read clones them.
- `daemon-`: gRPC on one connection. `daemon-ping` is an empty RPC.
- `file-`, `redis-`: variables in 1000 sessions, called through the backend's trait.
- `bare-sync`: overwrites a page of a file and syncs it. `bare-redis`: writes a field of a hash.

docs/sessions.md explains the results.
";

/// Explains the table of calls.
const NOTES: &str = "\
The figures are medians over the rounds. Each ratio is the median of the ratios of the rounds.

- Calls: `add(a, b)` in Python, without a session, on four workers. They go through the whole product: scheduler, deadlines,
  counters, and a span per call at level info, whose output is discarded.
- Processes: the load generator and the embedded host share one thread. The daemon, the baseline servers and the workers are
  separate processes on the same machine. Each client uses one connection to a Unix socket.
- grpc.aio workers: run in the same pool as native ones, over loopback TCP.
- Latencies: measured from the moment a call was due.
- `client`: the load generator; in embedded measurements, its process contains the host.

docs/performance.md explains the results.
";

impl Report {
    fn verdicts(&self, runs: &Runs) -> Vec<Verdict> {
        self.targets.iter().filter_map(|target| target.verdict(runs)).collect()
    }
}

/// Renders the table of targets.
fn table(verdicts: &[Verdict]) -> String {
    let header = ["measurement", "target", "measured", "baseline", "ratio", ""];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(verdicts.iter().map(cells));
    markdown(&rows)
}

fn cells(verdict: &Verdict) -> [String; 6] {
    let with_unit = |figure: f64| format!("{} {}", short(figure), verdict.unit).trim_end().to_owned();
    let baseline = verdict.baseline.zip(verdict.baseline_name);
    [
        verdict.title.to_owned(),
        verdict.target.clone(),
        with_unit(verdict.measured),
        baseline.map_or_else(String::new, |(figure, name)| format!("{} ({name})", with_unit(figure))),
        verdict.ratio.map_or_else(String::new, ratio_text),
        if verdict.pass { "pass" } else { "MISS" }.to_owned(),
    ]
}

/// Renders the cost of each call, which helps to estimate the rate on more cores.
fn costs(runs: &Runs) -> String {
    let header =
        ["measurement", "per second", "p50 us", "p99 us", "CPU us client", "CPU us host", "CPU us workers"];
    let figures = ["per_second", "p50_us", "p99_us", "client_cpu_us", "host_cpu_us", "workers_cpu_us"];
    let mut rows = vec![header.map(str::to_owned)];
    for name in runs.names().filter(|name| runs.median((name, "per_second")).is_some_and(|rate| rate > 0.0)) {
        let figure = |figure| match runs.median((name, figure)) {
            Some(median) if median > 0.0 => short(median),
            _ => String::new(),
        };
        let mut row: [String; 7] = Default::default();
        row[0] = name.to_owned();
        figures.iter().zip(&mut row[1..]).for_each(|(name, cell)| *cell = figure(name));
        rows.push(row);
    }
    markdown(&rows)
}

/// Renders a Markdown table with aligned columns.
pub(crate) fn markdown<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width =
        |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(column).max(3)).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, width) in row.as_ref().iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if at == 0 {
            widths.iter().for_each(|width| text.push_str(&format!("| {} ", "-".repeat(*width))));
            text.push_str("|\n");
        }
    }
    text
}

/// Writes the results to the target directory and, with `save`, to docs/bench. Returns whether there were no errors.
pub(crate) fn write(report: &Report, runs: &Runs, save: bool) -> bool {
    let verdicts = report.verdicts(runs);
    let table = table(&verdicts);
    println!("\n{table}");
    let raw = json!({
        "machine": { "cpus": std::thread::available_parallelism().map_or(0, usize::from) },
        "samples": runs,
        "table": verdicts,
    });
    let raw = format!("{raw:#}\n");
    let Report { name, command, notes, .. } = report;
    let path = scratch().join(format!("{name}-{}.json", seconds()));
    fs::write(&path, &raw).expect("the results can be written");
    println!("samples: {}", path.display());
    if save {
        fs::write(docs().join(format!("{name}.json")), raw).expect("the results can be written");
        let page =
            format!("# Results of `{command}`\n\n{notes}\n{table}\n## Cost per call\n\n{}", costs(runs));
        fs::write(docs().join(format!("{name}.md")), page).expect("the results can be written");
        println!("saved: docs/bench/{name}.md, docs/bench/{name}.json");
    } else {
        println!("\n{}", costs(runs));
    }
    if verdicts.iter().any(|verdict| !verdict.pass) {
        println!("some targets were missed");
    }
    runs.errors() == 0.0
}

/// Writes plots and tables of the curves.
pub(crate) fn write_growth(curves: &[Curve], save: bool) {
    let dir = if save { docs() } else { scratch() };
    let mut page = "# Results of `cargo xtask bench growth`\n\nCPU time per call in microseconds. `client` is the process of \
                    the load generator and the embedded host. docs/performance.md explains the results.\n"
        .to_owned();
    for curve in curves {
        let plot = format!("growth-{}.svg", curve.name);
        fs::write(dir.join(&plot), svg(curve)).expect("the plot can be written");
        let _ =
            write!(page, "\n## {}\n\n![{}]({plot})\n\n{}", curve.title, curve.title, markdown(&curve.rows()));
    }
    fs::write(dir.join("growth.md"), page).expect("the page can be written");
    let raw = format!("{:#}\n", json!({ "curves": curves }));
    fs::write(dir.join("growth.json"), raw).expect("the results can be written");
    println!("plots, tables and samples: {}", dir.display());
}

/// The directory of results in the target directory.
pub(crate) fn scratch() -> PathBuf {
    let binary = std::env::current_exe().expect("this program has a path");
    let dir = binary.ancestors().nth(2).expect("it is in a target directory").join("bench");
    fs::create_dir_all(&dir).expect("the directory can be created");
    dir
}

/// The directory of saved results.
pub(crate) fn docs() -> PathBuf {
    let dir = root().join("docs/bench");
    fs::create_dir_all(&dir).expect("the directory can be created");
    dir
}

/// The seconds since the Unix epoch.
pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
