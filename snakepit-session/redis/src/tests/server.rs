//! A Redis server for a test, and a proxy that can break its connections.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use snakepit_session::{SessionError, SessionLimits};
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use super::super::{RedisBackend, RedisConfig};

/// The timeout for starting a server.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A server without persistence, which stops when this is dropped.
pub(super) struct Server {
    dir: TempDir,
    arguments: Vec<String>,
    child: Child,
    pub(super) url: String,
}

impl Server {
    /// Starts a server on a Unix domain socket, which cannot collide with a port in use.
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server on a loopback port with a password.
    pub(super) fn with_password(password: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..10 {
            // Another process may take the port before the server does. The server then exits, and we try another port.
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let port = free.to_string();
            let arguments = ["--bind", "127.0.0.1", "--port", &port, "--requirepass", password];
            let arguments = arguments.map(str::to_owned).to_vec();
            if let Ok(child) = launch(&dir, &arguments) {
                return Self { dir, arguments, child, url: format!("127.0.0.1:{port}") };
            }
        }
        panic!("no port is free")
    }

    /// Like [`start`](Self::start), with more arguments.
    pub(super) fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis").display().to_string();
        let mut arguments = ["--port", "0", "--unixsocket", &socket].map(str::to_owned).to_vec();
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let child = launch(&dir, &arguments).expect("the server starts");
        Self { dir, arguments, child, url: format!("redis+unix://{socket}") }
    }

    pub(super) fn stop(&mut self) {
        // Kill the child by its handle.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Restarts the server with its saved data.
    pub(super) fn restart(&mut self) {
        self.child = launch(&self.dir, &self.arguments).expect("the server starts again");
    }

    /// Restarts the server with more arguments, without waiting until it has loaded its data.
    pub(super) fn start_loading(&mut self, more: &[&str]) {
        let arguments = [&self.arguments[..], &more.iter().map(|&more| more.to_owned()).collect::<Vec<_>>()];
        self.child = spawn(&self.dir, &arguments.concat());
    }

    /// Opens a loopback port and returns it.
    pub(super) async fn with_port(&self) -> u16 {
        for _ in 0..10 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let client = redis::Client::open(&*self.url).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let mut listen = redis::cmd("CONFIG");
            listen.arg("SET").arg("port").arg(port);
            if listen.query_async::<()>(&mut connection).await.is_ok() {
                return port;
            }
        }
        panic!("no port is free")
    }

    /// Suspends or resumes the server.
    pub(super) fn freeze(&self, is_frozen: bool) {
        let signal = if is_frozen { "-STOP" } else { "-CONT" };
        #[expect(clippy::disallowed_methods, reason = "not a worker")]
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub(super) async fn host(&self) -> RedisBackend {
        self.host_with(SessionLimits::default()).await
    }

    pub(super) async fn host_with(&self, limits: SessionLimits) -> RedisBackend {
        RedisBackend::connect(&self.url, RedisConfig::default(), limits)
            .await
            .expect("the server accepts connections")
    }

    /// Runs a command directly.
    pub(super) async fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(&*self.url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[expect(clippy::disallowed_methods, reason = "not a worker")]
fn spawn(dir: &TempDir, arguments: &[String]) -> Child {
    let mut server = Command::new("redis-server");
    server.args(["--save", "", "--appendonly", "no", "--dir"]).arg(dir.path()).args(arguments);
    let child = server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    child.unwrap_or_else(|error| {
        panic!(
            "cannot run redis-server, which these tests need: {error}; install it with `apt-get install redis-server`, \
             or run `cargo xtask test`, which does so where it can"
        )
    })
}

fn launch(dir: &TempDir, arguments: &[String]) -> Result<Child, String> {
    let mut child = spawn(dir, arguments);
    let (lines, received) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    // This thread reads to the end, so that the server never blocks on its output.
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let mut output_lines = Vec::new();
    loop {
        match received.recv_timeout(START_TIMEOUT) {
            // Redis prints this for sockets and for ports; the rest of the line varies.
            Ok(line) if line.to_lowercase().contains("ready to accept connections") => return Ok(child),
            Ok(line) => output_lines.push(line),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(output_lines.join("\n"));
            }
        }
    }
}

/// A proxy whose connections can be broken and restored.
pub(super) struct Proxy {
    _dir: TempDir,
    pub(super) url: String,
    is_connected: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(super) fn to(server: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy");
        let url = format!("redis+unix://{}", socket.display());
        let listener = UnixListener::bind(socket).unwrap();
        let to = server.dir.path().join("redis");
        let (is_connected, connected) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (to, mut connected) = (to.clone(), connected.clone());
                connections.spawn(async move {
                    if !*connected.borrow() {
                        return;
                    }
                    let mut far = UnixStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = connected.wait_for(|connected| !connected) => {}
                    }
                });
            }
        });
        Self { _dir: dir, url, is_connected, _tasks: tasks }
    }

    pub(super) async fn host(&self, config: RedisConfig) -> Result<RedisBackend, SessionError> {
        RedisBackend::connect(&self.url, config, SessionLimits::default()).await
    }

    pub(super) fn disconnect(&self) {
        self.is_connected.send_replace(false);
    }

    pub(super) fn reconnect(&self) {
        self.is_connected.send_replace(true);
    }
}
