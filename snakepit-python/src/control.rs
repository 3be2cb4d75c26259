//! [`Control`]: the control channel to the host that launched this worker. The channel is also the worker's lifeline.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{dup2_stdin, getpgrp, getpid},
};
use snakepit_proto::launch::{ControlMessage, ENV_RUN_ID, HostMessage};
use snakepit_worker::descendants::{Mark, kill_marked, open_process_list};

use crate::fork;

/// The maximum length of a line from the host, in bytes.
const MAX_LINE: usize = 4096;

/// The worker's end of the control channel.
#[derive(Debug)]
pub(crate) struct Control {
    channel: Mutex<File>,
    token: Option<String>,
}

impl Control {
    /// Takes the channel from standard input, which reads `/dev/null` afterwards, and starts the thread that watches
    /// it. With `expect_token`, reads the host's message first.
    ///
    /// # Errors
    /// If the system provides no file descriptor or thread, or the message cannot be read.
    pub(crate) fn take_stdin(expect_token: bool) -> io::Result<Self> {
        let channel = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let null = OpenOptions::new().read(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        let token = match expect_token {
            true => {
                let HostMessage::Launched { token } = serde_json::from_slice(&read_line(&channel)?)?;
                Some(token)
            }
            false => None,
        };
        let lifeline = channel.try_clone()?;
        fork::close_in_child(&channel);
        fork::close_in_child(&lifeline);
        // Opened in advance, because a tool may have used all descriptors when the host dies.
        open_process_list();
        let run_id = std::env::var(ENV_RUN_ID).unwrap_or_default();
        std::thread::Builder::new()
            .name("snakepit-lifeline".to_owned())
            .spawn(move || watch(lifeline, &run_id))?;
        resume_when_the_host_dies()?;
        Ok(Self { channel: Mutex::new(channel), token })
    }

    /// The token that proves to the host that it launched this worker.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends one line.
    ///
    /// # Errors
    /// If the host has exited.
    pub(crate) fn send(&self, message: &ControlMessage) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.write_all(&line)?;
        channel.flush()
    }
}

/// Reads one line and nothing after it. The host wrote the line before it started this process.
fn read_line(mut channel: &File) -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < MAX_LINE {
        channel.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(line),
            [byte] => line.push(byte),
        }
    }
    Err(io::Error::other("the host's first line is too long"))
}

/// Sets `PR_SET_PDEATHSIG` to SIGCONT. A stopped process would not notice the end of its lifeline, so the kernel
/// resumes it when the host dies. SIGKILL would leave the worker's child processes behind.
#[cfg(target_os = "linux")]
fn resume_when_the_host_dies() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGCONT)?)
}

#[cfg(not(target_os = "linux"))]
fn resume_when_the_host_dies() -> io::Result<()> {
    Ok(())
}

/// Waits until the host's end of the channel closes, then kills the worker and its descendants. Never takes the GIL, so
/// a tool that holds it cannot keep the worker alive.
fn watch(mut lifeline: File, run_id: &str) {
    let mut ignored = [0; 256];
    loop {
        match lifeline.read(&mut ignored) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The host has exited: kill all descendants of this worker, and the worker itself.
    if let Some(mark) = Mark::own(run_id) {
        kill_marked(|other| other == mark);
    }
    // Descendants without a mark are reached through the process group, if this worker leads it.
    if getpgrp() == getpid() {
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    }
    let _ = kill(getpid(), Signal::SIGKILL);
}
