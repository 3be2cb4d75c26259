//! Conversions between the wire protocol and the domain types, for hosts, workers and clients alike.
//!
//! ```text
//!   snakepit-proto                  this crate                          domain
//!   Any, CallValue       <──> payload_*, value_*       <──>  snakepit_session::Payload
//!   ExecuteToolRequest   <──  request_to_wire                snakepit_registry::ToolCall
//!   CallStart            <──> mux::call_*              <──>  snakepit_registry::ToolCall
//!   ToolSpec             <──> spec_*                   <──>  snakepit_registry::ToolSpec
//!   ToolFailure          <──> failure_*                <──>  snakepit_registry::ToolFailure
//! ```
//!
//! The domain crates do not depend on protobuf, and `snakepit-proto` does not depend on the domain. [`mux`] makes and
//! serves multiplexed calls in terms of the domain.
#![warn(missing_docs)]

mod backlog;
mod convert;
pub mod mux;
mod sync;

pub use self::{
    backlog::{Backlog, read_ahead},
    convert::{
        WireError, bad_argument, bad_field, check_size, failure_from_wire, failure_to_wire,
        payload_from_wire, payload_to_wire, payload_to_wire_inline, request_to_wire, spec_from_registration,
        spec_to_registration, spec_to_wire, value_from_wire, value_to_wire,
    },
};
