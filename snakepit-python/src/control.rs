//! The control channel to the host that started this worker, which is also its lifeline.

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
use snakepit_worker::descendants::{Mark, hold_list, kill_marked};

use crate::fork;

/// The longest line that a host writes.
const MAX_LINE: usize = 4096;

/// The worker's end of the control channel.
#[derive(Debug)]
pub(crate) struct Control {
    channel: Mutex<File>,
    token: Option<String>,
}

impl Control {
    /// Takes the channel over from standard input, which reads `/dev/null` from then on, and starts to watch it. With
    /// `expect_token`, the host's message is read first.
    ///
    /// # Errors
    /// When a file descriptor cannot be made, the watching thread cannot be started, or the message cannot be read.
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
        // Opened now, because a tool may have used up all descriptors when the host dies.
        hold_list();
        let run_id = std::env::var(ENV_RUN_ID).unwrap_or_default();
        std::thread::Builder::new()
            .name("snakepit-lifeline".to_owned())
            .spawn(move || watch(lifeline, &run_id))?;
        spare_the_leader()?;
        Ok(Self { channel: Mutex::new(channel), token })
    }

    /// Proves to the host that this worker is the one that it launched.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends one line.
    ///
    /// # Errors
    /// When the host is gone.
    pub(crate) fn send(&self, message: &ControlMessage) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.write_all(&line)?;
        channel.flush()
    }
}

/// Reads one line and not a byte more. The host wrote it before it started this process.
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

/// A stopped process does not see its lifeline end, so the kernel wakes it when the host dies; a kernel that killed it
/// would leave behind what this process started.
#[cfg(target_os = "linux")]
fn spare_the_leader() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGCONT)?)
}

#[cfg(not(target_os = "linux"))]
fn spare_the_leader() -> io::Result<()> {
    Ok(())
}

/// Waits for the host's end to close. Never touches Python, so a held GIL cannot keep the worker alive.
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
    // The host is gone: end at once, with all that descends from this worker.
    if let Some(mark) = Mark::own(run_id) {
        kill_marked(|other| other == mark);
    }
    // Where nothing is marked, with the group, if it is ours to kill.
    if getpgrp() == getpid() {
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    }
    let _ = kill(getpid(), Signal::SIGKILL);
}
