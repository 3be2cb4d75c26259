//! Derives the parameters of a host tool from the type of its arguments.
//!
//! The JSON Schema of the type provides types, descriptions and defaults. serde provides the names: the fields of the struct in
//! their order, with aliases, and whether the type accepts other names.

#[cfg(test)]
mod tests;

use std::{any::type_name, fmt};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{
    Deserializer,
    de::{DeserializeOwned, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};
use snakepit_session::{Payload, ValueType};

use crate::{ParameterSpec, ToolSpec, spec::Aliases};

/// The arguments that a type takes.
#[derive(Debug)]
pub(super) struct DerivedArguments {
    parameters: Vec<ParameterSpec>,
    aliases: Aliases,
    /// Whether all other names are errors.
    closed: bool,
}

impl DerivedArguments {
    /// No arguments.
    pub(super) const fn none() -> Self {
        Self { parameters: Vec::new(), aliases: Aliases::new(), closed: true }
    }

    /// The arguments that deserialize into a type.
    ///
    /// # Errors
    /// If the type does not deserialize from named arguments. The text is a predicate without its subject.
    pub(super) fn of<T: DeserializeOwned + JsonSchema>() -> Result<Self, String> {
        let settings = SchemaSettings::draft2020_12().for_deserialize();
        // The schema of each parameter must stand alone, so it contains its subschemas.
        let settings = settings.with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<T>();
        let schema = schema.as_value();
        let (schema, is_optional) = without_null(schema).unwrap_or((schema, false));
        if let Some(kind @ ("string" | "number" | "integer" | "boolean" | "array")) = scalar_type(schema) {
            let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
            return Err(format!(
                "takes `{}`, which is {article} {kind}; arguments have names, so take a struct or a map",
                type_name::<T>()
            ));
        }
        if schema.get("type").is_some_and(|ty| ty == "null") {
            return Ok(Self::none());
        }
        let fields = fields_of::<T>();
        let no_properties = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&no_properties);
        let required: Vec<&str> = match schema.get("required").and_then(Value::as_array) {
            Some(names) if !is_optional => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let mut parameters: Vec<ParameterSpec> = properties
            .iter()
            .map(|(name, field)| {
                parameter(name, field, required.contains(&name.as_str()), schema.get("$defs"))
            })
            .collect();
        // The schema is sorted by name. Fields that serde does not list keep that order, at the end.
        let position = |name: &str| {
            fields.unwrap_or_default().iter().position(|field| *field == name).unwrap_or(usize::MAX)
        };
        parameters.sort_by_key(|parameter| position(&parameter.name));
        let rejects_others = schema.get("additionalProperties") == Some(&Value::Bool(false));
        let aliases = aliases_in(fields.unwrap_or_default(), |name| properties.contains_key(name));
        Ok(Self { parameters, aliases, closed: fields.is_some() || rejects_others })
    }

    /// The arguments of a function that takes both.
    pub(super) fn merge(mut self, other: Self) -> Self {
        for parameter in other.parameters {
            if self.parameters.iter().all(|own| own.name != parameter.name) {
                self.parameters.push(parameter);
            }
        }
        self.aliases.extend(other.aliases);
        self.closed &= other.closed;
        self
    }

    /// Makes unknown names valid.
    pub(super) fn opened(mut self) -> Self {
        self.closed = false;
        self
    }

    /// Adds the arguments to a spec.
    pub(super) fn describe(&self, spec: &mut ToolSpec) {
        spec.parameters.clone_from(&self.parameters);
        spec.closed = self.closed;
        spec.set_aliases(&self.aliases);
    }
}

/// Describes a field. `definitions` are those of recursive types.
fn parameter(name: &str, schema: &Value, required: bool, definitions: Option<&Value>) -> ParameterSpec {
    let is_nullable = without_null(schema).is_some();
    let default = match schema.get("default") {
        Some(default) => Payload::try_from_serde(default).ok(),
        None => (is_nullable && !required).then(Payload::null),
    };
    // The host accepts null for a typed parameter only if null is its default. Other nullable parameters have the type `any`.
    let is_null_rejected = default.as_ref().is_none_or(|default| default.ty() != ValueType::Null);
    let type_name = if is_nullable && is_null_rejected { "any" } else { value_type(schema) };
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    ParameterSpec {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        description: description.to_owned(),
        required,
        default,
        validation_json: constraints(schema, definitions),
    }
}

/// Returns the schema of a parameter, without the keywords that other fields of the spec express. Empty if the schema cannot
/// stand alone.
fn constraints(schema: &Value, definitions: Option<&Value>) -> String {
    let mut schema = schema.clone();
    if let Value::Object(keywords) = &mut schema {
        keywords.remove("description");
        keywords.remove("default");
    }
    let text = schema.to_string();
    if !text.contains("\"$ref\":") {
        return text;
    }
    match (&mut schema, definitions) {
        (Value::Object(keywords), Some(definitions)) if !text.contains("\"$ref\":\"#\"") => {
            keywords.insert("$defs".to_owned(), definitions.clone());
            schema.to_string()
        }
        _ => String::new(),
    }
}

/// The name of the [`ValueType`](snakepit_session::ValueType) that a schema describes, or `any`.
fn value_type(schema: &Value) -> &'static str {
    let schema = without_null(schema).map_or(schema, |(inner, _)| inner);
    match scalar_type(schema) {
        Some("integer") => "integer",
        Some("number") => "float",
        Some("string") => "string",
        Some("boolean") => "boolean",
        // Bytes have the schema of a list of small numbers, but a call may also pass them as binary data.
        Some("array") if schema.pointer("/items/format").is_some_and(|format| format == "uint8") => "any",
        Some("array") => "list",
        Some("object") => "map",
        _ => "any",
    }
}

/// The type of a schema with exactly one type besides null.
fn scalar_type(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(ty) => Some(ty),
        Value::Array(types) => {
            let mut types = types.iter().filter_map(Value::as_str).filter(|ty| *ty != "null");
            types.next().filter(|_| types.next().is_none())
        }
        _ => None,
    }
}

/// The schema of an `Option`'s value, and `true`. `None` for a schema that does not accept null.
fn without_null(schema: &Value) -> Option<(&Value, bool)> {
    let is_null = |schema: &Value| schema.get("type").is_some_and(|ty| ty == "null");
    if let Some(types) = schema.get("type").and_then(Value::as_array)
        && types.iter().any(|ty| ty == "null")
    {
        return Some((schema, true));
    }
    let variants = schema.get("anyOf").or_else(|| schema.get("oneOf"))?.as_array()?;
    let mut others = variants.iter().filter(|variant| !is_null(variant));
    let has_null = variants.iter().any(is_null);
    match (others.next(), others.next()) {
        (Some(value), None) if has_null => Some((value, true)),
        (Some(_), Some(_)) if has_null => Some((schema, true)),
        _ => None,
    }
}

/// The field names of a struct, with aliases, in their order. `None` for a type that accepts other names too.
fn fields_of<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let mut fields = None;
    // The probe always fails after it has recorded the fields.
    let _ = T::deserialize(FieldProbe { fields: &mut fields });
    fields
}

/// Finds the aliases among the names of a struct, and the fields that each may stand for.
///
/// serde sorts the names of one field and lists them next to each other. An alias between two fields therefore belongs to the
/// first field. If it sorts before the second field, it may belong to that field instead.
fn aliases_in(names: &[&str], is_field: impl Fn(&str) -> bool) -> Aliases {
    let mut aliases = Aliases::new();
    let mut previous = None;
    for (index, name) in names.iter().enumerate() {
        if is_field(name) {
            previous = Some(*name);
            continue;
        }
        let next = names[index + 1..].iter().find(|name| is_field(name)).filter(|next| name < *next);
        let fields = previous.into_iter().chain(next.copied()).map(str::to_owned).collect();
        aliases.insert((*name).to_owned(), fields);
    }
    aliases
}

/// A deserializer that records the field names of a struct, and then fails.
struct FieldProbe<'a> {
    fields: &'a mut Option<&'static [&'static str]>,
}

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = ProbeDone;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeDone> {
        Err(ProbeDone)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ProbeDone> {
        *self.fields = Some(fields);
        Err(ProbeDone)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ProbeDone> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeDone> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// The error with which every [`FieldProbe`] ends.
#[derive(Debug)]
struct ProbeDone;

impl fmt::Display for ProbeDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the probe has no value")
    }
}

impl std::error::Error for ProbeDone {}

impl serde::de::Error for ProbeDone {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}
