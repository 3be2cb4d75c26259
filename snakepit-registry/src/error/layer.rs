//! Converts the errors of layers.

use std::{error::Error, iter::successors, ops::Deref, sync::Arc};

use tower::BoxError;

use super::{ErrorKind, ToolError};

/// The error of a layer, shared by the clones of a [`ToolError::Layer`]. It dereferences to the error, so that you can downcast it.
#[derive(Debug, Clone)]
pub struct LayerError(Arc<dyn Error + Send + Sync>);

impl Deref for LayerError {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl ToolError {
    /// Converts the error of a layer. `delivered`: whether the call may have begun to run.
    pub(crate) fn from_layer(error: BoxError, delivered: bool) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        let mut kind = ErrorKind::Rejected;
        let causes = successors(Some(&*error as &(dyn Error + 'static)), |&cause| cause.source());
        for cause in causes {
            if let Some(error) = cause.downcast_ref::<Self>() {
                return error.clone();
            }
            if cause.is::<tower::timeout::error::Elapsed>() {
                kind = ErrorKind::DeadlineExceeded;
            } else if cause.is::<tower::load_shed::error::Overloaded>() {
                kind = ErrorKind::Overloaded;
            }
        }
        Self::Layer { kind, delivered, problem: error.to_string(), source: Some(LayerError(error.into())) }
    }
}
