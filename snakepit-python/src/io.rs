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

use crate::{fork::end_fork, outflow::Outflow};

/// The stand-in looks this often whether the executor is still where it was. It takes over after one to two of these.
const TICK: Duration = Duration::from_millis(1);

/// The stand-in stops looking when the executor has not moved for so many ticks. Calling it again costs a system call.
const QUIET_TICKS: u32 = 5;

/// The runtime, which lives as long as the process. Copies are the same one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Io(&'static Shared);

#[derive(Debug)]
struct Shared {
    runtime: Runtime,
    tick: Duration,
    outflow: Outflow,
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
        Self::with_tick(TICK)
    }

    fn with_tick(tick: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let io = Self(Box::leak(Box::new(Shared {
            runtime,
            tick,
            outflow: Outflow::default(),
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

    /// Drives the IO until `until` is ready. For the executor; must not be called with the GIL held, unless `until` needs
    /// nobody who could want it. A fork of the process, whose tool has returned instead of ending it, ends here.
    pub(crate) fn drive<T>(self, until: impl Future<Output = T>) -> T {
        end_fork();
        self.0.steps.fetch_add(1, SeqCst);
        self.0.back.notify_waiters();
        let value = self.0.runtime.block_on(until);
        self.0.steps.fetch_add(1, SeqCst);
        if self.0.resting.load(SeqCst) {
            self.call_stand_in();
        }
        value
    }

    /// Sends and receives what can be at once. For the executor.
    pub(crate) fn turn(self) {
        // A task, for this thread may have to wait for the other one to leave, and a task runs only where the IO is driven.
        // What is ready runs before it goes on, and the system is asked for more.
        let round = self.0.runtime.spawn(tokio::task::yield_now());
        // Nobody aborts it, and it does not panic.
        let _ = self.drive(round);
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

    /// Whether what was written has left.
    pub(crate) const fn outflow(self) -> &'static Outflow {
        &self.0.outflow
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
                thread::park_timeout(self.tick);
            } else {
                self.rest(last);
                quiet = 0;
            }
            // Taken back before the steps are read: who is away by then has not asked for anything else.
            let is_wanted = self.wanted.swap(false, SeqCst);
            let steps = self.steps.load(SeqCst);
            let is_away = steps % 2 == 1;
            if is_away && (is_wanted || steps == last) {
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
        sync::Arc,
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

    /// Asks, and waits for the answer where it holds nobody up.
    async fn asks(socket: &UnixStream) {
        let socket = socket.try_clone().unwrap();
        tokio::task::spawn_blocking(move || answers(&socket)).await.unwrap();
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
        for round in 0..200_u64 {
            io.drive(asks(&socket));
            // While it is away, be it called for or found out.
            if round % 3 == 0 {
                io.hand_over();
            }
            answers(&socket);
            if round % 5 == 0 {
                io.turn();
            }
        }
    }

    #[test]
    fn who_is_handed_the_io_does_not_wait_for_a_tick() {
        let io = Io::with_tick(Duration::from_secs(3600)).unwrap();
        let socket = echo(io);
        for _ in 0..20 {
            io.hand_over();
            answers(&socket);
            // The other thread drives now; a turn takes over from it, and what is ready runs.
            let ran = Arc::new(AtomicBool::new(false));
            let runs = Arc::clone(&ran);
            io.runtime().spawn(async move { runs.store(true, SeqCst) });
            io.turn();
            assert!(ran.load(SeqCst), "the turn was over before anything ran");
            io.drive(asks(&socket));
        }
    }

    #[test]
    fn the_other_thread_sleeps_while_nothing_is_called() {
        let io = Io::start().unwrap();
        let socket = echo(io);
        io.hand_over();
        answers(&socket);
        // Nobody takes up the second of two.
        io.hand_over();
        io.drive(async {
            let rests = async {
                while !io.0.resting.load(SeqCst) {
                    tokio::time::sleep(TICK).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), rests).await.expect("it looks for ever");
        });
        answers(&socket);
    }

    #[test]
    fn any_thread_may_wait_for_the_io() {
        let io = Io::start().unwrap();
        let sockets = [echo(io), echo(io)];
        thread::scope(|scope| {
            for socket in &sockets {
                scope.spawn(move || (0..50).for_each(|_| io.block_on(asks(socket))));
            }
        });
    }
}
