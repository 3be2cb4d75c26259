//! Reverse proxies in front of a host, with the settings from docs/proxies.md.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    net::UnixStream,
    process::{Child, Command},
};

use crate::{eventually, root};

/// A running nginx or HAProxy. Dropping it kills the process.
#[derive(Debug)]
pub struct Proxy {
    _child: Child,
    dir: tempfile::TempDir,
}

impl Proxy {
    /// Starts nginx with the documented settings, in front of `host:port`.
    pub async fn nginx(host: &str) -> Self {
        Self::nginx_with(host, |settings| settings).await
    }

    /// Starts nginx with a changed copy of the documented settings.
    pub async fn nginx_with(host: &str, change: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}", socket(&dir).display());
        let server = change(settings("nginx.conf", host)).replace("listen 8080", &format!("listen {socket}"));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};", path(kind)))
            .join(" ");
        let config = format!(
            "daemon off; master_process off; pid {}; error_log stderr; events {{ worker_connections 512; }}\n\
             http {{ access_log off; {temporary}\n{server}\n}}\n",
            path("pid"),
        );
        std::fs::write(dir.path().join("config"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-c").arg(dir.path().join("config"));
        Self::start(command, dir).await
    }

    /// Starts HAProxy with the documented settings, in front of `host:port`.
    pub async fn haproxy(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bind = format!("bind unix@{}", socket(&dir).display());
        std::fs::write(dir.path().join("config"), settings("haproxy.cfg", host).replace("bind :8080", &bind))
            .unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(dir.path().join("config"));
        Self::start(command, dir).await
    }

    async fn start(mut command: Command, dir: tempfile::TempDir) -> Self {
        // Distributions install servers in /usr/sbin, which not every user's `PATH` contains.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let child = command.env("PATH", path).stdin(Stdio::null()).kill_on_drop(true).spawn();
        let child = child.unwrap_or_else(|e| panic!("{e}: {command:?}; CI installs nginx-light and haproxy"));
        let proxy = Self { _child: child, dir };
        let path = socket(&proxy.dir);
        eventually("the proxy accepts", Duration::from_secs(10), async || {
            UnixStream::connect(&path).await.is_ok()
        })
        .await;
        proxy
    }

    /// Returns its address in the form that clients accept.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", socket(&self.dir).display())
    }
}

fn socket(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("s")
}

fn settings(file: &str, host: &str) -> String {
    let text = std::fs::read_to_string(root().join("tests/proxies").join(file)).unwrap();
    assert!(text.contains("127.0.0.1:50051"));
    text.replace("127.0.0.1:50051", host)
}
