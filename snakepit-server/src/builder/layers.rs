//! Adds the layers of the program to a host.

use snakepit_registry::CallLayer;

use super::Builder;

impl Builder {
    /// Puts a [`tower::Layer`] around calls to Python tools and host tools. A call goes through the layers in the order in which
    /// you add them:
    ///
    /// ```text
    /// caller > host > [layers] > retry > [attempt layers] > queue > worker
    ///                          > host tool
    /// ```
    ///
    /// - The host looks up the session before the layers, and enforces the deadline of a call that waits in them.
    /// - A nested call, which a running tool makes through the host, does not go through the layers again. Otherwise, a concurrency
    ///   limit would make the nested call wait for its own caller.
    /// - Calls that a layer itself makes, for example to authorize a call, also go through the layers. The layer must exempt them,
    ///   or they recurse endlessly.
    /// - A layer must forward the call that it received, changed or unchanged. A new [`ToolCall`](snakepit_registry::ToolCall)
    ///   lacks the host's record of its progress. A layer must not run two copies of a call at the same time.
    /// - A layer may repeat a call. [`may_have_run`](snakepit_registry::ToolError::may_have_run) of the final error covers all
    ///   repetitions.
    /// - A panic in a layer fails only its call.
    /// - A layer sees the reply of a streaming call when the stream begins. A concurrency limit releases its permit at that
    ///   time.
    /// - Dropping a call cancels it through the layers.
    /// - [`CallService::new`](snakepit_registry::CallService::new) lists the conversions of errors.
    ///
    /// The service must be `Clone`, because calls are concurrent. Put a service that is not `Clone`, such as tower's rate limit,
    /// behind a buffer.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use snakepit_server::Snakepit;
    /// use tower::ServiceBuilder;
    ///
    /// let builder = Snakepit::builder()
    ///     .layer(ServiceBuilder::new().load_shed().concurrency_limit(100))
    ///     .layer(ServiceBuilder::new().buffer(16).rate_limit(50, Duration::from_secs(1)));
    /// ```
    pub fn layer(mut self, layer: impl CallLayer) -> Self {
        self.call_layers.push(layer);
        self
    }

    /// Puts a [`tower::Layer`] around each attempt at a call to a Python tool: outside of the wait for a worker, and inside the
    /// retries. See [`layer`](Self::layer) for the diagram and the rules. The host retries an attempt only if it loses the
    /// worker, so an error of a layer ends the call. A call that a Python tool makes through a host tool belongs to the attempt
    /// of that Python tool and does not go through the layers.
    pub fn attempt_layer(mut self, layer: impl CallLayer) -> Self {
        self.attempt_layers.push(layer);
        self
    }
}
