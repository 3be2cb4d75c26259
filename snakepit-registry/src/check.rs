//! Checks a call against a tool's spec. Allocates only for error messages.

use snakepit_session::{Payload, ValueType};

use crate::{Arguments, ParameterSpec, ToolCall, ToolError, ToolSpec, Violation};

/// The maximum length of a tool name, an argument name or a metadata key, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 256;

/// The maximum number of metadata entries of a call.
const MAX_METADATA_ENTRIES: usize = 1000;

/// The maximum length of a name that gets a suggestion or is suggested, in bytes. Longer names are not typos.
const MAX_SUGGESTION_BYTES: usize = 128;

/// The maximum number of pairs of bytes that the search for a suggestion compares. Bounds its time to well below a
/// millisecond.
const MAX_COMPARED_PAIRS: usize = 256 * 1024;

/// Checks the lengths of all names in a call, and the number of its metadata entries. The other checks rely on it.
pub(crate) fn names(call: &ToolCall) -> Result<(), ToolError> {
    let reject = |field: &str, problem: String| {
        Err(ToolError::invalid_argument(truncated(&call.tool), field, problem))
    };
    tool_name(&call.tool)?;
    if let Some((name, _)) = call.arguments.iter().find(|(name, _)| name.len() > MAX_NAME_BYTES) {
        return reject("arguments", too_long("contains a name", name));
    }
    if call.metadata.len() > MAX_METADATA_ENTRIES {
        let count = call.metadata.len();
        return reject("metadata", format!("has {count} entries, the limit is {MAX_METADATA_ENTRIES}"));
    }
    if let Some(key) = call.metadata.keys().find(|key| key.len() > MAX_NAME_BYTES) {
        return reject("metadata", too_long("contains a key", key));
    }
    Ok(())
}

/// Checks the length of a tool's name.
pub(crate) fn tool_name(tool: &str) -> Result<(), ToolError> {
    if tool.len() > MAX_NAME_BYTES {
        let problem = too_long("is a name", tool);
        return Err(ToolError::invalid_argument(truncated(tool), "tool_name", problem));
    }
    Ok(())
}

/// The end of an error message about a long name. `verb_phrase` precedes the length.
fn too_long(verb_phrase: &str, name: &str) -> String {
    format!("{verb_phrase} of {} bytes, the limit is {MAX_NAME_BYTES}: `{}`", name.len(), truncated(name))
}

/// The name, or its beginning if the name is too long for a message.
pub(crate) fn truncated(name: &str) -> String {
    const MAX_EXCERPT_BYTES: usize = 64;
    if name.len() <= MAX_NAME_BYTES {
        return name.to_owned();
    }
    let end = (0..=MAX_EXCERPT_BYTES).rev().find(|end| name.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &name[..end])
}

/// Checks that every required argument is present, and that each argument has the type of its parameter. A closed spec also
/// rejects other arguments. The error reports all problems.
pub(crate) fn arguments(spec: &ToolSpec, arguments: &Arguments) -> Result<(), ToolError> {
    let violations = argument_violations(spec, arguments);
    if violations.is_empty() { Ok(()) } else { Err(ToolError::invalid_arguments(&*spec.name, violations)) }
}

/// Returns the problems of arguments: those that are missing, unknown to a closed spec, or of a different type than their parameter.
/// Empty for valid arguments.
///
/// Workers use it for tools whose arguments the host does not check, because the worker has more to check.
#[must_use]
pub fn argument_violations(spec: &ToolSpec, arguments: &Arguments) -> Vec<Violation> {
    let is_valid = |parameter: &ParameterSpec| match arguments.get(&parameter.name) {
        Some(argument) => matches_type(parameter, argument),
        None => !parameter.required,
    };
    if spec.parameters.iter().all(is_valid) && unknown_names(spec, arguments).next().is_none() {
        return Vec::new();
    }
    let aliases = spec.aliases();
    // An alias may stand for several parameters. serde reports which of them is missing.
    let may_be_present = |parameter: &str| {
        let mut named = arguments.iter().filter_map(|(name, _)| aliases.get(name));
        named.any(|parameters| parameters.iter().any(|name| name == parameter))
    };
    let mut problems = Problems { spec, found: Vec::new(), omitted: 0, shows_signature: false };
    for parameter in &spec.parameters {
        match arguments.get(&parameter.name) {
            Some(argument) if matches_type(parameter, argument) => {}
            Some(argument) => {
                let ty = argument.ty();
                problems.add(&parameter.name, || {
                    let advice = if ty == ValueType::List && parameter.type_name == ValueType::Bytes.as_str()
                    {
                        "; pass bytes as a raw value, in Rust by `.payload(name, Payload::bytes(..))`"
                    } else {
                        ""
                    };
                    format!("is {} {ty}, expected {}{advice}", article(ty.as_str()), parameter.type_name)
                });
            }
            None if parameter.required && !may_be_present(&parameter.name) => {
                problems.shows_signature = true;
                problems.add(&parameter.name, || "is missing".to_owned());
            }
            None => {}
        }
    }
    let names = || spec.parameters.iter().map(|parameter| parameter.name.as_str());
    for name in unknown_names(spec, arguments).filter(|name| !aliases.contains_key(*name)) {
        problems.shows_signature = true;
        problems.add(name, || {
            let near = nearest(name, names().chain(aliases.keys().map(String::as_str)));
            let suggestion = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
            format!("is unknown{suggestion}")
        });
    }
    problems.into_violations()
}

/// The names of arguments that are not parameters of a closed spec.
fn unknown_names<'a>(spec: &ToolSpec, arguments: &'a Arguments) -> impl Iterator<Item = &'a str> {
    let is_known = |name: &str| spec.parameters.iter().any(|parameter| parameter.name == name);
    let names = arguments.iter().map(|(name, _)| name);
    names.filter(move |name| spec.closed && !is_known(name))
}

/// The maximum number of problems that one error describes.
const MAX_PROBLEMS: usize = 32;

/// The problems with the arguments of one call.
struct Problems<'a> {
    spec: &'a ToolSpec,
    /// The names of arguments, each with the rest of a sentence.
    found: Vec<(String, String)>,
    omitted: usize,
    shows_signature: bool,
}

impl Problems<'_> {
    /// Adds a problem. Calls `describe` only below [`MAX_PROBLEMS`], because searching for a similar name is slow and a client
    /// may send any number of unknown names.
    fn add(&mut self, name: &str, describe: impl FnOnce() -> String) {
        if self.found.len() < MAX_PROBLEMS {
            self.found.push((name.to_owned(), describe()));
        } else {
            self.omitted += 1;
        }
    }

    /// Returns the problems. The last one ends with the number of omitted problems and, if that helps, with the signature.
    fn into_violations(self) -> Vec<Violation> {
        let Self { spec, found, omitted, shows_signature } = self;
        let mut violations: Vec<_> =
            found.into_iter().map(|(name, problem)| Violation::new(name, problem)).collect();
        if let Some(last) = violations.last_mut() {
            if omitted > 0 {
                last.description.push_str(&format!(", and {omitted} more are wrong"));
            }
            if shows_signature {
                last.description.push_str("; the tool takes ");
                last.description.push_str(&signature(spec));
            }
        }
        violations
    }
}

/// Finds the most similar name, if any is similar. Skips long names, and stops after [`MAX_COMPARED_PAIRS`].
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    const MIN_SIMILARITY: f64 = 0.8;
    if name.len() > MAX_SUGGESTION_BYTES {
        return None;
    }
    let mut compared_pairs = 0;
    names
        .filter(|candidate| candidate.len() <= MAX_SUGGESTION_BYTES)
        .take_while(|candidate| {
            // Every comparison allocates, which costs about as much as 64 pairs.
            compared_pairs += name.len() * candidate.len() + 64;
            compared_pairs <= MAX_COMPARED_PAIRS
        })
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate.to_owned())
}

fn matches_type(parameter: &ParameterSpec, argument: &Payload) -> bool {
    use ValueType as T;
    let ty = argument.ty();
    // An argument may be null if null is its default.
    if ty == T::Null && parameter.default.as_ref().is_some_and(|default| default.ty() == T::Null) {
        return true;
    }
    match parameter.type_name.as_str() {
        // Like a variable of this type, accepts 5.0 as 5.
        "integer" | "int" => ty == T::Integer || (ty == T::Float && argument.to_integer().is_some()),
        // Accepts NaN and infinities, which are floats on the wire, and integers.
        "float" => matches!(ty, T::Float | T::Integer),
        "string" | "str" => matches!(ty, T::String | T::Choice | T::Module),
        "choice" | "module" => matches!(ty, T::String | T::Choice | T::Module),
        "boolean" | "bool" => ty == T::Boolean,
        "bytes" => ty == T::Bytes,
        "list" => matches!(ty, T::List | T::Embedding | T::Tensor),
        "embedding" | "tensor" | "ndarray" => matches!(ty, T::List | T::Embedding | T::Tensor),
        "map" | "dict" => ty == T::Map,
        "null" => ty == T::Null,
        // `any`, and names of types that the host does not know.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn add() -> ToolSpec {
        ToolSpec::new("add")
            .parameter("a", "float", "")
            .parameter("b", "integer", "")
            .deny_unknown_arguments()
    }

    fn check(spec: &ToolSpec, args: Value) -> Result<(), String> {
        let Value::Object(args) = args else { panic!("not an object") };
        let args =
            args.into_iter().map(|(name, value)| (name, Payload::try_from_serde(&value).unwrap())).collect();
        arguments(spec, &args).map_err(|error| error.to_string())
    }

    #[test]
    fn valid_arguments_pass() {
        assert_eq!(check(&add(), json!({"a": 1.5, "b": 2})), Ok(()));
        assert_eq!(check(&add(), json!({"a": 1, "b": 2})), Ok(()), "integers are valid floats");
        let open = ToolSpec::new("echo");
        assert_eq!(check(&open, json!({"anything": []})), Ok(()));
    }

    #[test]
    fn errors_name_the_argument_and_the_fix() {
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
        let scale = ToolSpec::new("scale").parameter("factor", "float", "").deny_unknown_arguments();
        let error = check(&scale, json!({"factr": 1, "factor": 2})).unwrap_err();
        assert!(error.contains("did you mean `factor`?"), "{error}");
        assert_eq!(
            check(&scale, json!({"factr": 1})).unwrap_err(),
            "argument `factor` of tool `scale` is missing, and `factr` is unknown (did you mean `factor`?); \
             the tool takes factor (float)"
        );
        let open = ToolSpec::new("scale").parameter("factor", "float", "");
        let error = check(&open, json!({"factr": 1})).unwrap_err();
        assert!(!error.contains("unknown"), "{error}");
    }

    #[test]
    fn one_error_reports_all_problems() {
        assert_eq!(
            check(&add(), json!({"a": "x", "c": 1, "x": 2})).unwrap_err(),
            "argument `a` of tool `add` is a string, expected float, `b` is missing, `c` is unknown, and `x` is unknown; \
             the tool takes a (float), b (integer)"
        );
        let many: serde_json::Map<_, _> = (0..44).map(|n| (format!("x{n:02}"), json!(n))).collect();
        let error = check(&ToolSpec::new("t").deny_unknown_arguments(), Value::Object(many)).unwrap_err();
        assert!(
            error.ends_with("`x31` is unknown, and 12 more are wrong; the tool takes no arguments"),
            "{error}"
        );
    }

    #[test]
    fn aliases_are_known_names_of_their_parameters() {
        let mut spec = add().parameter("c", "integer", "");
        let of = |parameters: &[&str]| parameters.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        spec.set_aliases(&[("first".to_owned(), of(&["a"])), ("either".to_owned(), of(&["a", "b"]))].into());
        assert_eq!(check(&spec, json!({"first": 1, "b": 2, "c": 3})), Ok(()));
        let error = check(&spec, json!({"first": 1})).unwrap_err();
        assert!(
            error.contains("argument `b` of tool `add` is missing, and `c` is missing; the tool"),
            "{error}"
        );
        let error = check(&spec, json!({"either": 1})).unwrap_err();
        assert!(error.contains("argument `c` of tool `add` is missing; the tool"), "{error}");
        assert_eq!(check(&spec, json!({"either": 1, "c": 3})), Ok(()), "serde reports the missing argument");
        let error = check(&spec, json!({"frist": 1, "b": 2, "c": 3})).unwrap_err();
        assert!(
            error.contains("`a` of tool `add` is missing, and `frist` is unknown (did you mean `first`?)"),
            "{error}"
        );
    }

    #[test]
    fn long_names_are_rejected_before_they_are_compared() {
        let long = || "x".repeat(10 << 20);
        let mut with_long_argument = ToolCall::new("t");
        with_long_argument.arguments.insert(long(), Payload::null());
        let mut with_long_key = ToolCall::new("t");
        with_long_key.metadata.insert(long(), String::new());
        let mut with_many_entries = ToolCall::new("t");
        with_many_entries.metadata.extend((0..=MAX_METADATA_ENTRIES).map(|n| (n.to_string(), String::new())));
        for (call, field, number) in [
            (ToolCall::new(long()), "tool_name", "10485760 bytes, the limit is 256"),
            (with_long_argument, "arguments", "10485760 bytes, the limit is 256"),
            (with_long_key, "metadata", "10485760 bytes, the limit is 256"),
            (with_many_entries, "metadata", "1001 entries, the limit is 1000"),
        ] {
            let error = names(&call).unwrap_err();
            assert!(
                matches!(&error, ToolError::InvalidArguments { violations, .. } if violations[0].field == field)
            );
            let message = error.to_string();
            assert!(message.contains(number) && message.len() < 400, "{message}");
        }
        assert!(names(&ToolCall::new("ä".repeat(MAX_NAME_BYTES / 2))).is_ok());
    }

    #[test]
    fn the_search_for_a_suggestion_is_bounded() {
        let padded_numbers = |count: usize, length: usize| -> Vec<String> {
            (0..count).map(|n| format!("{n:0length$}")).collect()
        };
        let compared_names = std::cell::Cell::new(0);
        let nearest_of = |names: &[String], name: &str| {
            compared_names.set(0);
            let names = names.iter().map(|name| {
                compared_names.set(compared_names.get() + 1);
                name.as_str()
            });
            nearest(name, names)
        };
        let short = padded_numbers(10, 8);
        assert_eq!(nearest_of(&short, "0000000x").as_deref(), Some("00000009"));
        assert_eq!(nearest_of(&short, &"x".repeat(MAX_SUGGESTION_BYTES + 1)), None);
        assert_eq!(compared_names.get(), 0);
        let many = padded_numbers(10_000, MAX_SUGGESTION_BYTES);
        nearest_of(&many, &"x".repeat(MAX_SUGGESTION_BYTES));
        assert!(
            compared_names.get() * MAX_SUGGESTION_BYTES * MAX_SUGGESTION_BYTES <= 2 * MAX_COMPARED_PAIRS,
            "{}",
            compared_names.get()
        );
    }

    #[test]
    fn a_whole_float_is_a_valid_integer() {
        let spec = ToolSpec::new("t").parameter("n", "integer", "");
        assert_eq!(check(&spec, json!({"n": 5.0})), Ok(()));
        assert_eq!(check(&spec, json!({"n": -0.0})), Ok(()));
        for float in [json!(5.5), json!(1e300)] {
            let error = check(&spec, json!({"n": float})).unwrap_err();
            assert_eq!(error, "argument `n` of tool `t` is a float, expected integer");
        }
        let nan = Arguments::from_iter([("n".to_owned(), Payload::float(f64::NAN))]);
        assert!(arguments(&spec, &nan).is_err());
    }

    #[test]
    fn null_is_valid_if_it_is_the_default() {
        let mut spec = ToolSpec::new("t").parameter("x", "integer", "");
        spec.parameters[0].required = false;
        spec.parameters[0].default = Some(Payload::null());
        assert_eq!(check(&spec, json!({"x": null})), Ok(()));
    }
}
