//! Settings of Python workers: the arguments of their adapter, their GPUs, the threads of their libraries, and their telemetry.

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

    /// Sets the number of threads in which each Python worker runs tools that are synchronous functions, 0 to 256. This
    /// setting replaces the attribute `threads` of the adapter. Without this setting and the attribute, and with 0, tools that are
    /// synchronous functions run one at a time on the main thread.
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }
}
