//! Connects the standard streams of a debugged worker to the standard streams of this program.
//!
//! A worker is in its own process group, so it cannot read from the terminal itself. It connects to a socket instead. This program
//! copies its standard input to the worker that wrote last, and everything that workers write to its standard output. Ctrl-C
//! therefore still reaches this program.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use crate::log::write_blocking;

/// The environment variable of a worker with the path of the socket.
pub(super) const VARIABLE: &str = "SNAKEPIT_DEBUG_TERMINAL";

/// The number of blocks of standard input that wait for a worker.
const MAX_INPUT_BLOCKS: usize = 64;

/// The socket to which debugged workers connect.
#[derive(Debug)]
pub(super) struct Terminal {
    dir: PathBuf,
    socket: PathBuf,
    listener: Option<UnixListener>,
    input: Option<mpsc::Receiver<Vec<u8>>>,
    /// The worker that connected or wrote last, and an earlier one that still runs.
    workers: Vec<ConnectedWorker>,
}

#[derive(Debug)]
struct ConnectedWorker {
    output: OwnedReadHalf,
    input: OwnedWriteHalf,
}

/// An event of the terminal.
enum TerminalEvent {
    Connected(UnixStream),
    Input(Vec<u8>),
    Output(usize, Vec<u8>),
    Closed(usize),
}

impl Terminal {
    /// Creates the socket in a private directory, and begins to read standard input.
    pub(super) fn open() -> io::Result<Self> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("snakepit-dev-{}-{:x}", std::process::id(), time.as_nanos());
        let dir = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&dir)?;
        let socket = dir.join("terminal.sock");
        let (sender, input) = mpsc::channel(MAX_INPUT_BLOCKS);
        let mut terminal = Self { dir, socket, listener: None, input: Some(input), workers: Vec::new() };
        terminal.listener = Some(UnixListener::bind(&terminal.socket)?);
        std::thread::Builder::new().name("snakepit-stdin".to_owned()).spawn(move || read_stdin(&sender))?;
        Ok(terminal)
    }

    /// The path of the socket.
    pub(super) fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// Copies input and output. Never returns. Cancel safe, except for a block of input that is being written.
    pub(super) async fn run(&mut self) {
        loop {
            match self.next().await {
                TerminalEvent::Connected(stream) => {
                    let (output, input) = stream.into_split();
                    self.workers.push(ConnectedWorker { output, input });
                }
                TerminalEvent::Input(block) => {
                    if let Some(worker) = self.workers.last_mut() {
                        // A worker that has exited is removed when its output ends.
                        let _ = worker.input.write_all(&block).await;
                    }
                }
                TerminalEvent::Output(index, block) => {
                    let worker = self.workers.remove(index);
                    self.workers.push(worker);
                    // Output to a closed terminal is lost, as with other programs.
                    let _ = write_blocking(&mut io::stdout().lock(), &block);
                    let _ = io::Write::flush(&mut io::stdout());
                }
                TerminalEvent::Closed(index) => drop(self.workers.remove(index)),
            }
        }
    }

    /// Waits for the next event. Cancel safe.
    async fn next(&mut self) -> TerminalEvent {
        let Self { listener, input, workers, .. } = self;
        let accept = async {
            match listener {
                Some(listener) => loop {
                    // Fails only without descriptors.
                    match listener.accept().await {
                        Ok((stream, _)) => return stream,
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                    }
                },
                None => std::future::pending().await,
            }
        };
        let typed = async {
            loop {
                match input {
                    Some(receiver) => match receiver.recv().await {
                        Some(block) => return block,
                        None => *input = None,
                    },
                    None => return std::future::pending().await,
                }
            }
        };
        let written = async {
            if workers.is_empty() {
                return std::future::pending().await;
            }
            let reads = workers.iter_mut().map(|worker| {
                Box::pin(async {
                    let mut block = vec![0; 4096];
                    let count = worker.output.read(&mut block).await.unwrap_or(0);
                    block.truncate(count);
                    block
                })
            });
            let (block, index, _) = futures_util::future::select_all(reads).await;
            if block.is_empty() { TerminalEvent::Closed(index) } else { TerminalEvent::Output(index, block) }
        };
        tokio::select! {
            stream = accept => TerminalEvent::Connected(stream),
            block = typed => TerminalEvent::Input(block),
            event = written => event,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let remove = |path: &Path| fs::remove_file(path).and_then(|()| fs::remove_dir(&self.dir));
        if let Err(error) = remove(&self.socket) {
            tracing::debug!(%error, "failed to remove the socket of the terminal");
        }
    }
}

/// Reads standard input to its end.
fn read_stdin(sender: &mpsc::Sender<Vec<u8>>) {
    let mut block = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut block) {
            Ok(0) => return,
            Ok(count) => {
                if sender.blocking_send(block[..count].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
