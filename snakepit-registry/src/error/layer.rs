//! Converts the errors of layers.

use std::{error::Error, iter::successors};

use snakepit_session::SharedError;
use tower::BoxError;

use super::{ErrorKind, ToolError};

impl ToolError {
    /// Converts the error of a layer. `may_have_run` states whether the call may have begun to run.
    pub(crate) fn from_layer(error: BoxError, may_have_run: bool) -> Self {
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
        Self::Layer { kind, may_have_run, problem: error.to_string(), source: Some(SharedError::new(error)) }
    }
}
