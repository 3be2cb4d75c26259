//! A Redis server of a test's own.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::Signal;
use tokio::{net::UnixStream, time::timeout};

/// A running `redis-server`, which ends with this.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    dir: tempfile::TempDir,
    persistence: &'static [&'static str],
}

/// Nothing outlives the server.
const VOLATILE: &[&str] = &["--save", "", "--appendonly", "no"];
/// Every acknowledged write outlives it.
const DURABLE: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl Redis {
    /// Starts one that keeps nothing when it ends, on a socket in a directory of its own, and waits until it accepts.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        Self::launch(tempfile::tempdir().unwrap(), VOLATILE).await
    }

    /// Starts one that loses no acknowledged write, even when it is killed.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn durable() -> Self {
        Self::launch(tempfile::tempdir().unwrap(), DURABLE).await
    }

    async fn launch(dir: tempfile::TempDir, persistence: &'static [&'static str]) -> Self {
        let child = spawn(dir.path(), persistence);
        let redis = Self { child, dir, persistence };
        redis.accepts().await;
        redis
    }

    /// Kills it, stays away for that long, and starts it anew on the same directory.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self, away: Duration) {
        self.child.kill().expect("redis-server runs");
        self.child.wait().expect("redis-server can be waited for");
        tokio::time::sleep(away).await;
        self.child = spawn(self.dir.path(), self.persistence);
        self.accepts().await;
    }

    /// Sends it a signal, such as SIGSTOP and SIGCONT.
    pub fn signal(&self, signal: Signal) {
        crate::signal(self.child.id(), signal);
    }

    async fn accepts(&self) {
        let accepts = async {
            while UnixStream::connect(self.dir.path().join("redis")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), accepts).await.expect("redis-server accepts connections");
    }

    /// Where it is, as `--sessions` takes it.
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
        // By the handle of what this started, and nothing else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
