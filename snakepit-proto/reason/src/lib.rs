//! The reasons of errors, in one table. All protocols take their codes from it: gRPC statuses, problem documents, JSON-RPC
//! errors, and the exit codes of the command line.
//!
//! ```
//! use snakepit_reason::{Code, Reason};
//!
//! let reason = Reason::parse("TOOL_NOT_FOUND").unwrap();
//! assert_eq!(reason, Reason::ToolNotFound);
//! assert_eq!(reason.code(), Code::NotFound);
//! assert_eq!((reason.http_status(), reason.json_rpc_code(), reason.exit_code()), (404, -32602, 3));
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod code;
mod table;

use std::fmt;

pub use self::{
    code::Code,
    table::{Origin, Reason},
};

/// The metadata key with `true` if a call or write may have been executed, and `false` if a retry is safe.
pub const DELIVERED: &str = "delivered";

/// The metadata key that is present if a layer of the host's program ended the call.
pub const LAYER: &str = "layer";

impl Reason {
    /// The reason with this text, such as `OVERLOADED`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }

    /// The gRPC code, unless an error with this reason has another one of its [codes](Self::codes).
    #[must_use]
    pub const fn code(self) -> Code {
        self.codes()[0]
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
