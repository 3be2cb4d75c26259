//! A host tool with its own handler: it streams the lines of a text and counts its calls.
//!
//! Run it with `cargo run -p snakepit-server --example custom_tool_handler`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use snakepit_server::{
    Chunk, Error, Snakepit, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec, testing::InProcessWorkers,
};

#[derive(Deserialize)]
struct Filter {
    word: String,
}

/// Streams the lines that contain a word.
#[derive(Debug)]
struct Lines {
    text: &'static str,
    calls: AtomicUsize,
}

#[async_trait::async_trait]
impl ToolHandler for Lines {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Filter { word } = call.parse_arguments()?;
        let lines = self.text.lines().filter(move |line| line.contains(&word));
        let chunks = lines.map(|line| Ok(Chunk { data: json!(line).to_string().into(), ..Chunk::default() }));
        Ok(ToolReply::stream(Box::pin(stream::iter(chunks))))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let lines = Arc::new(Lines { text: "red apple\ngreen pear\nred cherry", calls: AtomicUsize::new(0) });
    let mut spec =
        ToolSpec::new("lines").description("Lines with a word").parameter("word", "string", "The word");
    spec.supports_streaming = true;

    let snakepit = Snakepit::builder()
        .launcher(Arc::new(InProcessWorkers::new()))
        .workers(1)
        .tool(spec, lines.clone())
        .start()
        .await?;

    let found = snakepit.execute_stream::<String>("lines", json!({"word": "red"})).await?;
    let found: Vec<String> = found.try_collect().await?;
    println!("{found:?}");
    assert_eq!(found, ["red apple", "red cherry"]);

    let rejected = snakepit.execute_stream::<String>("lines", json!({"word": 1})).await;
    assert!(rejected.is_err() && lines.calls.load(Ordering::Relaxed) == 1);

    snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
