//! [`Io`]: the tokio runtime of a worker, driven by Python's main thread between calls and by a second thread during
//! long calls.
//!
//! The runtime is a current-thread one. Any number of threads may call its `block_on`: one of them drives the runtime
//! and wakes the futures of the others. A thread that waits for the runtime must not hold the GIL, except in
//! [`Io::turn`].
//!
//! ```text
//!  Python's main thread: the executor       thread `snakepit-io`: the standby
//!
//!  WAITING                                  PARKED, or CHECKING every millisecond
//!    in drive(next_job)                       holds nothing
//!    holds the runtime, not the GIL
//!      |
//!      | a call arrives: steps becomes odd,
//!      | a parked standby is unparked
//!      v
//!  RUNNING                                  CHECKING
//!    in the tool                              holds nothing
//!    holds the GIL, not the runtime             |
//!      |                                        | `steps` unchanged for one interval, or hand_over()
//!      |                                        v
//!      |                                    DRIVING
//!      |                                      holds the runtime, never the GIL
//!      | the call ends, or calls have run       |
//!      | for 30 us: steps becomes even,         |
//!      | `executor_returned` is notified        | `executor_returned`: leaves the runtime
//!      v                                        v
//!  WAITING; or turn(), which holds          CHECKING; PARKED after five unchanged checks
//!  both, and RUNNING again
//! ```
//!
//! So a brief call needs no switch between threads: the main thread reads its message, runs it and writes its answer.
//! During a longer call, the standby handles health checks, cancellations and requests. Other threads, and tools that
//! wait for the host, use [`Io::block_on`]. They drive the runtime while no other thread does.
//!
//! Waking a task from outside the runtime costs a write to tokio's eventfd and an additional `epoll_wait`. Therefore the
//! executor only [queues](Io::wake_later) the wakers of tasks that it has work for. The next thread that enters the
//! runtime wakes these tasks, which costs neither.

use std::{
    future::Future,
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
    thread::{self, Thread},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::Notify};

use crate::{backpressure::Backpressure, fork::exit_if_fork};

/// The interval at which the standby checks the executor. It takes over after one to two intervals.
const TICK: Duration = Duration::from_millis(1);

/// The number of unchanged checks after which the standby parks. Unparking it costs a system call.
const QUIET_TICKS: u32 = 5;

/// The runtime, which lives until the process ends. Copies refer to the same runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Io(&'static SharedRuntime);

#[derive(Debug)]
struct SharedRuntime {
    runtime: Runtime,
    tick: Duration,
    backpressure: Backpressure,
    /// Tasks that the executor has work for. The next thread that enters the runtime wakes them.
    delayed_wakers: Mutex<Vec<Waker>>,
    /// The number of threads that drive the runtime, except the executor.
    driving_threads: AtomicUsize,
    /// Counts each time that the executor starts and stops driving. Odd while it does not drive.
    steps: AtomicU64,
    /// Notified when the executor returns.
    executor_returned: Notify,
    /// Makes the standby take over at its next check.
    is_takeover_requested: AtomicBool,
    /// Whether the standby is parked.
    is_standby_parked: AtomicBool,
    standby: OnceLock<Thread>,
}

impl Io {
    /// Creates the runtime and starts the standby.
    ///
    /// # Errors
    /// If the system provides no file descriptor or thread.
    pub(crate) fn start() -> io::Result<Self> {
        Self::with_tick(TICK)
    }

    fn with_tick(tick: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let io = Self(Box::leak(Box::new(SharedRuntime {
            runtime,
            tick,
            backpressure: Backpressure::default(),
            delayed_wakers: Mutex::default(),
            driving_threads: AtomicUsize::new(0),
            // The executor does not drive yet.
            steps: AtomicU64::new(1),
            executor_returned: Notify::new(),
            is_takeover_requested: AtomicBool::new(false),
            is_standby_parked: AtomicBool::new(false),
            standby: OnceLock::new(),
        })));
        let standby = thread::Builder::new().name("snakepit-io".to_owned()).spawn(move || io.0.standby())?;
        io.0.standby.get_or_init(|| standby.thread().clone());
        Ok(io)
    }

    /// Drives the runtime until `future` is ready. Only for the executor. Must not be called with the GIL held, unless
    /// `future` never waits for a thread that needs it. Exits the process if it is a fork of the worker whose tool has
    /// returned.
    pub(crate) fn drive<T>(self, future: impl Future<Output = T>) -> T {
        exit_if_fork();
        self.0.steps.fetch_add(1, SeqCst);
        self.0.executor_returned.notify_waiters();
        let value = self.0.runtime.block_on(self.0.after_delayed_wakes(future));
        self.0.steps.fetch_add(1, SeqCst);
        if self.0.is_standby_parked.load(SeqCst) {
            self.unpark_standby();
        }
        value
    }

    /// Sends and receives as much as possible without waiting. Only for the executor.
    pub(crate) fn turn(self) {
        self.drive(async {
            // A spawned task, because this thread may first wait for the standby to leave, and tasks run only while a
            // thread drives. The runtime polls all ready tasks and the system before it finishes. Spawned inside the
            // runtime, it wakes no thread.
            let round = self.0.runtime.spawn(tokio::task::yield_now());
            // The task is never aborted and does not panic.
            let _ = round.await;
        });
    }

    /// Wakes a task when a thread next drives the runtime, or immediately if one may be driving it now. Only for the
    /// executor, which must not drive at this time.
    pub(crate) fn wake_later(self, waker: Waker) {
        self.0.delayed_wakers().push(waker);
        // A thread that starts to drive after the push wakes the task itself.
        if self.is_driven_elsewhere() {
            self.0.wake_delayed();
        }
    }

    /// Returns whether a thread other than the executor may be driving the runtime now.
    pub(crate) fn is_driven_elsewhere(self) -> bool {
        self.0.driving_threads.load(SeqCst) > 0
    }

    /// Makes the standby drive the runtime immediately, without waiting for its next check.
    pub(crate) fn hand_over(self) {
        self.0.is_takeover_requested.store(true, SeqCst);
        self.unpark_standby();
    }

    /// Waits for a future on any thread, and drives the runtime if no other thread does. Must not be called with the
    /// GIL held.
    pub(crate) fn block_on<T>(self, future: impl Future<Output = T>) -> T {
        self.0.block_on_beside_executor(future)
    }

    /// Shows whether written data has left the process.
    pub(crate) const fn backpressure(self) -> &'static Backpressure {
        &self.0.backpressure
    }

    /// The tokio runtime, for spawning tasks.
    pub(crate) const fn runtime(self) -> &'static Runtime {
        &self.0.runtime
    }

    fn unpark_standby(self) {
        if let Some(standby) = self.0.standby.get() {
            standby.unpark();
        }
    }
}

impl SharedRuntime {
    /// Drives the runtime on this thread, in parallel with the executor.
    fn block_on_beside_executor<T>(&self, future: impl Future<Output = T>) -> T {
        let _driving = DrivingThread::enter(&self.driving_threads);
        self.runtime.block_on(self.after_delayed_wakes(future))
    }

    /// Wakes the delayed tasks at the first poll, which is inside the runtime, and continues with `future`.
    async fn after_delayed_wakes<T>(&self, future: impl Future<Output = T>) -> T {
        self.wake_delayed();
        future.await
    }

    fn wake_delayed(&self) {
        // A closure, so that the lock is released before the waker runs.
        let next = || self.delayed_wakers().pop();
        while let Some(waker) = next() {
            waker.wake();
        }
    }

    /// Locks the wakers. Ignores poisoning, because no code under the lock panics.
    fn delayed_wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.delayed_wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of the standby thread.
    fn standby(&self) -> ! {
        let mut last_steps = 0;
        let mut unchanged_checks = 0;
        loop {
            if unchanged_checks < QUIET_TICKS {
                thread::park_timeout(self.tick);
            } else {
                self.park(last_steps);
                unchanged_checks = 0;
            }
            // Reset before `steps` is read: an executor that is away by then has not requested another takeover.
            let is_requested = self.is_takeover_requested.swap(false, SeqCst);
            let steps = self.steps.load(SeqCst);
            let is_away = steps % 2 == 1;
            if is_away && (is_requested || steps == last_steps) {
                self.drive_until_executor_returns(steps);
            }
            unchanged_checks = if steps == last_steps { unchanged_checks + 1 } else { 0 };
            last_steps = steps;
        }
    }

    /// Parks until the executor leaves, if it is still where it was at the last check.
    fn park(&self, last_steps: u64) {
        self.is_standby_parked.store(true, SeqCst);
        // An executor that leaves from now on sees that the standby is parked.
        if self.steps.load(SeqCst) == last_steps && !self.is_takeover_requested.load(SeqCst) {
            thread::park();
        }
        self.is_standby_parked.store(false, SeqCst);
    }

    fn drive_until_executor_returns(&self, steps: u64) {
        self.block_on_beside_executor(async {
            loop {
                let returned = self.executor_returned.notified();
                if self.steps.load(SeqCst) != steps {
                    return;
                }
                returned.await;
            }
        });
    }
}

/// Counts a thread that drives the runtime in parallel with the executor, until it is dropped.
struct DrivingThread<'a>(&'a AtomicUsize);

impl<'a> DrivingThread<'a> {
    fn enter(driving_threads: &'a AtomicUsize) -> Self {
        driving_threads.fetch_add(1, SeqCst);
        Self(driving_threads)
    }
}

impl Drop for DrivingThread<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
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

    /// Spawns a task that echoes bytes, and returns the other end.
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

    /// Sends a byte and waits for the echo on a blocking thread.
    async fn echo_async(socket: &UnixStream) {
        let socket = socket.try_clone().unwrap();
        tokio::task::spawn_blocking(move || echo_blocking(&socket)).await.unwrap();
    }

    fn echo_blocking(mut socket: &UnixStream) {
        socket.write_all(&[7]).unwrap();
        let mut answer = [0];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [7]);
    }

    #[test]
    fn io_continues_while_the_executor_is_away_and_after_it_returns() {
        let io = Io::start().unwrap();
        let socket = echo(io);
        for round in 0..200_u64 {
            io.drive(echo_async(&socket));
            // The standby drives while the executor is away, with and without a handover.
            if round % 3 == 0 {
                io.hand_over();
            }
            echo_blocking(&socket);
            if round % 5 == 0 {
                io.turn();
            }
        }
    }

    #[test]
    fn a_handover_does_not_wait_for_the_interval() {
        let io = Io::with_tick(Duration::from_secs(3600)).unwrap();
        let socket = echo(io);
        for _ in 0..20 {
            io.hand_over();
            echo_blocking(&socket);
            // The standby drives now. A turn takes over from it and runs ready tasks.
            let ran = Arc::new(AtomicBool::new(false));
            let runs = Arc::clone(&ran);
            io.runtime().spawn(async move { runs.store(true, SeqCst) });
            io.turn();
            assert!(ran.load(SeqCst), "the turn was over before anything ran");
            io.drive(echo_async(&socket));
        }
    }

    #[test]
    fn the_standby_parks_while_no_call_arrives() {
        let io = Io::start().unwrap();
        let socket = echo(io);
        io.hand_over();
        echo_blocking(&socket);
        // The executor returns before the standby uses the second handover.
        io.hand_over();
        io.drive(async {
            let parks = async {
                while !io.0.is_standby_parked.load(SeqCst) {
                    tokio::time::sleep(TICK).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), parks).await.expect("the standby does not park");
        });
        echo_blocking(&socket);
    }

    /// Spawns a task that sets the flag once it is woken by the returned waker.
    fn sleeper(io: Io) -> (Waker, Arc<AtomicBool>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let is_woken = Arc::new(AtomicBool::new(false));
        let runs = Arc::clone(&is_woken);
        io.runtime().spawn(async move {
            let mut is_first = true;
            std::future::poll_fn(|cx| {
                if std::mem::take(&mut is_first) {
                    sender.send(cx.waker().clone()).unwrap();
                    return std::task::Poll::Pending;
                }
                std::task::Poll::Ready(())
            })
            .await;
            runs.store(true, SeqCst);
        });
        io.turn();
        (receiver.recv().unwrap(), is_woken)
    }

    fn wait_until_set(flag: &AtomicBool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while !flag.load(SeqCst) {
            assert!(tokio::time::Instant::now() < end, "the task was not woken");
            thread::yield_now();
        }
    }

    #[test]
    fn a_turn_runs_tasks_that_were_to_be_woken_later() {
        let io = Io::with_tick(Duration::from_secs(3600)).unwrap();
        for _ in 0..20 {
            let (waker, is_woken) = sleeper(io);
            io.wake_later(waker);
            assert!(!is_woken.load(SeqCst));
            io.turn();
            assert!(is_woken.load(SeqCst));
        }
    }

    #[test]
    fn a_standby_that_takes_over_runs_tasks_that_were_to_be_woken_later() {
        let io = Io::start().unwrap();
        for _ in 0..20 {
            let (waker, is_woken) = sleeper(io);
            io.wake_later(waker);
            // This thread runs a long call now.
            wait_until_set(&is_woken);
        }
    }

    #[test]
    fn a_task_is_woken_at_once_while_another_thread_drives() {
        let io = Io::with_tick(Duration::from_secs(3600)).unwrap();
        for _ in 0..20 {
            let (waker, is_woken) = sleeper(io);
            let (started, driving) = std::sync::mpsc::channel();
            io.hand_over();
            io.runtime().spawn(async move { started.send(()).unwrap() });
            driving.recv().unwrap();
            io.wake_later(waker);
            wait_until_set(&is_woken);
        }
    }

    #[test]
    fn any_thread_can_wait_for_the_io() {
        let io = Io::start().unwrap();
        let sockets = [echo(io), echo(io)];
        thread::scope(|scope| {
            for socket in &sockets {
                scope.spawn(move || (0..50).for_each(|_| io.block_on(echo_async(socket))));
            }
        });
    }
}
