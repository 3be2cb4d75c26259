//! [`ToolSpec`], the description of a tool.

mod schema;

use std::collections::BTreeMap;

use snakepit_session::Payload;

/// The metadata key that declares a tool idempotent.
pub(crate) const IDEMPOTENT_KEY: &str = "snakepit.idempotent";
/// The metadata key that hides a host tool from Python, with the value `false`.
const EXPOSED_KEY: &str = "snakepit.exposed";
/// The metadata key of the JSON Schema of a tool's result.
pub const RESULT_SCHEMA_KEY: &str = "snakepit.result_schema";
/// The metadata key for the JSON Schema of a streaming tool's items.
pub const ITEM_SCHEMA_KEY: &str = "snakepit.item_schema";
/// The metadata key of the JSON Schema of additional arguments, which the tool does not declare, such as `**kwargs` in Python.
pub const ADDITIONAL_ARGUMENTS_SCHEMA_KEY: &str = "snakepit.others_schema";
/// The metadata key with the value `true` for a worker tool whose arguments the host does not check.
const UNCHECKED_KEY: &str = "snakepit.unchecked";
/// The metadata key for parameter aliases, as a JSON object.
const ALIASES_KEY: &str = "snakepit.aliases";

/// The aliases of parameters, each with the parameters that it may stand for.
pub(crate) type Aliases = BTreeMap<String, Vec<String>>;

/// The description of a tool. The host lists the spec, and checks arguments against it.
///
/// ```
/// use snakepit_registry::ToolSpec;
///
/// let spec = ToolSpec::new("resize")
///     .description("Resizes an image")
///     .parameter("image", "bytes", "The image")
///     .optional_parameter("width", "integer", "The width in pixels")
///     .idempotent()
///     .deny_unknown_arguments();
/// assert_eq!(spec.parameters.len(), 2);
/// assert!(spec.parameters[0].required && !spec.parameters[1].required);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolSpec {
    /// The tool's name, at most [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES) long.
    pub name: String,
    /// The tool's purpose, for people and language models.
    pub description: String,
    /// The parameters, in the order of the signature.
    pub parameters: Vec<ParameterSpec>,
    /// Key-value pairs of the tool's owner. Keys of this project:
    ///
    /// - `snakepit.idempotent`, `true` if all calls are idempotent,
    /// - `snakepit.exposed`, `false` for a host tool that is hidden from Python,
    /// - `snakepit.aliases`, the aliases of parameters, as a JSON object. The value of each alias lists the parameters that it
    ///   may stand for,
    /// - `snakepit.unchecked`, `true` if the tool checks its arguments itself, so that the host does not,
    /// - [`ADDITIONAL_ARGUMENTS_SCHEMA_KEY`], the JSON Schema of additional, undeclared arguments,
    /// - [`RESULT_SCHEMA_KEY`] and [`ITEM_SCHEMA_KEY`], the JSON Schemas of the result and of stream items.
    pub metadata: BTreeMap<String, String>,
    /// Whether the tool streams its results. The host rejects unary calls to streaming host tools.
    pub supports_streaming: bool,
    /// Whether unknown arguments are errors. `false` for tools with `**kwargs`, and for workers that do not report it.
    pub closed: bool,
}

/// A parameter of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParameterSpec {
    /// The parameter's name.
    pub name: String,
    /// The expected type: the name of a [`ValueType`](snakepit_session::ValueType). If it is another name, such as `any`, the
    /// host does not check the argument's type.
    pub type_name: String,
    /// The parameter's meaning, for people and language models.
    pub description: String,
    /// Whether a call must have this argument.
    pub required: bool,
    /// The value that the tool uses if the call lacks this argument.
    pub default: Option<Payload>,
    /// The JSON Schema (2020-12) of the argument, without description and default. Empty if the other fields describe the
    /// argument completely. Python workers check arguments against it, but the host does not. For host tools, it comes from the
    /// Rust type.
    pub validation_json: String,
}

impl ParameterSpec {
    /// Creates the spec of a required parameter with this type, such as `integer`.
    pub fn new(name: impl Into<String>, type_name: impl Into<String>) -> Self {
        Self { name: name.into(), type_name: type_name.into(), required: true, ..Self::default() }
    }
}

impl ToolSpec {
    /// Returns the first difference in the `new` spec of the same tool, as a clause. Returns `None` if the specs are equal.
    pub(crate) fn change_to(&self, new: &Self) -> Option<String> {
        let parameter = |spec: &Self, name: &str| spec.parameters.iter().find(|p| p.name == name).cloned();
        for spec in &new.parameters {
            let name = &spec.name;
            match parameter(self, name) {
                None => return Some(format!("the parameter `{name}` is new")),
                Some(old) if old.type_name != spec.type_name => {
                    return Some(format!(
                        "the parameter `{name}` has the type `{}` instead of `{}`",
                        spec.type_name, old.type_name
                    ));
                }
                Some(old) if old != *spec => {
                    return Some(format!("the parameter `{name}` has changed"));
                }
                Some(_) => {}
            }
        }
        if let Some(old) = self.parameters.iter().find(|old| parameter(new, &old.name).is_none()) {
            return Some(format!("the parameter `{}` is missing", old.name));
        }
        let part = if self.supports_streaming != new.supports_streaming {
            if new.supports_streaming { "it streams" } else { "it does not stream" }
        } else if self.closed != new.closed {
            if new.closed { "it takes no unknown arguments" } else { "it takes unknown arguments" }
        } else if self.description != new.description {
            "its description has changed"
        } else if self == new {
            return None;
        } else {
            "its metadata or the order of its parameters has changed"
        };
        Some(part.to_owned())
    }

    /// Creates a spec with a name only.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the description.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Adds a required parameter. `type_name` is the name of a [`ValueType`](snakepit_session::ValueType) or `any`.
    #[must_use]
    pub fn parameter(
        mut self,
        name: impl Into<String>,
        type_name: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        let description = description.into();
        self.parameters.push(ParameterSpec { description, ..ParameterSpec::new(name, type_name) });
        self
    }

    /// Adds an optional parameter. `type_name` is as in [`parameter`](Self::parameter).
    #[must_use]
    pub fn optional_parameter(
        self,
        name: impl Into<String>,
        type_name: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        let mut spec = self.parameter(name, type_name, description);
        if let Some(parameter) = spec.parameters.last_mut() {
            parameter.required = false;
        }
        spec
    }

    /// Declares the tool idempotent: a call may run twice, so the pool repeats calls whose worker was lost.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.metadata.insert(IDEMPOTENT_KEY.to_owned(), "true".to_owned());
        self
    }

    /// Sets whether Python tools can list and call a host tool. The default is `true`. Has no effect on worker tools.
    ///
    /// ```
    /// use snakepit_registry::ToolSpec;
    ///
    /// assert!(ToolSpec::new("price").is_exposed());
    /// assert!(!ToolSpec::new("audit").exposed(false).is_exposed());
    /// ```
    #[must_use]
    pub fn exposed(mut self, exposed: bool) -> Self {
        if exposed {
            self.metadata.remove(EXPOSED_KEY);
        } else {
            self.metadata.insert(EXPOSED_KEY.to_owned(), "false".to_owned());
        }
        self
    }

    /// Whether Python tools can list and call the tool, if it is a host tool.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.metadata.get(EXPOSED_KEY).is_none_or(|flag| flag != "false")
    }

    /// Whether the host checks arguments against the parameters. If not, the parameters only describe the tool.
    pub(crate) fn is_checked(&self) -> bool {
        self.metadata.get(UNCHECKED_KEY).is_none_or(|flag| flag != "true")
    }

    /// Makes the tool reject unknown arguments.
    #[must_use]
    pub fn deny_unknown_arguments(mut self) -> Self {
        self.closed = true;
        self
    }
}

impl ToolSpec {
    /// Sets the aliases of the parameters.
    pub(crate) fn set_aliases(&mut self, aliases: &Aliases) {
        if !aliases.is_empty() {
            self.metadata.insert(ALIASES_KEY.to_owned(), serde_json::json!(aliases).to_string());
        }
    }

    /// The aliases of the parameters.
    pub(crate) fn aliases(&self) -> Aliases {
        let aliases = self.metadata.get(ALIASES_KEY);
        aliases.and_then(|aliases| serde_json::from_str(aliases).ok()).unwrap_or_default()
    }

    /// The approximate size of the spec in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        let metadata: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        let parameters: usize = self.parameters.iter().map(ParameterSpec::size).sum();
        size_of::<Self>() + self.name.len() + self.description.len() + metadata + parameters
    }
}

impl ParameterSpec {
    fn size(&self) -> usize {
        let default = self.default.as_ref().map_or(0, Payload::size);
        let texts = [&self.name, &self.type_name, &self.description, &self.validation_json].map(String::len);
        size_of::<Self>() + texts.iter().sum::<usize>() + default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_the_first_difference() {
        let old = || ToolSpec::new("add").parameter("a", "integer", "first").parameter("b", "integer", "");
        let change = |new: ToolSpec| old().change_to(&new);
        assert_eq!(change(old()), None);
        let cases = [
            (old().parameter("c", "string", ""), "the parameter `c` is new"),
            (
                ToolSpec { parameters: old().parameters[..1].to_vec(), ..old() },
                "the parameter `b` is missing",
            ),
            (
                ToolSpec::new("add").parameter("a", "string", "first").parameter("b", "integer", ""),
                "the parameter `a` has the type `string` instead of `integer`",
            ),
            (
                ToolSpec::new("add").parameter("a", "integer", "1st").parameter("b", "integer", ""),
                "the parameter `a` has changed",
            ),
            (ToolSpec { supports_streaming: true, ..old() }, "it streams"),
            (old().deny_unknown_arguments(), "it takes no unknown arguments"),
            (old().description("Adds."), "its description has changed"),
            (
                ToolSpec { parameters: old().parameters.into_iter().rev().collect(), ..old() },
                "its metadata or the order of its parameters has changed",
            ),
        ];
        for (new, expected) in cases {
            assert_eq!(change(new).as_deref(), Some(expected));
        }
    }
}
