//! Conversions between the wire protocol and the domain types, for hosts, workers and clients alike.
//!
//! ```text
//!   snakepit-proto                  this crate                          domain
//!   Any, CallValue       <──> payload_*, value_*       <──>  snakepit_session::Payload
//!   ExecuteToolRequest   <──  request_to_wire                snakepit_registry::ToolCall
//!   CallStart            <──> mux::call_*              <──>  snakepit_registry::ToolCall
//!   ToolSpec             <──> spec_*                   <──>  snakepit_registry::ToolSpec
//!   ToolFailure          <──> failure_*                <──>  snakepit_registry::ToolFailure
//!   Status               <──  fault_to_wire                  snakepit_registry::Fault
//! ```
//!
//! The domain crates do not depend on protobuf, and `snakepit-proto` does not depend on the domain. [`mux`] makes and
//! serves multiplexed calls in terms of the domain.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backlog;
mod chunks;
mod failure;
mod fault;
pub mod mux;
mod request;
mod spec;
mod sync;
mod telemetry;
mod value;

pub use self::{
    backlog::{Backlog, BacklogBudget, read_ahead},
    chunks::{check_answer_size, chunks_to_wire},
    failure::{add_details, bad_argument, bad_field, failure_from_wire, failure_to_wire},
    fault::{fault_to_wire, reason_of, violations_from_wire},
    request::{check_size, request_to_wire},
    spec::{spec_from_registration, spec_from_wire, spec_to_registration, spec_to_wire},
    telemetry::{
        MAX_EVENT_BYTES, MAX_WAITING_EVENTS, TelemetryFilter, TelemetryFilterError, is_host_event,
        lost_events, nanoseconds_since_epoch, sample_key,
    },
    value::{
        WireError, inline_any, inline_size, payload_from_wire, payload_to_wire, payload_to_wire_inline,
        value_from_wire, value_to_wire, without_buffers,
    },
};
