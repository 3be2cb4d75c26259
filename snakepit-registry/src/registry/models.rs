//! Model check of the revision, which shows readers that their list of tools is stale.

use std::{convert::Infallible, sync::Arc};

use loom::thread;

use super::*;

fn snapshot(registry: &Registry) -> (u64, usize) {
    // Reads the revision before the tools, as the documentation of `revision` requires.
    (registry.revision(), registry.tools().len())
}

#[test]
fn loom_a_cached_list_of_the_current_revision_is_complete() {
    loom::model(|| {
        let registry = Arc::new(Registry::new());
        let host = Arc::clone(&registry);
        let registration = thread::spawn(move || {
            let tool = FnTool::typed("add", |(): ()| async { Ok::<_, Infallible>(()) });
            host.register_host_tool(tool).unwrap();
        });
        let (cached, tools) = snapshot(&registry);
        registration.join().unwrap();
        let (current, all) = snapshot(&registry);
        assert!(cached != current || tools == all, "a reader keeps a list without the new tool");
    });
}
