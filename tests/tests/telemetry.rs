//! `StreamTelemetry` in both directions: events of tools reach clients and embedding programs, and the host controls which events
//! its workers send. Also with workers and hosts that know only the original protocol.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use snakepit_proto::pb::{self, telemetry_control::Control, telemetry_value::Value as Measurement};
use snakepit_server::{Snakepit, TelemetryEvent, TelemetryFilter, TelemetryValue};
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, eventually, execute, plain_calls, python, root, tool_request,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Endpoint};

/// An open stream of telemetry, and its controls.
struct Telemetry {
    events: Streaming<pb::TelemetryEvent>,
    controls: mpsc::Sender<pb::TelemetryControl>,
}

impl Telemetry {
    async fn open(client: &mut Client) -> Self {
        let (controls, receiver) = mpsc::channel(8);
        let events = client.stream_telemetry(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { events, controls }
    }

    async fn control(&self, control: Control) {
        self.controls.send(pb::TelemetryControl { control: Some(control) }).await.unwrap();
    }

    async fn next(&mut self) -> pb::TelemetryEvent {
        timeout(EVENT_TIMEOUT, self.events.message()).await.expect("an event arrives").unwrap().unwrap()
    }

    /// Waits for the next event with this name.
    async fn next_named(&mut self, name: &str) -> pb::TelemetryEvent {
        loop {
            let event = self.next().await;
            if event.event_parts.join(".") == name {
                return event;
            }
        }
    }
}

fn allow(pattern: &str) -> Control {
    Control::Filter(pb::TelemetryEventFilter { allow: vec![pattern.to_owned()], deny: Vec::new() })
}

/// Calls a tool until an event with this name arrives, because the host opens the streams of its workers in the background.
async fn emit_until(client: &mut Client, telemetry: &mut Telemetry, name: &str) -> pb::TelemetryEvent {
    let emit = json!({"name": name});
    let mut emitter = client.clone();
    let emitting = async {
        loop {
            execute(&mut emitter, "emit", &emit).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        event = telemetry.next_named(name) => event,
        () = emitting => unreachable!(),
    }
}

#[tokio::test]
async fn events_of_tools_reach_clients_with_the_filter_of_each() {
    let sandbox = Sandbox::adapter("events:", 2).start().await;
    let mut client = sandbox.client().await;
    let mut all = Telemetry::open(&mut client).await;
    let event = emit_until(&mut client, &mut all, "first").await;
    assert!(event.metadata["worker_id"].starts_with("default-"), "{event:?}");
    assert_eq!(event.metadata["number"], "7");
    let measured = |name: &str| event.measurements[name].value.clone().unwrap();
    assert_eq!(measured("index"), Measurement::IntValue(0));
    assert_eq!(measured("share"), Measurement::FloatValue(0.5));
    assert_eq!(measured("flag"), Measurement::IntValue(1));
    assert_eq!(measured("text"), Measurement::StringValue("t".to_owned()));
    assert_eq!(measured("big"), Measurement::FloatValue(2_f64.powi(70)));

    let mut filtered = Telemetry::open(&mut client).await;
    filtered.control(allow("model.*")).await;
    assert_eq!(execute(&mut client, "work", &json!({})).await.unwrap(), "abc");
    let failed =
        client.execute_tool(tool_request("work", &json!({"fail": true}))).await.unwrap().into_inner();
    assert!(!failed.success);
    let start = all.next_named("model.run.start").await;
    assert_eq!((&*start.correlation_id, &*start.metadata["model"]), ("abc", "small"));
    let stop = all.next_named("model.run.stop").await;
    assert!(stop.measurements.contains_key("duration"), "{stop:?}");
    let exception = all.next_named("model.run.exception").await;
    assert_eq!(exception.metadata["error_message"], "no model");
    // The filter arrives on a separate stream, so the first events may be unfiltered.
    filtered.next_named("model.run.exception").await;
    execute(&mut client, "emit", &json!({"name": "other"})).await.unwrap();
    execute(&mut client, "work", &json!({})).await.unwrap();
    assert_eq!(filtered.next().await.event_parts, ["model", "run", "start"]);
    assert_eq!(execute(&mut client, "emit_in_child", &json!({})).await.unwrap(), true);
    assert_eq!(sandbox.stop().await, Some(0));
}

/// The error of a call whose worker prints a secret and ends, as a subscriber receives it.
async fn error_of_a_lost_worker(arguments: &[&str]) -> String {
    let sandbox = Sandbox::adapter("events:", 1).args(arguments).start().await;
    let mut client = sandbox.client().await;
    let mut telemetry = Telemetry::open(&mut client).await;
    client.execute_tool(tool_request("die", &json!({"text": "the secret"}))).await.unwrap_err();
    let event = telemetry.next_named("tool.execution.exception").await;
    event.metadata["error"].clone()
}

#[tokio::test]
async fn subscribers_see_the_output_of_lost_workers_only_if_their_errors_include_it() {
    let (shown, hidden) =
        tokio::join!(error_of_a_lost_worker(&[]), error_of_a_lost_worker(&["--tracebacks", "never"]));
    assert!(shown.contains("was lost") && shown.contains("the secret"), "{shown}");
    assert!(hidden.contains("was lost") && !hidden.contains("the secret"), "{hidden}");
}

#[tokio::test]
async fn the_number_of_subscribers_is_limited() {
    let sandbox = Sandbox::adapter("events:", 1).start().await;
    let mut client = sandbox.client().await;
    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(Telemetry::open(&mut client).await);
    }
    let (_controls, receiver) = mpsc::channel(1);
    let rejected = client.stream_telemetry(ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!(rejected.code(), Code::ResourceExhausted, "{rejected:?}");
    assert!(rejected.message().contains("32 subscriptions of telemetry are open"), "{rejected:?}");
    open.pop();
    eventually("a place is free after a subscriber has left", EVENT_TIMEOUT, || {
        let mut client = client.clone();
        async move {
            let (_controls, receiver) = mpsc::channel(1);
            client.stream_telemetry(ReceiverStream::new(receiver)).await.is_ok()
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_subscriber_does_not_wait_after_the_last_one_has_left() {
    const ROUNDS: u32 = 10;
    let sandbox = Sandbox::adapter("events:", 1).start().await;
    let mut client = sandbox.client().await;
    drop(Telemetry::open(&mut client).await);
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut telemetry = Telemetry::open(&mut client).await;
        emit_until(&mut client, &mut telemetry, "again").await;
        fastest = fastest.min(begin.elapsed());
    }
    // With a pause of a second, every round would take longer. A busy machine delays only some.
    assert!(fastest < Duration::from_secs(1) / 2, "{fastest:?}");
}

#[tokio::test]
async fn the_configuration_decides_which_events_workers_send() {
    let sandbox =
        Sandbox::adapter("events:", 1).args(&["--worker-telemetry", "kept*,-*.start"]).start().await;
    let mut client = sandbox.client().await;
    let mut telemetry = Telemetry::open(&mut client).await;
    telemetry
        .control(Control::Filter(pb::TelemetryEventFilter { allow: Vec::new(), deny: vec!["tool.*".into()] }))
        .await;
    emit_until(&mut client, &mut telemetry, "kept").await;
    for name in ["kept.start", "lost", "kept.2"] {
        execute(&mut client, "emit", &json!({"name": name})).await.unwrap();
    }
    let next = loop {
        let event = telemetry.next().await.event_parts.join(".");
        if event != "kept" && !event.starts_with("tool.") {
            break event;
        }
    };
    assert_eq!(next, "kept.2");
    let wrong =
        Sandbox::adapter("events:", 1).args(&["--worker-telemetry", "3"]).try_start().await.unwrap_err();
    assert!(wrong.stderr.contains("expected a number from 0 to 1"), "{}", wrong.stderr);
}

#[tokio::test]
async fn a_backend_of_the_adapter_replaces_the_host() {
    let sandbox = Sandbox::adapter("events:", 1).start().await;
    let (mut client, log) = (sandbox.client().await, sandbox.log_handle());
    execute(&mut client, "switch", &json!({"on": true})).await.unwrap();
    execute(&mut client, "emit", &json!({"name": "printed"})).await.unwrap();
    eventually("the event is a line of the log", EVENT_TIMEOUT, async || {
        log.lock().unwrap().iter().any(|line| line.contains("TELEMETRY:{") && line.contains("printed"))
    })
    .await;
    execute(&mut client, "switch", &json!({"on": false})).await.unwrap();
    let state = execute(&mut client, "dropped", &json!({})).await.unwrap();
    assert_eq!(state, json!({"dropped": 0, "enabled": false}));
}

fn command() -> String {
    format!("{} {}/tests/workers/grpcio_worker.py", python().display(), root().display())
}

#[tokio::test]
async fn a_foreign_worker_sends_events_and_receives_controls() {
    let sandbox =
        Sandbox::worker_command(&command(), 1).args(&["--worker-telemetry", "model.*,-x,0.5"]).start().await;
    let mut client = sandbox.client().await;
    let none = execute(&mut client, "controls", &json!({})).await.unwrap();
    assert_eq!(none, json!([]), "without subscribers, the host does not open a stream");
    let mut telemetry = Telemetry::open(&mut client).await;
    let event = emit_until(&mut client, &mut telemetry, "model.load").await;
    assert_eq!(event.measurements["share"].value, Some(Measurement::FloatValue(0.5)));
    assert_eq!(event.metadata["worker_id"], "default-0-1");
    // Controls use a separate stream, so a call may arrive earlier.
    let received = async {
        loop {
            let controls = execute(&mut client, "controls", &json!({})).await.unwrap().to_string();
            let expected = ["model.*", "deny", "sampling_rate: 0.5", "enabled: true"];
            if expected.iter().all(|control| controls.contains(control)) {
                break;
            }
        }
    };
    timeout(EVENT_TIMEOUT, received).await.expect("the worker receives the controls");
    assert_eq!(sandbox.stop().await, Some(0));
}

/// A worker without a host, as a foreign host starts it.
async fn alone(args: &[&str]) -> (tokio::process::Child, Client) {
    #[allow(clippy::disallowed_methods, reason = "the test starts a process")]
    let mut command = tokio::process::Command::new(python());
    command.args(["-m", "snakepit_bridge.worker", "--adapter", "events:", "--port", "0"]).args(args);
    command.env("PYTHONPATH", root().join("tests/adapters")).kill_on_drop(true);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(EVENT_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let port = line.strip_prefix("GRPC_READY:").unwrap().to_owned();
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    (child, Client::new(endpoint.connect().await.unwrap()))
}

/// Sends a control until the worker drops the event `a.b`. Then events named `model.mark` must arrive, after the control `undo` if there
/// is one. Controls and calls travel separately, so the worker may apply a control later.
async fn silenced(client: &mut Client, telemetry: &mut Telemetry, control: Control, undo: Option<Control>) {
    let silencing = async {
        for round in 0_u64.. {
            telemetry.control(control.clone()).await;
            let id = round.to_string();
            execute(client, "emit", &json!({"name": "a.b", "correlation": id})).await.unwrap();
            if let Some(undo) = &undo {
                telemetry.control(undo.clone()).await;
            }
            // The mark follows the event, if the worker has sent it.
            let mut mark_client = client.clone();
            let marking = async {
                loop {
                    let mark = json!({"name": "model.mark", "correlation": id});
                    execute(&mut mark_client, "emit", &mark).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let mut is_dropped = true;
            let reading = async {
                loop {
                    let event = telemetry.next().await;
                    match event.event_parts.last().unwrap().as_str() {
                        _ if event.correlation_id != id => {}
                        "mark" => break,
                        _ => is_dropped = false,
                    }
                }
            };
            tokio::select! {
                () = reading => {}
                () = marking => unreachable!(),
            }
            if is_dropped {
                return;
            }
        }
    };
    timeout(EVENT_TIMEOUT, silencing).await.expect("the worker applies the control");
}

#[tokio::test]
async fn a_foreign_host_controls_the_events_of_a_worker() {
    // The original's hosts pass such arguments, too.
    let arguments = [
        "--snakepit-instance-name",
        "x",
        "--heartbeat-enabled",
        "--heartbeat-interval-ms",
        "500",
        "--max-workers",
        "4",
    ];
    let (mut worker, mut client) = alone(&arguments).await;
    let mut telemetry = Telemetry::open(&mut client).await;
    let start = telemetry.next().await;
    assert_eq!(start.event_parts, ["start", "loaded"], "events of the start wait for the first stream");
    execute(&mut client, "emit", &json!({"name": "a.b"})).await.unwrap();
    assert_eq!(telemetry.next().await.event_parts, ["a", "b"]);

    let [off, on] = [false, true].map(|enabled| Control::Toggle(pb::TelemetryToggle { enabled }));
    silenced(&mut client, &mut telemetry, off, Some(on)).await;
    let sampling = |sampling_rate, pattern: &str| {
        let event_patterns = vec![pattern.to_owned()];
        Control::Sampling(pb::TelemetrySamplingUpdate { sampling_rate, event_patterns })
    };
    silenced(&mut client, &mut telemetry, sampling(0.0, "a.*"), None).await;

    telemetry.control(sampling(0.5, "many")).await;
    let sampled = async {
        loop {
            execute(&mut client, "emit", &json!({"name": "many", "count": 400})).await.unwrap();
            execute(&mut client, "emit", &json!({"name": "end"})).await.unwrap();
            let mut count = 0;
            loop {
                match telemetry.next().await.event_parts.join(".").as_str() {
                    "many" => count += 1,
                    "end" => break,
                    _ => {}
                }
            }
            // Until the worker has applied the control, all of them arrive.
            if count < 400 {
                break count;
            }
        }
    };
    let count = timeout(EVENT_TIMEOUT, sampled).await.expect("the worker applies the rate");
    assert!((100..=300).contains(&count), "{count}");

    silenced(&mut client, &mut telemetry, allow("model.*"), None).await;
    let deny = vec!["*".to_owned(); 100];
    telemetry.control(Control::Filter(pb::TelemetryEventFilter { allow: Vec::new(), deny })).await;
    let rejected = loop {
        match telemetry.events.message().await {
            Ok(Some(_)) => {}
            ended => break ended.unwrap_err(),
        }
    };
    assert_eq!(rejected.code(), Code::InvalidArgument, "{rejected:?}");
    assert!(rejected.message().contains("`filter.deny` has 100 patterns, the limit is 64"), "{rejected:?}");
    worker.start_kill().unwrap();
}

#[tokio::test]
async fn the_queue_of_a_slow_reader_is_bounded_and_losses_are_counted() {
    let (mut worker, mut client) = alone(&[]).await;
    let mut telemetry = Telemetry::open(&mut client).await;
    telemetry.next_named("start.loaded").await;
    // Far more than the queue and the flow-control windows of a reader that does not read.
    let burst = json!({"name": "burst", "count": 4000, "size": 8000});
    execute(&mut client, "emit", &burst).await.unwrap();
    let dropped = execute(&mut client, "dropped", &json!({})).await.unwrap()["dropped"].as_u64().unwrap();
    assert!(dropped > 0);
    execute(&mut client, "emit", &json!({"name": "large", "size": 100_000})).await.unwrap();
    let (mut received, mut lost) = (0, 0);
    while received + lost < 4001 {
        let event = telemetry.next().await;
        match &*event.event_parts.join(".") {
            "burst" => received += 1,
            "telemetry.events.lost" => match event.measurements["count"].value {
                Some(Measurement::IntValue(count)) => lost += count,
                ref other => panic!("{other:?}"),
            },
            other => panic!("{other}"),
        }
    }
    let dropped = execute(&mut client, "dropped", &json!({})).await.unwrap()["dropped"].as_i64().unwrap();
    assert_eq!(lost, dropped, "every lost event is reported");
    worker.start_kill().unwrap();
}

#[tokio::test]
async fn a_program_subscribes_and_controls_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Snakepit::builder()
        .adapter("events:")
        .python(python())
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .run_dir(dir.path())
        .workers(1)
        .multiplex(!plain_calls())
        .worker_telemetry(TelemetryFilter::new().deny("secret"));
    let snakepit = builder.start().await.unwrap();
    let mut events = snakepit.telemetry(TelemetryFilter::new().deny("tool.execution.start"));
    async fn emit_until(
        snakepit: &Snakepit,
        events: &mut (impl StreamExt<Item = TelemetryEvent> + Unpin),
        name: &str,
    ) -> TelemetryEvent {
        let emitting = async {
            loop {
                snakepit.execute::<Value>("emit", json!({"name": name})).await.unwrap();
            }
        };
        let found = async {
            loop {
                let event = timeout(EVENT_TIMEOUT, events.next()).await.expect("an event arrives").unwrap();
                if event.name == name {
                    return event;
                }
            }
        };
        tokio::select! {
            event = found => event,
            () = emitting => unreachable!(),
        }
    }
    let event = emit_until(&snakepit, &mut events, "cache").await;
    assert_eq!(event.measurements["share"], TelemetryValue::Float(0.5));
    assert!(event.timestamp.elapsed().unwrap() < Duration::from_secs(60));
    let completed = json!({"name": "call"});
    snakepit.execute::<Value>("emit", completed).await.unwrap();
    while events.next().await.unwrap().name != "tool.execution.stop" {}

    snakepit.set_worker_telemetry(TelemetryFilter::new().deny("cache")).unwrap();
    emit_until(&snakepit, &mut events, "secret").await;
    snakepit.execute::<Value>("emit", json!({"name": "cache"})).await.unwrap();
    emit_until(&snakepit, &mut events, "last").await;
    let many = (0..100).fold(TelemetryFilter::new(), |filter, _| filter.deny("x"));
    let error = snakepit.set_worker_telemetry(many).unwrap_err();
    assert_eq!(error.to_string(), "`filter.deny` has 100 patterns, the limit is 64");
    snakepit.shutdown().await.unwrap();
    while timeout(EVENT_TIMEOUT, events.next()).await.expect("the stream ends with the host").is_some() {}
}
