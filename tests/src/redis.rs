//! A Redis server of a test's own.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};

/// A running `redis-server` that keeps nothing when it ends, which it does with this.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one on a socket in a directory of its own, and waits until it accepts.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--appendonly", "no", "--port", "0", "--unixsocket"]);
        command.arg(dir.path().join("redis")).arg("--dir").arg(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot run redis-server: {error}; install it with `apt-get install redis-server`")
        });
        let redis = Self { child, dir };
        let accepts = async {
            while UnixStream::connect(redis.dir.path().join("redis")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), accepts).await.expect("redis-server accepts connections");
        redis
    }

    /// Where it is, as `--sessions` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("redis").display())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // By the handle of what this started, and nothing else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
