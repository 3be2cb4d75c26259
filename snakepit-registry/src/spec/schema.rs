//! The JSON Schemas of a tool.

use serde_json::{Map, Value, json};
use snakepit_session::ValueType;

use super::{ADDITIONAL_ARGUMENTS_SCHEMA_KEY, ITEM_SCHEMA_KEY, ParameterSpec, RESULT_SCHEMA_KEY, ToolSpec};

impl ToolSpec {
    /// The JSON Schema (2020-12) of the arguments, as one object.
    ///
    /// ```
    /// use serde_json::json;
    /// use snakepit_registry::ToolSpec;
    ///
    /// let spec = ToolSpec::new("resize").parameter("width", "integer", "In pixels").deny_unknown_arguments();
    /// assert_eq!(
    ///     spec.input_schema(),
    ///     json!({
    ///         "type": "object",
    ///         "properties": {"width": {"type": "integer", "description": "In pixels"}},
    ///         "required": ["width"],
    ///         "additionalProperties": false,
    ///     })
    /// );
    /// ```
    #[must_use]
    pub fn input_schema(&self) -> Value {
        let mut properties = Map::new();
        let mut definitions = Map::new();
        for parameter in &self.parameters {
            let mut schema = parameter.schema();
            // References start at the root of the schema, so all definitions move there. Their names are unique within a tool.
            if let Some(Value::Object(own)) = schema.remove("$defs") {
                definitions.extend(own);
            }
            properties.insert(parameter.name.clone(), schema.into());
        }
        let additional = self
            .metadata
            .get(ADDITIONAL_ARGUMENTS_SCHEMA_KEY)
            .and_then(|json| serde_json::from_str(json).ok());
        let additional = additional.map(|mut schema: Map<String, Value>| {
            if let Some(Value::Object(own)) = schema.remove("$defs") {
                definitions.extend(own);
            }
            schema
        });
        let required = self.parameters.iter().filter(|parameter| parameter.required);
        let required: Vec<&str> = required.map(|parameter| parameter.name.as_str()).collect();
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if self.closed {
            schema["additionalProperties"] = false.into();
        } else if let Some(additional) = additional {
            schema["additionalProperties"] = additional.into();
        }
        if !definitions.is_empty() {
            schema["$defs"] = definitions.into();
        }
        schema
    }

    /// The JSON Schema (2020-12) of the result. `None` if the tool does not declare it, or only streams.
    #[must_use]
    pub fn result_schema(&self) -> Option<Value> {
        serde_json::from_str(self.metadata.get(RESULT_SCHEMA_KEY)?).ok()
    }

    /// The JSON Schema (2020-12) of stream items. `None` if the tool does not declare it, or does not stream.
    #[must_use]
    pub fn item_schema(&self) -> Option<Value> {
        serde_json::from_str(self.metadata.get(ITEM_SCHEMA_KEY)?).ok()
    }
}

impl ParameterSpec {
    fn schema(&self) -> Map<String, Value> {
        let mut schema = match serde_json::from_str(&self.validation_json) {
            Ok(Value::Object(schema)) => schema,
            _ => self.schema_of_type(),
        };
        if !self.description.is_empty() {
            schema.insert("description".to_owned(), self.description.as_str().into());
        }
        if let Some(default) = self.default.as_ref().and_then(|default| default.to_serde::<Value>().ok()) {
            schema.insert("default".to_owned(), default);
        }
        schema
    }

    /// Returns the schema of the type, without `validation_json`.
    fn schema_of_type(&self) -> Map<String, Value> {
        let schema = match self.type_name.as_str() {
            "integer" | "int" => json!({"type": "integer"}),
            "float" => json!({"type": "number"}),
            "string" | "str" | "choice" | "module" => json!({"type": "string"}),
            "boolean" | "bool" => json!({"type": "boolean"}),
            "bytes" => json!({"type": "string", "contentEncoding": "base64"}),
            "list" | "embedding" | "tensor" | "ndarray" => json!({"type": "array"}),
            "map" | "dict" => json!({"type": "object"}),
            "null" => json!({"type": "null"}),
            _ => json!({}),
        };
        let is_nullable = self.default.as_ref().is_some_and(|default| default.ty() == ValueType::Null);
        let schema = match is_nullable && schema["type"] != "null" && schema != json!({}) {
            true => json!({"anyOf": [schema, {"type": "null"}]}),
            false => schema,
        };
        if let Value::Object(schema) = schema { schema } else { Map::new() }
    }
}

#[cfg(test)]
mod tests {
    use snakepit_session::Payload;

    use super::*;

    #[test]
    fn the_schema_has_types_defaults_descriptions_and_the_definitions_of_all_parameters() {
        let mut spec = ToolSpec::new("order")
            .parameter("items", "list", "All items")
            .optional_parameter("count", "integer", "")
            .optional_parameter("note", "string", "")
            .optional_parameter("anything", "any", "");
        spec.parameters[0].validation_json = json!({
            "type": "array", "items": {"$ref": "#/$defs/Item"}, "$defs": {"Item": {"type": "object"}},
        })
        .to_string();
        spec.parameters[1].default = Some(Payload::try_from_serde(&2).unwrap());
        spec.parameters[2].default = Some(Payload::null());
        let expected = json!({
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "description": "All items"},
                "count": {"type": "integer", "default": 2},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
                "anything": {},
            },
            "required": ["items"],
            "$defs": {"Item": {"type": "object"}},
        });
        assert_eq!(spec.input_schema(), expected);
        assert_eq!(spec.deny_unknown_arguments().input_schema()["additionalProperties"], false);
    }

    #[test]
    fn other_arguments_have_a_schema() {
        let mut spec = ToolSpec::new("order").parameter("count", "integer", "");
        let additional = json!({"$ref": "#/$defs/Item", "$defs": {"Item": {"type": "object"}}});
        spec.metadata.insert(ADDITIONAL_ARGUMENTS_SCHEMA_KEY.to_owned(), additional.to_string());
        let schema = spec.input_schema();
        assert_eq!(schema["additionalProperties"], json!({"$ref": "#/$defs/Item"}));
        assert_eq!(schema["$defs"], json!({"Item": {"type": "object"}}));
    }

    #[test]
    fn schemas_of_results_are_in_the_metadata() {
        let mut spec = ToolSpec::new("t");
        assert_eq!((spec.result_schema(), spec.item_schema()), (None, None));
        spec.metadata.insert(RESULT_SCHEMA_KEY.to_owned(), r#"{"type":"integer"}"#.to_owned());
        spec.metadata.insert(ITEM_SCHEMA_KEY.to_owned(), "broken".to_owned());
        assert_eq!((spec.result_schema(), spec.item_schema()), (Some(json!({"type": "integer"})), None));
    }
}
