//! A Redis server for one test.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::Signal;
use tokio::{net::UnixStream, time::timeout};

/// A running `redis-server`. Dropping it kills the process.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    dir: tempfile::TempDir,
    persistence: &'static [&'static str],
}

/// Options of a server without persistence.
const VOLATILE: &[&str] = &["--save", "", "--appendonly", "no"];
/// Options of a server that syncs every write before it acknowledges it.
const DURABLE: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl Redis {
    /// Starts a server without persistence on a socket in a temporary directory, and waits until it accepts connections.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Self {
        Self::launch(tempfile::tempdir().unwrap(), VOLATILE).await
    }

    /// Starts a server that does not lose acknowledged writes when it is killed.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn durable() -> Self {
        Self::launch(tempfile::tempdir().unwrap(), DURABLE).await
    }

    async fn launch(dir: tempfile::TempDir, persistence: &'static [&'static str]) -> Self {
        let child = spawn(dir.path(), persistence);
        let redis = Self { child, dir, persistence };
        redis.wait_until_ready().await;
        redis
    }

    /// Kills the server, and starts it again in the same directory after `downtime`.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self, downtime: Duration) {
        self.child.kill().expect("redis-server runs");
        self.child.wait().expect("redis-server can be waited for");
        tokio::time::sleep(downtime).await;
        self.child = spawn(self.dir.path(), self.persistence);
        self.wait_until_ready().await;
    }

    /// Sends a signal to the server, such as SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) {
        crate::signal(self.child.id(), signal);
    }

    async fn wait_until_ready(&self) {
        let accepts = async {
            while UnixStream::connect(self.dir.path().join("redis")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), accepts).await.expect("redis-server accepts connections");
    }

    /// Returns its URL in the form that `--sessions` accepts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("redis").display())
    }
}

fn spawn(dir: &Path, persistence: &[&str]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(persistence).args(["--port", "0", "--unixsocket"]).arg(dir.join("redis"));
    command.arg("--dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!("cannot run redis-server: {error}; install it with `apt-get install redis-server`")
    })
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
