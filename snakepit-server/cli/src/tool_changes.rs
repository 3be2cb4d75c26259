//! The difference between the tools before and after a restart.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};
use snakepit_server::ToolSpec;
use snakepit_worker::escaping::escape;

/// The tools that a restart has added, removed or changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolChanges {
    /// The signatures of new tools.
    added: Vec<String>,
    /// The names of tools that no longer exist.
    removed: Vec<String>,
    changed: Vec<ChangedTool>,
}

#[derive(Debug, PartialEq, Eq)]
struct ChangedTool {
    before: String,
    after: String,
    /// The part of the spec that changed, if the signatures are equal.
    part: Option<&'static str>,
}

impl ToolChanges {
    /// Compares the tools before and after a restart.
    pub(crate) fn diff(before: &[ToolSpec], after: &[ToolSpec]) -> Self {
        let by_name = |specs: &[ToolSpec]| -> BTreeMap<String, ToolSpec> {
            specs.iter().map(|spec| (spec.name.clone(), spec.clone())).collect()
        };
        let (before, after) = (by_name(before), by_name(after));
        let mut changes = Self::default();
        for (name, spec) in &after {
            match before.get(name) {
                None => changes.added.push(signature(spec)),
                Some(old) if old != spec => {
                    let (before, after) = (signature(old), signature(spec));
                    let part = (before == after).then_some(if old.description == spec.description {
                        "the schema"
                    } else {
                        "the description"
                    });
                    changes.changed.push(ChangedTool { before, after, part });
                }
                Some(_) => {}
            }
        }
        changes.removed = before.into_keys().filter(|name| !after.contains_key(name)).collect();
        changes
    }

    pub(crate) fn to_json(&self) -> Value {
        let changed = self.changed.iter().map(|tool| json!({"before": tool.before, "after": tool.after}));
        json!({"added": self.added, "removed": self.removed, "changed": changed.collect::<Vec<_>>()})
    }
}

/// One line per change, each with a newline before it.
impl fmt::Display for ToolChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tool in &self.added {
            write!(f, "\n  added    {}", escape(tool))?;
        }
        for ChangedTool { before, after, part } in &self.changed {
            match part {
                Some(part) => write!(f, "\n  changed  {part} of {}", escape(after))?,
                None => write!(f, "\n  changed  {} -> {}", escape(before), escape(after))?,
            }
        }
        for tool in &self.removed {
            write!(f, "\n  removed  {}", escape(tool))?;
        }
        Ok(())
    }
}

/// The name and the parameters of a tool, such as `add(a: integer, b?: integer)`.
fn signature(spec: &ToolSpec) -> String {
    format!("{}({})", spec.name, parameters_of(spec))
}

/// The parameters of a tool, such as `a: integer, b?: integer`. `**` stands for other arguments.
pub(crate) fn parameters_of(spec: &ToolSpec) -> String {
    let parameters = spec.parameters.iter().map(|parameter| {
        let optional = if parameter.required { "" } else { "?" };
        format!("{}{optional}: {}", parameter.name, parameter.type_name)
    });
    let others = (!spec.closed).then(|| "**".to_owned());
    let parameters: Vec<String> = parameters.chain(others).collect();
    parameters.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_listed_with_their_signatures() {
        let spec = |name: &str| ToolSpec::new(name).parameter("a", "integer", "").deny_unknown_arguments();
        let before = [spec("same"), spec("old"), spec("grown"), spec("described")];
        let after = [
            spec("same"),
            spec("new"),
            spec("grown").optional_parameter("b", "any", ""),
            spec("described").description("x"),
        ];
        let changes = ToolChanges::diff(&before, &after);
        let expected = "\n  added    new(a: integer)\n  changed  the description of described(a: integer)\
                        \n  changed  grown(a: integer) -> grown(a: integer, b?: any)\n  removed  old";
        assert_eq!(changes.to_string(), expected);
        assert_eq!(changes.to_json()["added"][0], "new(a: integer)");
        assert_eq!(ToolChanges::diff(&before, &before), ToolChanges::default());
    }
}
