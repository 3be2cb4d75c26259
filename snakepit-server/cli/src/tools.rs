//! `snakepit tools`, which prints a table of all tools, or the description and the JSON Schemas of one tool.

use std::fmt::Write as _;

use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_server::{Reason, ToolSpec};
use snakepit_wire::spec_from_wire;
use snakepit_worker::escaping::escape;

use crate::{Failure, list, output, suggestion, tool_changes::parameters_of};

#[derive(Debug, clap::Args)]
pub(crate) struct ToolArgs {
    /// Describe this tool, with the JSON Schemas of its arguments and results.
    name: Option<String>,

    #[command(flatten)]
    pub(crate) list: list::Args,
}

/// A tool and its provider: the name of a worker pool, or the host.
struct ListedTool {
    spec: ToolSpec,
    provider: String,
}

pub(crate) async fn run(ToolArgs { name, list: args }: ToolArgs) -> Result<(), Failure> {
    let listed = args.server.connect().await?.list_tools(pb::ListToolsRequest {}).await;
    let tools = listed.map_err(|status| args.rejection(status))?.into_inner().tools.into_iter().map(|tool| {
        let pb::ToolInfo { spec, provider, .. } = tool;
        ListedTool { spec: spec_from_wire(spec.unwrap_or_default()), provider }
    });
    let tools: Vec<ListedTool> = tools.collect();
    let Some(name) = name else {
        let rows = tools.iter().map(|tool| (tool.row(), tool.to_json())).collect();
        return args.print(&["TOOL", "KIND", "PROVIDER", "PARAMETERS", "DESCRIPTION"], rows);
    };
    let Some(tool) = tools.iter().find(|tool| tool.spec.name == name) else {
        let near = suggestion::closest(&name, tools.iter().map(|tool| tool.spec.name.as_str()));
        let advice = near.map_or_else(
            || "see `snakepit tools`".to_owned(),
            |near| format!("did you mean `{}`?", escape(near)),
        );
        return Err(Failure::new(Reason::ToolNotFound, format!("tool `{name}` not found; {advice}")));
    };
    if args.json { output::print_json(&tool.to_json()) } else { output::print(tool.describe().trim_end()) }
}

impl ListedTool {
    const fn kind(&self) -> &'static str {
        if self.spec.supports_streaming { "stream" } else { "call" }
    }

    fn row(&self) -> Vec<String> {
        let parameters = parameters_of(&self.spec);
        let description = self.spec.description.lines().next().unwrap_or_default().to_owned();
        vec![self.spec.name.clone(), self.kind().to_owned(), self.provider.clone(), parameters, description]
    }

    fn to_json(&self) -> Value {
        let spec = &self.spec;
        let parameters = spec.parameters.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "type": parameter.type_name,
                "required": parameter.required,
                "description": parameter.description,
            })
        });
        json!({
            "name": spec.name,
            "kind": self.kind(),
            "provider": self.provider,
            "description": spec.description,
            "parameters": parameters.collect::<Vec<_>>(),
            "takes_others": !spec.closed,
            "input_schema": spec.input_schema(),
            "result_schema": spec.result_schema(),
            "item_schema": spec.item_schema(),
        })
    }

    /// Returns the description as text for people.
    fn describe(&self) -> String {
        let Self { spec, provider } = self;
        let mut text = format!("{} ({}, {})\n", escape(&spec.name), self.kind(), escape(provider));
        for line in spec.description.lines() {
            let _ = writeln!(text, "{}", escape(line));
        }
        let schemas = [
            ("Arguments", Some(spec.input_schema())),
            ("Result", spec.result_schema()),
            ("Items of the stream", spec.item_schema()),
        ];
        for (title, schema) in schemas {
            if let Some(schema) = schema {
                // JSON escapes control characters.
                let _ = writeln!(text, "\n{title}:\n{schema:#}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_contains_the_text_and_the_schemas() {
        let mut spec = ToolSpec::new("add")
            .description("Adds.\n\nReturns:\n    The \u{1b}sum.")
            .parameter("a", "integer", "")
            .deny_unknown_arguments();
        spec.metadata.insert("snakepit.result_schema".into(), r#"{"type":"integer"}"#.into());
        let text = ListedTool { spec, provider: "default".into() }.describe();
        for part in [
            "add (call, default)\nAdds.\n\nReturns:\n    The \\u{1b}sum.\n\nArguments:\n{\n",
            "\"a\": {\n      \"type\": \"integer\"",
            "Result:\n{\n  \"type\": \"integer\"\n}\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("Items of the stream"));
    }
}
