//! Conversions of tool specs.

use snakepit_proto::pb;
use snakepit_registry::{ParameterSpec, ToolSpec};

use crate::{payload_from_wire, payload_to_wire_inline};

/// The metadata key of [closed](ToolSpec::deny_unknown_arguments) specs, with the value `true`.
const CLOSED_KEY: &str = "snakepit.closed";

/// The metadata key for the names of the variables that a tool reads, separated by commas. Registrations have no other place for
/// them.
const VARIABLES_KEY: &str = "required_variables";

/// Converts a registration of a worker to a spec. Omits default values that cannot be converted.
#[must_use]
pub fn spec_from_registration(registration: pb::ToolRegistration) -> ToolSpec {
    let pb::ToolRegistration { name, description, parameters, mut metadata, supports_streaming } =
        registration;
    let closed = metadata.remove(CLOSED_KEY).is_some_and(|flag| flag == "true");
    let mut spec = ToolSpec::new(name).description(description);
    spec.parameters = parameters.into_iter().map(parameter_from_wire).collect();
    spec.metadata = metadata;
    spec.supports_streaming = supports_streaming;
    spec.closed = closed;
    spec
}

/// Converts a spec from the form in which a host lists it. Omits default values that cannot be converted.
#[must_use]
pub fn spec_from_wire(spec: pb::ToolSpec) -> ToolSpec {
    let pb::ToolSpec { name, description, parameters, metadata, supports_streaming, .. } = spec;
    spec_from_registration(pb::ToolRegistration {
        name,
        description,
        parameters,
        metadata,
        supports_streaming,
    })
}

/// Converts a spec to the registration that a worker sends.
#[must_use]
pub fn spec_to_registration(spec: ToolSpec) -> pb::ToolRegistration {
    let pb::ToolSpec { name, description, parameters, metadata, supports_streaming, .. } = spec_to_wire(spec);
    pb::ToolRegistration { name, description, parameters, metadata, supports_streaming }
}

/// Converts a spec to the form in which a host lists it.
#[must_use]
pub fn spec_to_wire(spec: ToolSpec) -> pb::ToolSpec {
    let ToolSpec { name, description, parameters, mut metadata, supports_streaming, closed, .. } = spec;
    if closed {
        metadata.insert(CLOSED_KEY.to_owned(), "true".to_owned());
    }
    let variables = metadata.get(VARIABLES_KEY).map(|names| names.split(',').map(str::to_owned).collect());
    pb::ToolSpec {
        name,
        description,
        parameters: parameters.into_iter().map(parameter_to_wire).collect(),
        metadata,
        supports_streaming,
        required_variables: variables.unwrap_or_default(),
    }
}

fn parameter_from_wire(parameter: pb::ParameterSpec) -> ParameterSpec {
    let pb::ParameterSpec { name, r#type, description, required, default_value, validation_json } = parameter;
    let default = default_value.and_then(|any| payload_from_wire(any, None).ok());
    let mut spec = ParameterSpec::new(name, r#type);
    spec.description = description;
    spec.required = required;
    spec.default = default;
    spec.validation_json = validation_json;
    spec
}

fn parameter_to_wire(parameter: ParameterSpec) -> pb::ParameterSpec {
    let ParameterSpec { name, type_name, description, required, default, validation_json, .. } = parameter;
    pb::ParameterSpec {
        name,
        r#type: type_name,
        description,
        required,
        default_value: default.map(payload_to_wire_inline),
        validation_json,
    }
}
