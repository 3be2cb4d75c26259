//! Helpers for tests of remote tools.

use std::sync::Arc;

use serde_json::Value;

use super::{Announcer, Registry};
use crate::{FnTool, ToolHandler, ToolSpec};

/// Creates the handler of a worker.
pub(super) fn handler() -> Arc<dyn ToolHandler> {
    Arc::new(FnTool::typed("host", |_: Value| async { Ok::<_, String>(()) }))
}

/// Creates a worker, which is alive until the first value is dropped.
pub(super) fn worker(id: &str) -> (Arc<()>, Announcer) {
    let liveness = Arc::new(());
    let worker = Announcer::new(id.into(), &liveness);
    (liveness, worker)
}

pub(super) fn specs_named(names: &[&str]) -> Vec<ToolSpec> {
    names.iter().map(|name| ToolSpec::new(*name)).collect()
}

/// The names of all tools in the registry.
pub(super) fn names(registry: &Registry) -> Vec<String> {
    registry.tools().into_iter().map(|(spec, _)| spec.name).collect()
}
