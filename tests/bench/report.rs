//! The table for people, the raw numbers for everybody else.

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
    measures::Runs,
    plot::svg,
    sample::short,
    targets::{SESSION_TARGETS, TARGETS, Target, Verdict, ratio_text},
};

/// A table that is written: where, of what, with what around it.
pub(crate) struct Report {
    /// The name of its files in docs/bench.
    name: &'static str,
    command: &'static str,
    notes: &'static str,
    targets: &'static [Target],
}

/// The whole product.
pub(crate) const CALLS: Report =
    Report { name: "results", command: "cargo xtask bench", notes: NOTES, targets: &TARGETS };
/// Sessions.
pub(crate) const SESSIONS: Report = Report {
    name: "sessions",
    command: "cargo xtask bench session",
    notes: SESSION_NOTES,
    targets: &SESSION_TARGETS,
};

/// What runs, for whoever reads the table alone.
const SESSION_NOTES: &str = "\
Medians over the rounds; a ratio is the median of the rounds' own ratios. Sessions of the memory backend behind its trait,
10,000 of them with one entry of metadata; the bare map is a `DashMap` with a session's worth of fields, cloned by a get. An
update reads a session and writes its last worker. Variables are of type float with a bound, one in each of as many sessions.
`daemon-` measures go over gRPC on one connection, `daemon-ping` is the RPC that does nothing. `file-` and `redis-` measures
are of variables in 1000 sessions, through the trait of their backends; `bare-sync` writes over a page of a file and syncs it,
`bare-redis` writes a field of a hash. docs/sessions.md says more.
";

/// Likewise.
const NOTES: &str = "\
Medians over the rounds; a ratio is the median of the rounds' own ratios. Four workers, `add(a, b)` in Python through the
whole product: scheduler, deadlines, counters, a span per call at level info, written nowhere; calls without a session.
The load generator, and with it the embedded host, is one thread; the daemon, the bare servers and the workers are
processes of their own, all on the same machine, each client on one connection to a Unix socket. The grpc.aio workers run in
the same pool as ours, over loopback TCP. Latencies count from when a call was due. `here` is this process: the load
generator, and in the embedded measures the host too. docs/performance.md says more.
";

impl Report {
    fn verdicts(&self, runs: &Runs) -> Vec<Verdict> {
        self.targets.iter().filter_map(|target| target.verdict(runs)).collect()
    }
}

/// The table, by column widths.
fn table(verdicts: &[Verdict]) -> String {
    let header = ["measure", "target", "measured", "yardstick", "ratio", ""];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(verdicts.iter().map(cells));
    markdown(&rows)
}

fn cells(verdict: &Verdict) -> [String; 6] {
    let with_unit = |figure: f64| format!("{} {}", short(figure), verdict.unit).trim_end().to_owned();
    let yardstick = verdict.yardstick.zip(verdict.yardstick_name);
    [
        verdict.what.to_owned(),
        verdict.target.clone(),
        with_unit(verdict.measured),
        yardstick.map_or_else(String::new, |(figure, name)| format!("{} ({name})", with_unit(figure))),
        verdict.ratio.map_or_else(String::new, ratio_text),
        if verdict.pass { "pass" } else { "MISS" }.to_owned(),
    ]
}

/// What every call costs, for readers with more cores.
fn costs(runs: &Runs) -> String {
    let header =
        ["measure", "per second", "p50 us", "p99 us", "CPU us here", "CPU us host", "CPU us workers"];
    let figures = ["per_second", "p50_us", "p99_us", "here_cpu_us", "host_cpu_us", "workers_cpu_us"];
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

/// A table that reads well as text, too.
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

/// Writes what was measured: always into the target directory, and where it is kept if that is wanted.
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
    println!("raw numbers: {}", path.display());
    if save {
        fs::write(kept().join(format!("{name}.json")), raw).expect("the results can be written");
        let page =
            format!("# Results of `{command}`\n\n{notes}\n{table}\n## Cost per call\n\n{}", costs(runs));
        fs::write(kept().join(format!("{name}.md")), page).expect("the results can be written");
        println!("kept: docs/bench/{name}.md, docs/bench/{name}.json");
    } else {
        println!("\n{}", costs(runs));
    }
    if verdicts.iter().any(|verdict| !verdict.pass) {
        println!("some targets are missed");
    }
    runs.errors() == 0.0
}

/// Writes what grew how: plots and tables.
pub(crate) fn write_growth(curves: &[Curve], save: bool) {
    let dir = if save { kept() } else { scratch() };
    let mut page = "# Results of `cargo xtask bench growth`\n\nCPU microseconds per call: `here` is the embedded host with \
                    the load generator. What is not flat, and why: docs/performance.md.\n"
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
    println!("plots, table and raw numbers: {}", dir.display());
}

/// Where results go that nobody keeps.
pub(crate) fn scratch() -> PathBuf {
    let binary = std::env::current_exe().expect("this program has a path");
    let dir = binary.ancestors().nth(2).expect("it lies in a target directory").join("bench");
    fs::create_dir_all(&dir).expect("a directory can be made");
    dir
}

/// Where results are kept.
pub(crate) fn kept() -> PathBuf {
    let dir = root().join("docs/bench");
    fs::create_dir_all(&dir).expect("a directory can be made");
    dir
}

pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
