//! Implements `tower::Service` for services of calls that are always ready.

/// Implements [`tower::Service`] of [`ToolCall`](crate::ToolCall)s for a type. The service is always ready, because each call
/// waits for its own worker.
///
/// `always_ready!(Type, |service, call| future)` takes the expression of the boxed future. `service` is a reference.
#[doc(hidden)]
#[macro_export]
macro_rules! always_ready {
    ($service_type:ty, |$service:ident, $call:ident| $future:expr) => {
        impl ::tower::Service<$crate::ToolCall> for $service_type {
            type Response = $crate::ToolReply;
            type Error = $crate::ToolError;
            type Future = $crate::CallFuture<'static>;

            fn poll_ready(
                &mut self,
                _: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::result::Result<(), $crate::ToolError>> {
                ::std::task::Poll::Ready(::std::result::Result::Ok(()))
            }

            fn call(&mut self, $call: $crate::ToolCall) -> Self::Future {
                let $service = &*self;
                $future
            }
        }
    };
}
