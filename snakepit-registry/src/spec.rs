//! What a tool says about itself.

use std::collections::BTreeMap;

use snakepit_session::Payload;

/// A tool's description: enough to list it, check a call and build a user interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolSpec {
    /// The name it is called by.
    pub name: String,
    /// What it does, for people and language models.
    pub description: String,
    /// Its parameters, in the order of its signature.
    pub parameters: Vec<ParameterSpec>,
    /// Whatever its owner attached.
    pub metadata: BTreeMap<String, String>,
    /// Whether it may be called for a stream of chunks.
    pub supports_streaming: bool,
    /// Whether arguments that no parameter names are errors. Off for tools that take any keyword, and for workers
    /// that do not say.
    pub closed: bool,
}

/// One parameter of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Its name.
    pub name: String,
    /// The type it expects, by a name of [`ValueType`](snakepit_session::ValueType). Names unknown to the host,
    /// such as `any`, are not checked.
    pub type_name: String,
    /// What it means.
    pub description: String,
    /// Whether a call must give it.
    pub required: bool,
    /// What the tool takes when a call does not give it.
    pub default: Option<Payload>,
    /// Further constraints, as the owner wrote them.
    pub validation_json: String,
}

impl ToolSpec {
    /// A spec with a name and nothing else.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Says what the tool does.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Adds a required parameter of this type, a name of [`ValueType`](snakepit_session::ValueType) or `any`.
    #[must_use]
    pub fn parameter(
        mut self,
        name: impl Into<String>,
        type_name: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        self.parameters.push(ParameterSpec {
            name: name.into(),
            type_name: type_name.into(),
            description: description.into(),
            required: true,
            ..ParameterSpec::default()
        });
        self
    }

    /// Adds a parameter that a call may leave out.
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

    /// Refuses arguments that no parameter names.
    #[must_use]
    pub fn closed(mut self) -> Self {
        self.closed = true;
        self
    }
}

impl ToolSpec {
    /// About how many bytes of memory it takes, for limits.
    pub(crate) fn size(&self) -> usize {
        let texts: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        let parameters: usize = self.parameters.iter().map(ParameterSpec::size).sum();
        size_of::<Self>() + self.name.len() + self.description.len() + texts + parameters
    }
}

impl ParameterSpec {
    fn size(&self) -> usize {
        let default = self.default.as_ref().map_or(0, Payload::size);
        let texts = [&self.name, &self.type_name, &self.description, &self.validation_json].map(String::len);
        size_of::<Self>() + texts.iter().sum::<usize>() + default
    }
}
