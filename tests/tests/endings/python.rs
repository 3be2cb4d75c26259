//! Calls and watches by Python clients. A program performs the requests that the test sends to its stdin.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use snakepit_tests::{python, root};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};
use tonic::{Code, Status};

use crate::calls::reason_of;

/// A running `endings_client.py`.
#[derive(Debug)]
pub struct PythonClient {
    _program: Child,
    _tasks: JoinSet<()>,
    lines: UnboundedSender<String>,
    events: Arc<Mutex<HashMap<u64, UnboundedSender<Value>>>>,
}

/// A running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct PythonRequest {
    id: u64,
    lines: UnboundedSender<String>,
    events: UnboundedReceiver<Value>,
}

impl PythonClient {
    /// Starts the program. `library` is `grpcio` or `package`.
    pub fn start(library: &str, address: &str) -> Self {
        let mut program = Command::new(python())
            .arg(root().join("tests/clients/endings_client.py"))
            .args([library, address])
            .env("SNAKEPIT_TEST_STUBS", root().join(".venv/stubs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = program.stdin.take().unwrap();
        let mut stdout = BufReader::new(program.stdout.take().unwrap()).lines();
        let (lines, mut requests) = unbounded_channel::<String>();
        let events = Arc::<Mutex<HashMap<u64, UnboundedSender<Value>>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(line) = requests.recv().await {
                stdin.write_all(line.as_bytes()).await.unwrap();
            }
        });
        let receivers = Arc::clone(&events);
        tasks.spawn(async move {
            while let Some(line) = stdout.next_line().await.unwrap() {
                let mut event: Value = serde_json::from_str(&line).unwrap();
                if let Some(receiver) = receivers.lock().unwrap().get(&event["id"].as_u64().unwrap()) {
                    // The request may have been cancelled.
                    let _ = receiver.send(event["event"].take());
                }
            }
            receivers.lock().unwrap().clear();
        });
        Self { _program: program, _tasks: tasks, lines, events }
    }

    /// Starts a call or a watch.
    pub fn request(&self, mut request: Value) -> PythonRequest {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::SeqCst);
        let (sender, events) = unbounded_channel();
        self.events.lock().unwrap().insert(id, sender);
        request["id"] = json!(id);
        self.lines.send(format!("{request}\n")).unwrap();
        PythonRequest { id, lines: self.lines.clone(), events }
    }
}

impl PythonRequest {
    /// Waits for the next event: `BEGUN` of a watch, `OK`, or the reason of a failure.
    pub async fn next_event(&mut self) -> String {
        let event = self.events.recv().await.expect("the Python client runs");
        if let Some(name) = event.as_str() {
            return name.to_owned();
        }
        match event["error"].as_str() {
            Some("ToolFailed") => "TOOL_FAILED".to_owned(),
            Some("DeadlineExceededError") => "DEADLINE_EXCEEDED".to_owned(),
            Some("WorkerLostError") => "WORKER_LOST".to_owned(),
            Some("ShuttingDownError") => "SHUTTING_DOWN".to_owned(),
            Some(other) => other.to_owned(),
            None => {
                let digits = event["details"].as_str().unwrap().as_bytes();
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
                let details: Vec<u8> = digits.chunks(2).map(byte).collect();
                let code = Code::from_i32(i32::try_from(event["code"].as_i64().unwrap()).unwrap());
                reason_of(&Status::with_details(code, event["message"].as_str().unwrap(), details.into()))
            }
        }
    }
}

impl Drop for PythonRequest {
    fn drop(&mut self) {
        // The program may have ended.
        let _ = self.lines.send(format!("{}\n", json!({"id": self.id, "cancel": true})));
    }
}
