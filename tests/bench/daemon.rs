//! The product as a daemon in a separate process, called over its Unix socket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use snakepit_proto::{
    mux::{CallEnd, CallEvent, STREAM_CREDIT, chunk_cost},
    pb,
};
use snakepit_tests::{Client, Sandbox, result_of, tool_request};

use crate::{
    connect::{call_of, connect, integer, multiplex},
    cpu::Processes,
    load::{Timing, check_result, closed_loop},
    product::{ADAPTER, adapters, per_chunk},
    sample::{Sample, Times},
};

/// The name of the variable that the measurements read and write.
const RATE: &str = "rate";

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    sandbox: Sandbox,
    processes: Processes,
}

impl Daemon {
    pub(crate) async fn start(workers: usize) -> Self {
        let sandbox = Sandbox::adapter(ADAPTER, workers)
            .env("PYTHONPATH", adapters().display().to_string())
            .env("SNAKEPIT_LOG", "info")
            .start()
            .await;
        let processes = Processes { host: vec![sandbox.pid()], workers: sandbox.worker_pids().await };
        Self { sandbox, processes }
    }

    pub(crate) const fn processes(&self) -> &Processes {
        &self.processes
    }

    pub(crate) async fn stop(self) {
        assert_eq!(self.sandbox.stop().await, Some(0), "the daemon stops cleanly");
    }

    /// Measures `ExecuteTool` on one connection.
    pub(crate) async fn unary(&self, in_flight: usize, timing: Timing) -> Sample {
        self.rpcs(in_flight, timing, |mut client, number| async move {
            let request = tool_request("add", &json!({"a": number, "b": 1}));
            let response = client.execute_tool(request).await;
            check_result(response, |response| result_of(response.get_ref().clone()) == number + 1)
        })
        .await
    }

    /// Measures calls multiplexed on one stream.
    pub(crate) async fn multiplexed(&self, in_flight: usize, timing: Timing) -> Sample {
        let (multiplexer, _tasks) = multiplex(self.sandbox.socket()).await;
        let multiplexer = Arc::new(multiplexer);
        closed_loop(in_flight, timing, &self.processes, move |number| {
            let multiplexer = Arc::clone(&multiplexer);
            async move {
                let call = call_of("add", [("a", number), ("b", 1)]);
                let event = multiplexer.start(call, number).event().await;
                let expected = Some(integer(number + 1));
                matches!(event, CallEvent::End(CallEnd::Reply(reply)) if reply.value == expected)
            }
        })
        .await
    }

    /// Measures `Ping`, the empty RPC.
    pub(crate) async fn ping(&self, in_flight: usize, timing: Timing) -> Sample {
        self.rpcs(in_flight, timing, |mut client, number| async move {
            let message = number.to_string();
            let response = client.ping(pb::PingRequest { message: message.clone() }).await;
            check_result(response, |response| response.get_ref().message.ends_with(&message))
        })
        .await
    }

    /// Measures `GetSession`, spread over one session per call in flight.
    pub(crate) async fn get_session(&self, in_flight: usize, timing: Timing) -> Sample {
        let sessions = self.open_sessions(in_flight).await;
        self.rpcs(in_flight, timing, move |mut client, number| {
            let session_id = sessions[number as usize % sessions.len()].clone();
            async move {
                let response =
                    client.get_session(pb::GetSessionRequest { session_id: session_id.clone() }).await;
                check_result(response, |response| response.get_ref().session_id == session_id)
            }
        })
        .await
    }

    /// Measures `Heartbeat`, spread over one session per call in flight.
    pub(crate) async fn heartbeat(&self, in_flight: usize, timing: Timing) -> Sample {
        let sessions = self.open_sessions(in_flight).await;
        self.rpcs(in_flight, timing, move |mut client, number| {
            let session_id = sessions[number as usize % sessions.len()].clone();
            async move {
                let response = client.heartbeat(pb::HeartbeatRequest { session_id, client_time: None }).await;
                check_result(response, |response| response.get_ref().session_valid)
            }
        })
        .await
    }

    /// Measures `GetVariable`, spread over one session per call in flight.
    pub(crate) async fn get_variable(&self, in_flight: usize, timing: Timing) -> Sample {
        let sessions = self.open_sessions(in_flight).await;
        self.register_rate(&sessions).await;
        self.rpcs(in_flight, timing, move |mut client, number| {
            let session_id = sessions[number as usize % sessions.len()].clone();
            async move {
                let variable_identifier = RATE.to_owned();
                let request =
                    pb::GetVariableRequest { session_id, variable_identifier, ..Default::default() };
                let response = client.get_variable(request).await;
                check_result(response, |response| {
                    response.get_ref().variable.as_ref().is_some_and(|found| found.name == RATE)
                })
            }
        })
        .await
    }

    /// Measures `SetVariable`, spread over one session per call in flight.
    pub(crate) async fn set_variable(&self, in_flight: usize, timing: Timing) -> Sample {
        let sessions = self.open_sessions(in_flight).await;
        self.register_rate(&sessions).await;
        self.rpcs(in_flight, timing, move |mut client, number| {
            let session_id = sessions[number as usize % sessions.len()].clone();
            async move {
                let value = Some(any(number));
                let variable_identifier = RATE.to_owned();
                let request =
                    pb::SetVariableRequest { session_id, variable_identifier, value, ..Default::default() };
                let response = client.set_variable(request).await;
                check_result(response, |response| response.get_ref().new_version > 0)
            }
        })
        .await
    }

    /// Registers the variable in each session that does not have it.
    async fn register_rate(&self, sessions: &[String]) {
        let mut client = connect(self.sandbox.socket()).await;
        for session_id in sessions {
            let request = pb::RegisterVariableRequest {
                session_id: session_id.clone(),
                name: RATE.to_owned(),
                r#type: "integer".to_owned(),
                initial_value: Some(any(0)),
                ..Default::default()
            };
            match client.register_variable(request).await {
                Err(status) if status.code() != tonic::Code::AlreadyExists => panic!("{status}"),
                _ => {}
            }
        }
    }

    async fn rpcs<F, Fut>(&self, in_flight: usize, timing: Timing, rpc: F) -> Sample
    where
        F: Fn(Client, u64) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        let client = connect(self.sandbox.socket()).await;
        closed_loop(in_flight, timing, &self.processes, move |number| rpc(client.clone(), number)).await
    }

    async fn open_sessions(&self, count: usize) -> Arc<Vec<String>> {
        let mut client = connect(self.sandbox.socket()).await;
        let ids: Vec<String> = (0..count).map(|number| format!("bench-{number}")).collect();
        for session_id in ids.clone() {
            let request = pb::InitializeSessionRequest { session_id, ..Default::default() };
            client.initialize_session(request).await.expect("a session can be opened");
        }
        Arc::new(ids)
    }

    /// Measures one stream over `ExecuteStreamingTool` or on a multiplexed stream, and the first chunks of short streams.
    pub(crate) async fn chunks(&self, count: u64, multiplexed: bool) -> Sample {
        let (mut first, mut errors) = (Times::new(), 0.0);
        for _ in 0..60 {
            let (_, took, is_correct) = self.stream(16, multiplexed).await;
            first.record(took);
            errors += f64::from(u8::from(!is_correct));
        }
        let before = self.processes.cpu_time();
        let (took, _, is_correct) = self.stream(count, multiplexed).await;
        let after = self.processes.cpu_time();
        errors += f64::from(u8::from(!is_correct));
        per_chunk(count, took)
            .with("errors", errors)
            .with("first_p50_us", first.micros(0.5))
            .with("host_cpu_us", (after.host - before.host) as f64 / count as f64)
            .with("workers_cpu_us", (after.workers - before.workers) as f64 / count as f64)
    }

    /// Reads a stream. Returns the times to its end and to its first chunk, and whether every chunk was right.
    pub(crate) async fn stream(&self, count: u64, multiplexed: bool) -> (Duration, Duration, bool) {
        let mut checker =
            ChunkChecker { began: Instant::now(), first: Duration::ZERO, next: 0, is_correct: true };
        if multiplexed {
            self.multiplexed_stream(count, &mut checker).await;
        } else {
            self.plain_stream(count, &mut checker).await;
        }
        (checker.began.elapsed(), checker.first, checker.is_correct && checker.next == count)
    }

    async fn plain_stream(&self, count: u64, checker: &mut ChunkChecker) {
        let mut client = connect(self.sandbox.socket()).await;
        checker.began = Instant::now();
        let response = client.execute_streaming_tool(tool_request("chunks", &json!({"n": count}))).await;
        let Ok(response) = response else { return };
        let mut chunks = response.into_inner();
        while let Ok(Some(chunk)) = chunks.message().await {
            if !chunk.data.is_empty() {
                checker.chunk(&chunk.data);
            }
        }
    }

    async fn multiplexed_stream(&self, count: u64, checker: &mut ChunkChecker) {
        let (multiplexer, _tasks) = multiplex(self.sandbox.socket()).await;
        let start = call_of("chunks", [("n", count)]);
        checker.began = Instant::now();
        let mut call = multiplexer.start(pb::CallStart { stream: true, credit: STREAM_CREDIT, ..start }, 0);
        loop {
            match call.event().await {
                CallEvent::Opened(_) | CallEvent::Reports(_) => {}
                CallEvent::Chunks(chunks) => {
                    chunks.iter().for_each(|chunk| checker.chunk(&chunk.data));
                    call.grant(chunks.iter().map(chunk_cost).sum());
                }
                CallEvent::End(CallEnd::Reply(reply)) => {
                    checker.is_correct &= reply.failure.is_none() && reply.status.is_none();
                    return;
                }
                CallEvent::End(_) => {
                    checker.is_correct = false;
                    return;
                }
            }
        }
    }
}

/// Checks that the chunks of a stream count from 0.
struct ChunkChecker {
    began: Instant,
    first: Duration,
    next: u64,
    is_correct: bool,
}

impl ChunkChecker {
    fn chunk(&mut self, json: &[u8]) {
        if self.next == 0 {
            self.first = self.began.elapsed();
        }
        self.is_correct &= serde_json::from_slice::<u64>(json).is_ok_and(|number| number == self.next);
        self.next += 1;
    }
}

/// Encodes an integer as the value of a variable.
fn any(number: u64) -> pb::Any {
    pb::Any { type_url: "type.googleapis.com/snakepit.integer".to_owned(), value: number.to_string().into() }
}
