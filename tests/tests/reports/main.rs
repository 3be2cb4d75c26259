//! Progress and output of calls: in the log of the host, in both clients, and on the command line.

mod command_line;
mod nested;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use snakepit_registry::Principal;
use snakepit_server::{Client, LogLine, ProgressReport, Snakepit};
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, eventually, python, root};

const REPORTING: &str = "reporting:Reporting";
const CONCURRENT: &str = "reporting:Concurrent";

/// The reports of a call.
#[derive(Clone, Default)]
struct Reports {
    progress: Arc<Mutex<Vec<ProgressReport>>>,
    lines: Arc<Mutex<Vec<LogLine>>>,
}

impl Reports {
    fn progress(&self) -> impl Fn(ProgressReport) + Send + Sync + 'static {
        let progress = Arc::clone(&self.progress);
        move |report| progress.lock().unwrap().push(report)
    }

    fn lines(&self) -> impl Fn(LogLine) + Send + Sync + 'static {
        let lines = Arc::clone(&self.lines);
        move |line| lines.lock().unwrap().push(line)
    }

    fn texts(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|line| line.text.clone()).collect()
    }
}

async fn connect(sandbox: &Sandbox) -> Client {
    Client::connect(sandbox.url()).await.unwrap()
}

#[tokio::test]
async fn progress_reaches_the_caller_and_is_coalesced() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    let call = client.call("train").arg("steps", 20_000).on_progress(reports.progress());
    let started = std::time::Instant::now();
    assert_eq!(call.unary::<u64>().await.unwrap().value, 20_000);
    let (elapsed, seen) = (started.elapsed(), reports.progress.lock().unwrap().clone());
    // The first one, at most one per interval, and the last one.
    let max_reports = 3 + elapsed.as_millis() / 50;
    assert!((2..=max_reports as usize).contains(&seen.len()), "{} in {elapsed:?}", seen.len());
    assert_eq!((seen[0].done, seen[0].total, seen[0].message.as_str()), (1.0, Some(20_000.0), "step 1"));
    assert_eq!(seen.last().unwrap().fraction(), Some(1.0));
    assert!(seen.is_sorted_by(|a, b| a.done < b.done));

    // Without a receiver, nothing is sent.
    assert_eq!(client.call("train").arg("steps", 3).unary::<u64>().await.unwrap().value, 3);

    // A report that the rate limit delayed arrives even if the tool does not report again.
    let reports = Reports::default();
    let stalled = client.call("stall").on_progress(reports.progress()).timeout(Duration::from_secs(60));
    let stalled = tokio::spawn(stalled.unary::<bool>());
    eventually("the second report arrives", EVENT_TIMEOUT, async || {
        reports.progress.lock().unwrap().last().is_some_and(|report| report.message == "waiting")
    })
    .await;
    stalled.abort();
}

#[tokio::test]
async fn output_of_every_kind_reaches_the_caller_before_the_result() {
    // Python's default, which buffers C output.
    let sandbox = Sandbox::adapter(REPORTING, 1).env("PYTHONUNBUFFERED", "").start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    let call = client.call("speak").on_log(reports.lines());
    let request: String = call.unary().await.unwrap().value;
    let texts = reports.texts();
    for text in [
        "printed",
        "a part, and the rest",
        "in stderr",
        "bytes",
        "an error",
        "a detail",
        "100%",
        "from a child",
        "from a shell",
        "from a thread",
        "from a pool",
        "from native code",
        "from C",
        "\\u{1e}no frame",
        "no newline",
    ] {
        assert!(texts.iter().any(|line| line == text), "{text} in {texts:?}");
    }
    assert!(!texts.iter().any(|line| line.contains("redirected")), "{texts:?}");
    assert!(texts.iter().any(|line| line.contains("UserWarning: a warning")), "{texts:?}");
    let lines = reports.lines.lock().unwrap().clone();
    let of = |text: &str| lines.iter().find(|line| line.text == text).unwrap();
    assert_eq!((of("an error").level, of("an error").logger.as_str()), (40, "shop.till"));
    assert_eq!((of("a detail").level, of("a detail").logger.as_str()), (10, "shop"));
    assert_eq!(
        (of("printed").level, &*of("printed").stream, &*of("in stderr").stream),
        (0, "stdout", "stderr")
    );

    // The log of the host names the call. The output of native code belongs to a call only if its caller receives it.
    eventually("the last line is in the log", EVENT_TIMEOUT, async || sandbox.log().contains("no newline"))
        .await;
    let log = sandbox.log();
    for text in ["printed", "an error", "from a child", "from a thread", "no newline"] {
        let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {log}"));
        let fields =
            [format!("request_id={request}"), "tool=\"speak\"".to_owned(), "pool=\"default\"".to_owned()];
        assert!(fields.iter().all(|field| line.contains(field)), "{line}");
    }
    let error = log.lines().find(|line| line.contains("an error")).unwrap();
    assert!(error.contains("ERROR") && error.contains("logger=\"shop.till\""), "{error}");

    let reports = Reports::default();
    client.call("speak_async").on_log(reports.lines()).unary::<String>().await.unwrap();
    let mut texts = reports.texts();
    texts.sort();
    assert_eq!(texts, ["from a task", "from to_thread"]);
}

#[tokio::test]
async fn a_caller_receives_no_output_of_other_calls() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    let others = (0..20).map(|_| client.call("whisper").unary::<Value>());
    let call = client.call("count").arg("n", 3).on_log(reports.lines()).on_progress(reports.progress());
    let (_, chunks) = tokio::join!(futures_util::future::join_all(others), async {
        let mut stream = call.stream::<u64>().await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = futures_util::StreamExt::next(&mut stream).await {
            chunks.push(chunk.unwrap());
        }
        chunks
    });
    assert_eq!(chunks, [0, 1, 2]);
    assert_eq!(reports.texts(), ["item 0", "item 1", "item 2"]);
    assert_eq!(reports.progress.lock().unwrap().last().unwrap().done, 3.0);
}

#[tokio::test]
async fn output_of_concurrent_calls_is_kept_apart() {
    let sandbox = Sandbox::adapter(CONCURRENT, 1).start().await;
    let client = connect(&sandbox).await;
    let calls = (0..4).map(|number| {
        let (client, reports) = (client.clone(), Reports::default());
        async move {
            let name = format!("caller {number}");
            let call = client.call("meet").arg("name", &name).arg("peers", 4);
            let call = call.on_log(reports.lines()).on_progress(reports.progress());
            call.unary::<String>().await.unwrap();
            assert_eq!(reports.texts(), [format!("name {name}")]);
            assert_eq!(reports.progress.lock().unwrap().last().unwrap().message, name);
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn the_last_words_of_a_worker_reach_the_caller() {
    // Python's default, which buffers C output.
    let sandbox = Sandbox::adapter(REPORTING, 1).env("PYTHONUNBUFFERED", "").start().await;
    let client = connect(&sandbox).await;
    for how in ["exit", "kill", "fault"] {
        let reports = Reports::default();
        let call = client.call("die").arg("how", how).on_log(reports.lines()).on_progress(reports.progress());
        call.unary::<Value>().await.unwrap_err();
        let texts = reports.texts();
        for expected in ["last words", "last words of C", "last record"] {
            assert!(texts.iter().any(|text| text == expected), "{how}: {texts:?}");
        }
        assert_eq!(reports.progress.lock().unwrap().last().unwrap().done, 0.5);
    }
    let count = || {
        let log = sandbox.log();
        let lines = log.lines();
        lines.filter(|line| line.contains("last words worker=") && line.contains("tool=\"die\"")).count()
    };
    eventually("the last words are in the log", EVENT_TIMEOUT, async || count() == 3).await;
}

#[tokio::test]
async fn a_flood_of_output_delays_neither_the_call_nor_its_last_progress() {
    const LINES: usize = 100_000;
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    let call =
        client.call("flood").arg("lines", LINES).on_log(reports.lines()).on_progress(reports.progress());
    assert_eq!(call.unary::<usize>().await.unwrap().value, LINES);
    assert_eq!(reports.progress.lock().unwrap().last().unwrap().fraction(), Some(1.0));
    let lines = reports.lines.lock().unwrap().clone();
    let notices = lines.iter().filter(|line| line.logger == "snakepit").count();
    let numbers: Vec<usize> =
        lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.parse().ok()).collect();
    assert_eq!(numbers.len() + notices, lines.len());
    assert!(numbers.is_sorted() && numbers.first() == Some(&0), "{notices} notices");
    assert!(numbers.len() == LINES || notices > 0, "{} lines and no notice", numbers.len());
}

#[tokio::test]
async fn bytes_and_endless_lines_are_bounded_text() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let reports = Reports::default();
    connect(&sandbox).await.call("dump").on_log(reports.lines()).unary::<Value>().await.unwrap();
    let texts = reports.texts();
    // The bytes contain newlines.
    let last = texts.len() - 2;
    assert!(texts[0].starts_with("\\u{0}\\u{1}"), "{}", texts[0]);
    assert_eq!((texts[last].len(), texts[last].trim_matches('x')), (8192, ""));
    assert_eq!(texts[last + 1], format!("[{} more bytes of this line]", 3_000_005 - 8192));
    assert!(texts.iter().all(|text| text.len() < 8 * 8192));
}

#[tokio::test]
async fn lines_of_forks_programs_and_threads_stay_whole() {
    const LINES: usize = 300;
    // The programs write each line in several parts.
    let sandbox = Sandbox::adapter(REPORTING, 1).env("PYTHONUNBUFFERED", "1").start().await;
    let reports = Reports::default();
    let call = connect(&sandbox).await.call("families").arg("lines", LINES).on_log(reports.lines());
    call.unary::<Value>().await.unwrap();
    let texts = reports.texts();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for text in &texts {
        let kind = text.split(' ').next().unwrap_or_default();
        let end = match kind {
            "program" => "p".repeat(100),
            _ => kind.repeat(20),
        };
        if text != "unfinished, finished" {
            assert!(text.ends_with(&format!(" {end}")), "{text}");
        }
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(counts, [("fork", LINES), ("program", 2 * LINES), ("thread", LINES), ("unfinished,", 1)]);
}

#[tokio::test]
async fn lines_of_programs_of_forks_stay_whole() {
    const LINES: usize = 100;
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let reports = Reports::default();
    let call = connect(&sandbox).await.call("nested_programs").arg("lines", LINES).on_log(reports.lines());
    call.unary::<Value>().await.unwrap();
    let mut texts = reports.texts();
    texts.sort();
    let lines = (0..3).flat_map(|fork| (0..LINES).map(move |line| format!("fork {fork} {line} end")));
    let mut expected: Vec<String> = lines.collect();
    expected.sort();
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn output_of_programs_keeps_its_order_and_survives_the_worker() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    client.call("programs_in_order").on_log(reports.lines()).unary::<Value>().await.unwrap();
    let lines = reports.lines.lock().unwrap().clone();
    let of = |stream: &str| {
        let lines = lines.iter().filter(|line| &*line.stream == stream);
        lines.map(|line| line.text.clone()).collect::<Vec<_>>()
    };
    let pairs = |first: &str, second: &str| {
        (0..20).flat_map(|number| [first, second].map(|text| format!("{text} {number}"))).collect::<Vec<_>>()
    };
    assert_eq!(of("stdout"), pairs("tool", "program"));
    assert_eq!(of("stderr"), pairs("part of", "error"));

    let reports = Reports::default();
    let call = client.call("exit_after_program").on_log(reports.lines());
    call.unary::<Value>().await.unwrap_err();
    assert_eq!(reports.texts(), ["last words of a program"]);
}

#[tokio::test]
async fn output_of_programs_of_concurrent_calls_is_kept_apart() {
    let sandbox = Sandbox::adapter(CONCURRENT, 1).start().await;
    let client = connect(&sandbox).await;
    let calls = (0..4).map(|number| {
        let (client, reports) = (client.clone(), Reports::default());
        async move {
            let name = format!("caller {number}");
            let call = client.call("run_program").arg("name", &name).arg("peers", 4).on_log(reports.lines());
            call.unary::<Value>().await.unwrap();
            let expected: Vec<_> = (0..50).map(|line| format!("of {name} {line} end")).collect();
            assert_eq!(reports.texts(), expected);
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn a_call_with_large_arguments_has_reports() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let reports = Reports::default();
    let data = "x".repeat(3 << 20);
    let call = connect(&sandbox).await.call("size").arg("data", &data).on_log(reports.lines());
    assert_eq!(call.unary::<usize>().await.unwrap().value, data.len());
    assert_eq!(reports.texts(), [format!("size {}", data.len())]);
}

#[tokio::test]
async fn tools_and_their_programs_do_not_see_the_key_of_the_frames() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let variables: Vec<String> = connect(&sandbox).await.call("variables").unary().await.unwrap().value;
    assert_eq!(variables, [""; 0]);
}

#[tokio::test]
async fn a_worker_that_is_never_idle_keeps_no_output_of_ended_calls() {
    let sandbox = Sandbox::adapter(CONCURRENT, 1).start().await;
    let client = connect(&sandbox).await;
    let held = client.call("hold");
    let held = tokio::spawn(held.unary::<Value>());
    let mut kept = 0;
    for number in 0..50 {
        let call = client.call("leave_unfinished").arg("calls", number);
        kept = call.unary::<usize>().await.unwrap().value;
    }
    assert!(kept <= 1, "{kept} calls");
    eventually("the lines are in the log", EVENT_TIMEOUT, async || {
        sandbox.log().contains("unfinished 49rest 49")
    })
    .await;
    client.call("release").unary::<Value>().await.unwrap();
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_redirected_standard_output_contains_no_frames() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let reports = Reports::default();
    let path = dir.path().join("output");
    let call = connect(&sandbox).await.call("redirected").arg("path", path).on_log(reports.lines());
    assert_eq!(call.unary::<String>().await.unwrap().value, "into the file\n");
    assert_eq!(reports.texts(), ["to the host"]);
}

#[tokio::test]
async fn the_context_is_available_in_threads_and_tasks() {
    for adapter in [REPORTING, CONCURRENT] {
        let sandbox = Sandbox::adapter(adapter, 1).start().await;
        let client = connect(&sandbox).await;
        for session in ["one", "two"] {
            let session = client.session(session).await.unwrap();
            let found: Vec<String> = session.call("contexts").unary().await.unwrap().value;
            assert_eq!(found, vec![session.id().to_string(); 6], "{adapter}");
            let found: Vec<String> = session.call("contexts_async").unary().await.unwrap().value;
            assert_eq!(found, vec![session.id().to_string(); 5], "{adapter}");
        }
    }
}

#[tokio::test]
async fn only_principals_that_see_tracebacks_receive_output() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = Snakepit::builder()
        .adapter(REPORTING)
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(dir.path().join("run"))
        .workers(1)
        .start()
        .await
        .unwrap();
    // The program itself receives it.
    let reports = Reports::default();
    snakepit.call("whisper").on_log(reports.lines()).unary::<Value>().await.unwrap();
    assert_eq!(reports.texts(), ["of another call"]);
    for (principal, expected) in [(None, 0), (Some(Principal::user(7)), 1)] {
        let lines = mounted_lines(&snakepit, principal).await;
        assert_eq!(lines.len(), expected, "{lines:?}");
    }
    snakepit.shutdown().await.unwrap();
}

/// The lines that a mounted client receives.
async fn mounted_lines(snakepit: &Snakepit, principal: Option<Principal>) -> Vec<String> {
    use snakepit_proto::{mux::CallEvent, pb};
    let client = pb::bridge_service_client::BridgeServiceClient::with_interceptor(
        snakepit.routes(),
        move |mut request: tonic::Request<()>| {
            if let Some(principal) = principal.clone() {
                request.extensions_mut().insert(principal);
            }
            Ok(request)
        },
    );
    let (multiplexer, incoming) = snakepit_proto::mux::Multiplexer::open(client).await.unwrap();
    let start = pb::CallStart {
        tool_name: "whisper".to_owned(),
        reports: Some(pb::CallReports { progress: true, logs: true }),
        ..pb::CallStart::default()
    };
    let mut call = multiplexer.start(start, 0);
    let mut lines = Vec::new();
    let run = async {
        loop {
            match call.event().await {
                CallEvent::Reports(reports) => {
                    for report in reports {
                        if let Some(pb::call_report::Report::Log(log)) = report.report {
                            lines.push(log.text);
                        }
                    }
                }
                CallEvent::End(_) => break,
                CallEvent::Opened(_) | CallEvent::Chunks(_) => {}
            }
        }
    };
    tokio::select! {
        () = run => {}
        () = incoming => panic!("the stream ended"),
    }
    lines
}

#[tokio::test]
async fn the_python_client_receives_progress_and_logs() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let output = tokio::process::Command::new(python())
        .arg(root().join("tests/clients/reports.py"))
        .arg(sandbox.url().trim_start_matches("http://"))
        .output()
        .await
        .unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(printed, "ok\n");
}
