//! Settings of workers: the arguments of their adapter, their GPUs, the threads of their libraries, their telemetry, and the limits
//! at which they are replaced.

use std::time::Duration;

use serde_json::Value;

use super::Builder;
use crate::TelemetryFilter;

impl Builder {
    /// Sets an argument of the adapter. Parameters of its `lifespan`, `process_init` and `__init__` receive the argument by name,
    /// converted according to their type hints. Workers do not start if a required argument is not set, or if no parameter has this
    /// name.
    ///
    /// Workers receive the arguments in an environment variable, so other users of the machine cannot read them.
    ///
    /// ```no_run
    /// use snakepit_server::Snakepit;
    ///
    /// let builder = Snakepit::builder().adapter("search:Search").adapter_arg("index", "/data/index").adapter_arg("shards", 4);
    /// ```
    pub fn adapter_arg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.adapter_args.insert(name.into(), value.into());
        self
    }

    /// Assigns one of these GPUs to each worker. With `n` GPUs, the worker with index `i` gets the GPU at index `i % n`, in
    /// `CUDA_VISIBLE_DEVICES` and in the attribute `gpu` of Python's `worker_info()`. The replacement of a lost worker gets the
    /// same GPU.
    pub fn gpus<S: Into<String>>(mut self, gpus: impl IntoIterator<Item = S>) -> Self {
        self.gpus = gpus.into_iter().map(Into::into).collect();
        self
    }

    /// Sets which events of `snakepit_bridge.telemetry` worker processes send while there are
    /// [subscribers](crate::Snakepit::telemetry). By default, workers send all events. You can change the filter later with
    /// [`Snakepit::set_worker_telemetry`](crate::Snakepit::set_worker_telemetry).
    ///
    /// ```no_run
    /// use snakepit_server::{Snakepit, TelemetryFilter};
    ///
    /// let builder = Snakepit::builder().adapter("shop:Shop").worker_telemetry(TelemetryFilter::new().deny("*.start"));
    /// ```
    pub fn worker_telemetry(mut self, filter: TelemetryFilter) -> Self {
        self.worker_telemetry = filter;
        self
    }

    /// Sets the number of threads that numeric libraries such as OpenBLAS, MKL and OpenMP use in each worker. By default, the
    /// host divides the processors among the workers, at least 1 each. With 0, the libraries use their own defaults: usually one
    /// thread for each processor, in each worker.
    ///
    /// The host sets the variables `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`, `NUMEXPR_NUM_THREADS`,
    /// `VECLIB_MAXIMUM_THREADS` and `RAYON_NUM_THREADS` of the workers. It does not change variables that this process or
    /// [`env`](Self::env) sets. If one of them sets `OMP_NUM_THREADS`, the host does not set the next three variables either,
    /// because their libraries read `OMP_NUM_THREADS`.
    pub const fn library_threads(mut self, threads: usize) -> Self {
        self.library_threads = Some(threads);
        self
    }

    /// Replaces each worker after this many calls, without interrupting any. Together with the next three limits, this bounds the
    /// effect of leaks in tools and libraries. [`PoolConfig`](snakepit_pool::PoolConfig::max_worker_calls) describes these limits.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use snakepit_server::Snakepit;
    ///
    /// let builder = Snakepit::builder()
    ///     .adapter("search:Search")
    ///     .max_worker_calls(100_000)
    ///     .max_worker_age(Duration::from_secs(24 * 60 * 60))
    ///     .max_worker_memory(2 << 30)
    ///     .max_worker_memory_hard(3 << 30);
    /// ```
    pub fn max_worker_calls(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.pool.max_worker_calls = limit.into();
        self
    }

    /// Replaces each worker at this age, as after [`max_worker_calls`](Self::max_worker_calls). At least one second.
    pub fn max_worker_age(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.pool.max_worker_age = limit.into();
        self
    }

    /// Replaces each worker that has run calls, and then none for this time. At least one second.
    pub fn max_worker_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.pool.max_worker_idle = limit.into();
        self
    }

    /// Replaces each worker whose private memory exceeds this number of bytes, as after
    /// [`max_worker_calls`](Self::max_worker_calls).
    pub fn max_worker_memory(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.pool.max_worker_memory = limit.into();
        self
    }

    /// Kills each worker whose private memory exceeds this number of bytes. Its calls fail with `WORKER_LOST`.
    pub fn max_worker_memory_hard(mut self, limit: impl Into<Option<u64>>) -> Self {
        self.pool.max_worker_memory_hard = limit.into();
        self
    }

    /// Sets the number of threads in which each Python worker runs tools that are synchronous functions, 0 to 256. This
    /// setting replaces the attribute `threads` of the adapter. Without this setting and the attribute, and with 0, tools that are
    /// synchronous functions run one at a time on the main thread.
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }
}
