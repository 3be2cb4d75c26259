//! Converts faults to gRPC statuses.

use snakepit_proto::status::{FieldViolation, StatusParts, brief, status_with_details};
use snakepit_registry::{Fault, Reason, Violation};
use tonic::{Code, Status};

use crate::failure_to_wire;

/// The maximum total size of the violations in a status, in bytes. The [budget](snakepit_proto::status::fit) cannot drop single
/// violations, only all of them.
const MAX_VIOLATIONS_BYTES: usize = 2048;

/// Converts a fault to a status with details, within the [budget](snakepit_proto::status::fit) of statuses.
///
/// ```
/// use snakepit_registry::{Fault, Reason};
///
/// let status = snakepit_wire::fault_to_wire(Fault::new(Reason::Cancelled, "the call was cancelled"));
/// assert_eq!((status.code(), status.message()), (tonic::Code::Cancelled, "the call was cancelled"));
/// let details = snakepit_proto::status::details_of(&status);
/// assert_eq!(details.reason.as_deref(), Some("CANCELLED"));
/// ```
#[must_use]
pub fn fault_to_wire(fault: Fault) -> Status {
    let (code, retry) = (Code::from_i32(fault.code().number()), fault.retry_info());
    let message = fault.full_message();
    let Fault { reason, violations, failure, entries, .. } = fault;
    // The first violation always fits.
    let mut size = 0;
    let violations = violations.into_iter().take_while(|violation| {
        let is_first = size == 0;
        size += violation.field.len() + violation.description.len();
        is_first || size <= MAX_VIOLATIONS_BYTES
    });
    let violations = violations.map(|Violation { field, description, .. }| FieldViolation {
        field: brief(&field),
        description: brief(&description),
    });
    let parts = StatusParts {
        reason: reason.as_str(),
        metadata: entries.into_iter().map(|(key, value)| (key.to_owned(), brief(&value))).collect(),
        violations: violations.collect(),
        failure: failure.map(|failure| failure_to_wire(*failure, String::new())),
        retry,
    };
    status_with_details(code, message, parts)
}

/// Converts the invalid fields or arguments of a status.
#[must_use]
pub fn violations_from_wire(violations: Vec<FieldViolation>) -> Vec<Violation> {
    violations.into_iter().map(|violation| Violation::new(violation.field, violation.description)).collect()
}

/// Returns the reason of a host's status. Returns `None` for a status of another project, or with a reason of a newer version.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    Reason::parse(snakepit_proto::status::details_of(status).reason.as_deref()?)
}
