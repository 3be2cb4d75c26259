//! Connects the standard streams of debugged workers to the standard streams of this program.
//!
//! A worker is in its own process group, so it cannot read from the terminal itself. It connects to two sockets instead:
//!
//! - Over the socket of the output, it sends the text of its standard output and standard error.
//! - Over the socket of the input, it sends one byte for each read, and receives one line. The end of the connection is the end of
//!   the input. A worker keeps the connection until its call ends. Until then, other workers wait, so the answers to the prompts of
//!   one call never go to another.
//!
//! Both directions are independent, and buffer a bounded number of blocks. Ctrl-C still reaches this program.

use std::{
    fs::{self, DirBuilder},
    future::pending,
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::{
        Mutex, OwnedMutexGuard,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinSet,
};

use crate::log::write_blocking;

/// The environment variable of a worker with the path of the socket of the output.
pub(super) const VARIABLE: &str = "SNAKEPIT_DEBUG_TERMINAL";

/// The suffix that the path of the socket of the input has in addition. `_terminal.py` repeats it.
const INPUT_SUFFIX: &str = ".input";

/// The size of a block of input or output, in bytes.
const BLOCK_BYTES: usize = 4096;
/// The number of blocks that wait in each direction.
const MAX_BLOCKS: usize = 64;
/// The pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The time that the program waits at its end until the output is written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before another attempt to end a full queue of output.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);

/// The sockets to which debugged workers connect, and the tasks that copy.
#[derive(Debug)]
pub(super) struct Terminal {
    dir: PathBuf,
    socket: PathBuf,
    output: Output,
    /// The task that serves the socket of the input.
    inputs: JoinSet<()>,
    /// The task that serves the socket of the output.
    outputs: JoinSet<()>,
    /// Ends the task of the output after its last connection.
    end: Option<oneshot::Sender<()>>,
}

impl Terminal {
    /// Creates the sockets in a private directory, and begins to copy. Needs a runtime.
    pub(super) fn open() -> io::Result<Self> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("snakepit-dev-{}-{:x}", std::process::id(), time.as_nanos());
        let dir = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&dir)?;
        let socket = dir.join("terminal");
        let output = Output::start(io::stdout())?;
        let (end, ended) = oneshot::channel();
        let (inputs, outputs) = (JoinSet::new(), JoinSet::new());
        let mut terminal = Self { dir, socket, output, inputs, outputs, end: Some(end) };
        let output_listener = UnixListener::bind(&terminal.socket)?;
        let input_listener = UnixListener::bind(input_path(&terminal.socket))?;
        let (sender, typed) = mpsc::channel(MAX_BLOCKS);
        let is_terminal = io::stdin().is_terminal();
        std::thread::Builder::new()
            .name("snakepit-stdin".to_owned())
            .spawn(move || read_input(&mut io::stdin().lock(), is_terminal, &sender))?;
        let blocks = terminal.output.blocks.clone();
        let copy = move |stream| copy_output(stream, blocks.clone());
        terminal.outputs.spawn(serve(output_listener, copy, ended));
        let input = Arc::new(Mutex::new(Input { typed, rest: Vec::new() }));
        let copy = move |stream| copy_input(stream, Arc::clone(&input));
        terminal.inputs.spawn(serve(input_listener, copy, pending::<()>()));
        Ok(terminal)
    }

    /// Ends the input of all workers.
    pub(super) fn end_input(&mut self) {
        self.inputs.abort_all();
    }

    /// Waits until all workers have ended their output, for a bounded time.
    pub(super) async fn finish(&mut self) {
        self.end = None;
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, self.outputs.join_next()).await;
    }

    /// The path of the socket of the output.
    pub(super) fn socket(&self) -> String {
        self.socket.display().to_string()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.output.flush();
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let removed = remove(&self.socket)
            .and_then(|()| remove(&input_path(&self.socket)))
            .and_then(|()| fs::remove_dir(&self.dir));
        if let Err(error) = removed {
            tracing::debug!(%error, "failed to remove the sockets of the terminal");
        }
    }
}

fn input_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(INPUT_SUFFIX);
    path.into()
}

/// Accepts connections until `end`, and copies for each of them until all have ended.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    listener: UnixListener,
    mut copy: impl FnMut(UnixStream) -> F,
    end: impl Future,
) {
    let (mut copies, mut end) = (JoinSet::new(), pin!(end));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(copies.spawn(copy(stream))),
                // Fails only without descriptors.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = copies.join_next() => {}
            _ = &mut end => break,
        }
    }
    while copies.join_next().await.is_some() {}
}

/// Standard output, which a separate thread writes, so that a stopped terminal blocks neither calls nor input.
#[derive(Debug)]
struct Output {
    /// The blocks to write. An empty one ends the thread.
    blocks: mpsc::Sender<Vec<u8>>,
    /// Disconnected when the thread has ended.
    end: std::sync::mpsc::Receiver<()>,
}

impl Output {
    fn start(mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (blocks, mut queue) = mpsc::channel::<Vec<u8>>(MAX_BLOCKS);
        let (ended, end) = std::sync::mpsc::channel();
        let write = move || {
            let _ended: std::sync::mpsc::Sender<()> = ended;
            while let Some(block) = queue.blocking_recv().filter(|block| !block.is_empty()) {
                // Output to a closed terminal is lost, as with other programs.
                let _ = write_blocking(&mut sink, &block);
                let _ = sink.flush();
            }
        };
        std::thread::Builder::new().name("snakepit-stdout".to_owned()).spawn(write)?;
        Ok(Self { blocks, end })
    }

    /// Waits until all blocks are written, for a bounded time.
    fn flush(&self) {
        for _ in 0..FLUSH_TIMEOUT.as_millis() / FLUSH_PAUSE.as_millis() {
            match self.blocks.try_send(Vec::new()) {
                Ok(()) => {
                    let _ = self.end.recv_timeout(FLUSH_TIMEOUT);
                    return;
                }
                Err(TrySendError::Full(_))
                    if self.end.recv_timeout(FLUSH_PAUSE) == Err(RecvTimeoutError::Timeout) => {}
                Err(_) => return,
            }
        }
    }
}

/// Copies the output of a worker until the worker exits.
async fn copy_output(mut stream: UnixStream, blocks: mpsc::Sender<Vec<u8>>) {
    loop {
        let mut block = vec![0; BLOCK_BYTES];
        match stream.read(&mut block).await {
            Ok(count @ 1..) => block.truncate(count),
            _ => return,
        }
        if blocks.send(block).await.is_err() {
            return;
        }
    }
}

/// The input that no worker has received.
#[derive(Debug)]
struct Input {
    /// Blocks of text. `None` is an end after which more text can follow, as on a terminal.
    typed: mpsc::Receiver<Option<Vec<u8>>>,
    /// The rest of the last block.
    rest: Vec<u8>,
}

impl Input {
    /// Waits for a line, or for a part of a long one. Returns `None` at the end. Cancel safe.
    async fn next_line(&mut self) -> Option<Vec<u8>> {
        if self.rest.is_empty() {
            self.rest = self.typed.recv().await??;
        }
        let newline = self.rest.iter().position(|byte| *byte == b'\n');
        let tail = self.rest.split_off(newline.map_or(self.rest.len(), |index| index + 1));
        Some(std::mem::replace(&mut self.rest, tail))
    }

    /// Returns a line that the worker did not receive.
    fn put_back(&mut self, mut line: Vec<u8>) {
        line.append(&mut self.rest);
        self.rest = line;
    }
}

/// Sends a worker one line of input for each request, until the worker or the input ends.
async fn copy_input(stream: UnixStream, input: Arc<Mutex<Input>>) {
    let (mut requests, mut lines) = stream.into_split();
    let mut held: Option<OwnedMutexGuard<Input>> = None;
    while read_request(&mut requests).await {
        // Until the answer, the worker sends nothing, so only the end of its connection can be read.
        let answer = async {
            let input = match &mut held {
                Some(input) => input,
                None => held.insert(Arc::clone(&input).lock_owned().await),
            };
            input.next_line().await
        };
        let line = tokio::select! {
            biased;
            _ = read_request(&mut requests) => return,
            line = answer => line,
        };
        let (Some(line), Some(input)) = (line, &mut held) else { return };
        if lines.write_all(&line).await.is_err() {
            return input.put_back(line);
        }
    }
}

/// Waits for a request. Returns `false` at the end of the connection. Cancel safe.
async fn read_request(requests: &mut OwnedReadHalf) -> bool {
    matches!(requests.read(&mut [0]).await, Ok(1))
}

/// Reads the standard input to its end. A terminal has no end, because text can follow Ctrl-D.
fn read_input(stdin: &mut impl Read, is_terminal: bool, sender: &mpsc::Sender<Option<Vec<u8>>>) {
    let mut block = [0; BLOCK_BYTES];
    loop {
        let typed = match stdin.read(&mut block) {
            Ok(0) if is_terminal => None,
            Ok(0) => return,
            Ok(count) => Some(block[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if sender.blocking_send(typed).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> (mpsc::Sender<Option<Vec<u8>>>, Arc<Mutex<Input>>) {
        let (sender, typed) = mpsc::channel(MAX_BLOCKS);
        (sender, Arc::new(Mutex::new(Input { typed, rest: Vec::new() })))
    }

    /// A worker that reads, and the task that serves it.
    struct Reader {
        stream: UnixStream,
        _task: JoinSet<()>,
    }

    impl Reader {
        fn new(input: &Arc<Mutex<Input>>) -> Self {
            let (stream, served) = UnixStream::pair().unwrap();
            let mut task = JoinSet::new();
            task.spawn(copy_input(served, Arc::clone(input)));
            Self { stream, _task: task }
        }

        async fn request(&mut self) {
            self.stream.write_all(b"r").await.unwrap();
        }

        /// Returns the next text, which is empty at the end.
        async fn receive(&mut self) -> String {
            let mut block = vec![0; 2 * BLOCK_BYTES];
            let count = self.stream.read(&mut block).await.unwrap();
            String::from_utf8(block[..count].to_vec()).unwrap()
        }
    }

    #[tokio::test]
    async fn input_goes_line_by_line_to_the_first_reader_until_its_call_ends() {
        let (sender, input) = input();
        let (mut first, mut second) = (Reader::new(&input), Reader::new(&input));
        first.request().await;
        tokio::task::yield_now().await;
        second.request().await;
        sender.send(Some(b"n\np x\nlast".to_vec())).await.unwrap();
        assert_eq!(first.receive().await, "n\n");
        // Before its next request, the first reader still has the input.
        let early = tokio::time::timeout(Duration::from_millis(20), second.receive()).await;
        assert!(early.is_err(), "{early:?}");
        first.request().await;
        assert_eq!(first.receive().await, "p x\n");
        drop(first);
        assert_eq!(second.receive().await, "last");
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_receives_nothing() {
        let (sender, input) = input();
        let (mut first, mut second) = (Reader::new(&input), Reader::new(&input));
        first.request().await;
        tokio::task::yield_now().await;
        second.request().await;
        drop(first);
        sender.send(Some(b"line\n".to_vec())).await.unwrap();
        assert_eq!(second.receive().await, "line\n");
    }

    #[tokio::test]
    async fn an_end_of_a_terminal_is_read_once_and_that_of_a_pipe_always() {
        let (sender, input) = input();
        for typed in [None, Some(b"more\n".to_vec())] {
            sender.send(typed).await.unwrap();
        }
        drop(sender);
        for expected in ["", "more\n", "", ""] {
            let mut reader = Reader::new(&input);
            reader.request().await;
            assert_eq!(reader.receive().await, expected);
        }
    }

    #[test]
    fn only_a_terminal_is_read_after_its_end() {
        /// Yields these reads, and then an error.
        struct Reads(Vec<&'static [u8]>);
        impl Read for Reads {
            fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Err(io::ErrorKind::Other.into());
                }
                let read = self.0.remove(0);
                block[..read.len()].copy_from_slice(read);
                Ok(read.len())
            }
        }
        for (is_terminal, expected) in [(true, vec![Some("a"), None, Some("b")]), (false, vec![Some("a")])] {
            let (sender, mut typed) = mpsc::channel(MAX_BLOCKS);
            read_input(&mut Reads(vec![b"a", b"", b"b"]), is_terminal, &sender);
            drop(sender);
            let read: Vec<_> = std::iter::from_fn(|| typed.blocking_recv()).collect();
            assert_eq!(read, expected.into_iter().map(|text| text.map(Into::into)).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn the_end_of_the_program_waits_for_a_full_queue_that_makes_progress() {
        /// Takes a millisecond for each block.
        struct Slow(std::sync::mpsc::Sender<usize>);
        impl Write for Slow {
            fn write(&mut self, block: &[u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(1));
                let _ = self.0.send(block.len());
                Ok(block.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, written) = std::sync::mpsc::channel();
        let output = Output::start(Slow(sender)).unwrap();
        let mut sent = 0;
        while output.blocks.try_send(vec![b'x'; 7]).is_ok() {
            sent += 7;
        }
        output.flush();
        assert_eq!(written.try_iter().sum::<usize>(), sent);
    }

    #[tokio::test]
    async fn a_stalled_terminal_stops_neither_the_runtime_nor_the_end_of_the_program() {
        /// Blocks until the test ends.
        struct Stalled(std::sync::mpsc::Receiver<()>);
        impl Write for Stalled {
            fn write(&mut self, block: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(block.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_blocked, receiver) = std::sync::mpsc::channel();
        let output = Output::start(Stalled(receiver)).unwrap();
        let (mut worker, served) = UnixStream::pair().unwrap();
        let mut task = JoinSet::new();
        task.spawn(copy_output(served, output.blocks.clone()));
        // The queue is bounded, so the worker waits.
        let written = async { while worker.write_all(&[b'x'; BLOCK_BYTES]).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(300), written).await.is_err());
        output.flush();
    }
}
