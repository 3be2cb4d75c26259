//! The types that a parameter accepts, from the JSON Schema of its tool.

use std::fmt;

use serde_json::Value;

/// The maximum depth of references and unions that the search follows.
const MAX_DEPTH: usize = 16;

/// The types that a parameter accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "it is a set of types")]
pub(super) struct AcceptedTypes {
    pub(super) text: bool,
    pub(super) bytes: bool,
    pub(super) integer: bool,
    pub(super) number: bool,
    pub(super) boolean: bool,
    pub(super) null: bool,
    pub(super) array: bool,
    pub(super) object: bool,
    /// Whether the schema names no type, or is unknown.
    pub(super) any: bool,
}

impl AcceptedTypes {
    /// Finds the types of a parameter in the schema of all arguments. Accepts any type if the tool does not declare the parameter.
    pub(super) fn of_parameter(schema: &Value, name: &str) -> Self {
        let mut accepted = Self::default();
        match schema["properties"].get(name) {
            Some(parameter) => accepted.add(parameter, schema, 0),
            None => accepted.any = true,
        }
        accepted
    }

    fn add(&mut self, schema: &Value, root: &Value, depth: usize) {
        if depth > MAX_DEPTH {
            self.any = true;
            return;
        }
        if let Some(reference) = schema["$ref"].as_str() {
            match reference.strip_prefix('#').and_then(|path| root.pointer(path)) {
                Some(target) => self.add(target, root, depth + 1),
                None => self.any = true,
            }
            return;
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(members) = schema[key].as_array() {
                members.iter().for_each(|member| self.add(member, root, depth + 1));
                return;
            }
        }
        let is_base64 = schema["contentEncoding"] == "base64";
        match (&schema["type"], &schema["enum"], schema.get("const")) {
            (Value::String(name), ..) => self.add_type(name, is_base64),
            (Value::Array(names), ..) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.add_type(name, is_base64));
            }
            (_, Value::Array(members), _) => members.iter().for_each(|member| self.add_type_of(member)),
            (_, _, Some(only)) => self.add_type_of(only),
            _ => self.any = true,
        }
    }

    fn add_type(&mut self, name: &str, is_base64: bool) {
        match name {
            "string" if is_base64 => self.bytes = true,
            "string" => self.text = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => self.any = true,
        }
    }

    fn add_type_of(&mut self, member: &Value) {
        match member {
            Value::String(_) => self.text = true,
            Value::Number(number) if number.is_f64() => self.number = true,
            Value::Number(_) => self.integer = true,
            Value::Bool(_) => self.boolean = true,
            Value::Null => self.null = true,
            Value::Array(_) => self.array = true,
            Value::Object(_) => self.object = true,
        }
    }
}

/// Lists the types, such as `an integer or null`.
impl fmt::Display for AcceptedTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.any, "any value"),
            (self.text, "a string"),
            (self.bytes, "bytes"),
            (self.integer, "an integer"),
            (self.number, "a number"),
            (self.boolean, "true or false"),
            (self.array, "a list"),
            (self.object, "a map"),
            (self.null, "null"),
        ];
        let names: Vec<&str> =
            names.into_iter().filter(|(is_accepted, _)| *is_accepted).map(|(_, name)| name).collect();
        f.write_str(&names.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unions_references_and_choices_are_followed() {
        let schema = json!({
            "properties": {
                "level": {"$ref": "#/$defs/Level"},
                "maybe": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "data": {"type": "string", "contentEncoding": "base64"},
                "free": {},
                "loop": {"$ref": "#/$defs/Loop"},
            },
            "$defs": {"Level": {"enum": [1, 2]}, "Loop": {"$ref": "#/$defs/Loop"}},
        });
        let accepted = |name| AcceptedTypes::of_parameter(&schema, name).to_string();
        let names = ["level", "maybe", "data", "free", "loop", "other"];
        assert_eq!(
            names.map(accepted),
            ["an integer", "a number or null", "bytes", "any value", "any value", "any value"]
        );
    }
}
