//! [`Io`]: the runtime of gRPC, driven by whichever thread has nothing better to do.
//!
//! The executor drives it while no call waits, so that brief calls take no switch between threads: a message is read, its
//! calls are run and their answers are written on Python's main thread. A call that keeps the executor away for longer
//! must not stop health checks and cancellations, so after a moment a second thread stands in until the executor is back.

use std::{
    future::Future,
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::Notify};

/// The stand-in looks this often whether the executor is still where it was. It takes over after one to two of these.
const TICK: Duration = Duration::from_millis(1);

/// The stand-in stops looking when the executor has not moved for so many ticks.
const QUIET_TICKS: u32 = 50;

/// The runtime, which lives as long as the process. Copies are the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Io(&'static Shared);

#[derive(Debug)]
struct Shared {
    runtime: Runtime,
    /// Counts how often the executor came to drive and left again: odd while it is away.
    steps: AtomicU64,
    /// The executor is back.
    back: Notify,
    /// The stand-in is to take over at its next look.
    wanted: AtomicBool,
    /// The stand-in sleeps until it is called.
    resting: AtomicBool,
    stand_in: OnceLock<Thread>,
}

impl Io {
    /// Makes the runtime and starts the stand-in.
    ///
    /// # Errors
    /// When the system refuses a file descriptor or a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let io = Self(Box::leak(Box::new(Shared {
            runtime,
            // Whoever makes it is not driving yet.
            steps: AtomicU64::new(1),
            back: Notify::new(),
            wanted: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            stand_in: OnceLock::new(),
        })));
        let stand_in =
            thread::Builder::new().name("snakepit-io".to_owned()).spawn(move || io.0.stand_in())?;
        io.0.stand_in.get_or_init(|| stand_in.thread().clone());
        Ok(io)
    }

    /// Drives the IO until `until` is ready. For the executor; must not be called with the GIL held.
    pub(crate) fn drive<T>(self, until: impl Future<Output = T>) -> T {
        self.0.steps.fetch_add(1, SeqCst);
        self.0.back.notify_waiters();
        let value = self.0.runtime.block_on(until);
        self.0.steps.fetch_add(1, SeqCst);
        if self.0.resting.load(SeqCst) {
            self.call_stand_in();
        }
        value
    }

    /// Sends and receives what can be at once. For the executor; must not be called with the GIL held.
    pub(crate) fn turn(self) {
        self.drive(async {
            // In the first round, what is ready runs and the system is asked for more; in the second, that runs.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
    }

    /// Has the IO driven at once although the executor is away.
    pub(crate) fn hand_over(self) {
        self.0.wanted.store(true, SeqCst);
        self.call_stand_in();
    }

    /// Waits for a future on any other occasion, driving the IO unless somebody else does. Must not be called with the GIL
    /// held.
    pub(crate) fn block_on<T>(self, future: impl Future<Output = T>) -> T {
        self.0.runtime.block_on(future)
    }

    /// The runtime, to spawn tasks on.
    pub(crate) const fn runtime(self) -> &'static Runtime {
        &self.0.runtime
    }

    fn call_stand_in(self) {
        if let Some(stand_in) = self.0.stand_in.get() {
            stand_in.unpark();
        }
    }
}

impl Shared {
    /// What the second thread does, to the end of the process.
    fn stand_in(&self) -> ! {
        let mut last = 0;
        let mut quiet = 0;
        loop {
            if quiet < QUIET_TICKS {
                thread::park_timeout(TICK);
            } else {
                self.rest(last);
                quiet = 0;
            }
            let steps = self.steps.load(SeqCst);
            let is_away = steps % 2 == 1;
            if is_away && (self.wanted.swap(false, SeqCst) || steps == last) {
                self.drive_while_away(steps);
            }
            quiet = if steps == last { quiet + 1 } else { 0 };
            last = steps;
        }
    }

    /// Sleeps until the executor leaves, if it still waits where it was last seen.
    fn rest(&self, last: u64) {
        self.resting.store(true, SeqCst);
        // Who leaves from now on sees that nobody looks.
        if self.steps.load(SeqCst) == last && !self.wanted.load(SeqCst) {
            thread::park();
        }
        self.resting.store(false, SeqCst);
    }

    fn drive_while_away(&self, steps: u64) {
        self.runtime.block_on(async {
            loop {
                let back = self.back.notified();
                if self.steps.load(SeqCst) != steps {
                    return;
                }
                back.await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A task that sends back whatever comes, and the other end.
    fn echo(io: Io) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        io.runtime().spawn(async move {
            let mut far = tokio::net::UnixStream::from_std(far).unwrap();
            while let Ok(byte) = far.read_u8().await {
                far.write_u8(byte).await.unwrap();
            }
        });
        near.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        near
    }

    fn answers(mut socket: &UnixStream) {
        socket.write_all(&[7]).unwrap();
        let mut answer = [0];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [7]);
    }

    #[test]
    fn io_goes_on_while_the_executor_is_away_and_when_it_is_back() {
        let io = Io::start().unwrap();
        let socket = echo(io);
        let socket = &socket;
        for round in 0..200_u64 {
            // While it drives.
            io.drive(async move {
                let socket = socket.try_clone().unwrap();
                tokio::task::spawn_blocking(move || answers(&socket)).await.unwrap();
            });
            // While it is away, be it called for or found out.
            if round % 3 == 0 {
                io.hand_over();
            }
            answers(socket);
            if round % 5 == 0 {
                io.turn();
            }
            if round % 50 == 0 {
                thread::sleep(TICK * (QUIET_TICKS + 20));
            }
        }
    }
}
