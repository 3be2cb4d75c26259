//! Checking the arguments of a call against a tool's spec. Allocates only to say what is wrong.

use snakepit_session::{Payload, ValueType};

use crate::{Arguments, ParameterSpec, ToolError, ToolSpec};

/// Checks that every required argument is there, that each has the type its parameter asks for, and, for a closed
/// spec, that there are no others.
pub(crate) fn arguments(spec: &ToolSpec, arguments: &Arguments) -> Result<(), ToolError> {
    for parameter in &spec.parameters {
        match arguments.get(&parameter.name) {
            Some(argument) if fits(parameter, argument) => {}
            Some(argument) => {
                let problem = format!(
                    "is {} {}, expected {}",
                    article(argument.ty().as_str()),
                    argument.ty(),
                    parameter.type_name
                );
                return Err(invalid(spec, &parameter.name, problem));
            }
            None if parameter.required => {
                let problem = format!("is missing; the tool takes {}", signature(spec));
                return Err(invalid(spec, &parameter.name, problem));
            }
            None => {}
        }
    }
    if spec.closed {
        let names = || spec.parameters.iter().map(|parameter| parameter.name.as_str());
        if let Some(name) =
            arguments.iter().map(|(name, _)| name).find(|name| !names().any(|known| known == *name))
        {
            let hint =
                nearest(name, names()).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
            return Err(invalid(spec, name, format!("is unknown{hint}; the tool takes {}", signature(spec))));
        }
    }
    Ok(())
}

/// The name most like this one, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    const ALIKE: f64 = 0.8;
    names
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate.to_owned())
}

fn fits(parameter: &ParameterSpec, argument: &Payload) -> bool {
    use ValueType as T;
    let ty = argument.ty();
    // None is what optional parameters default to, so it may be said as well as left out.
    if ty == T::Null && parameter.default.as_ref().is_some_and(|default| default.ty() == T::Null) {
        return true;
    }
    match parameter.type_name.as_str() {
        "integer" | "int" => ty == T::Integer,
        // NaN and the infinities are float on the wire, whole numbers are good floats too.
        "float" => matches!(ty, T::Float | T::Integer),
        "string" | "str" => matches!(ty, T::String | T::Choice | T::Module),
        "choice" | "module" => matches!(ty, T::String | T::Choice | T::Module),
        "boolean" | "bool" => ty == T::Boolean,
        "bytes" => ty == T::Bytes,
        "list" => matches!(ty, T::List | T::Embedding | T::Tensor),
        "embedding" | "tensor" | "ndarray" => matches!(ty, T::List | T::Embedding | T::Tensor),
        "map" | "dict" => ty == T::Map,
        "null" => ty == T::Null,
        // `any`, and whatever a worker calls a type the host does not know.
        _ => true,
    }
}

fn signature(spec: &ToolSpec) -> String {
    if spec.parameters.is_empty() {
        return "no arguments".to_owned();
    }
    let describe = |parameter: &ParameterSpec| {
        let optional = if parameter.required { "" } else { ", optional" };
        format!("{} ({}{optional})", parameter.name, parameter.type_name)
    };
    spec.parameters.iter().map(describe).collect::<Vec<_>>().join(", ")
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn invalid(spec: &ToolSpec, argument: &str, problem: String) -> ToolError {
    ToolError::InvalidArgument { tool: spec.name.clone(), argument: argument.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn add() -> ToolSpec {
        ToolSpec::new("add").parameter("a", "float", "").parameter("b", "integer", "").closed()
    }

    fn check(spec: &ToolSpec, args: Value) -> Result<(), String> {
        let Value::Object(args) = args else { panic!("not an object") };
        let args =
            args.into_iter().map(|(name, value)| (name, Payload::try_from_serde(&value).unwrap())).collect();
        arguments(spec, &args).map_err(|error| error.to_string())
    }

    #[test]
    fn good_arguments_pass() {
        assert_eq!(check(&add(), json!({"a": 1.5, "b": 2})), Ok(()));
        assert_eq!(check(&add(), json!({"a": 1, "b": 2})), Ok(()), "whole numbers are good floats");
        let open = ToolSpec::new("echo");
        assert_eq!(check(&open, json!({"anything": []})), Ok(()));
    }

    #[test]
    fn mistakes_name_the_argument_and_the_fix() {
        for (args, message) in [
            (json!({"a": 1}), "argument `b` of tool `add` is missing; the tool takes a (float), b (integer)"),
            (json!({"a": "x", "b": 2}), "argument `a` of tool `add` is a string, expected float"),
            (json!({"a": 1, "b": 2.5}), "argument `b` of tool `add` is a float, expected integer"),
            (json!({"a": 1, "b": null}), "argument `b` of tool `add` is a null, expected integer"),
            (
                json!({"a": 1, "b": 2, "c": 3}),
                "argument `c` of tool `add` is unknown; the tool takes a (float), b (integer)",
            ),
        ] {
            assert_eq!(check(&add(), args), Err(message.to_owned()));
        }
        let scale = ToolSpec::new("scale").parameter("factor", "float", "").closed();
        let error = check(&scale, json!({"factr": 1, "factor": 2})).unwrap_err();
        assert!(error.contains("did you mean `factor`?"), "{error}");
    }

    #[test]
    fn none_is_good_where_it_is_the_default() {
        let mut spec = ToolSpec::new("t").parameter("x", "integer", "");
        spec.parameters[0].required = false;
        spec.parameters[0].default = Some(Payload::null());
        assert_eq!(check(&spec, json!({"x": null})), Ok(()));
    }
}
