//! Model check of the generation, by which readers detect a stale list of tools.

use std::{convert::Infallible, sync::Arc};

use loom::thread;

use super::*;

fn snapshot(registry: &Registry) -> (u64, usize) {
    // Reads the generation before the tools, as the documentation of `generation` requires.
    (registry.generation(), registry.tools().len())
}

#[test]
fn loom_a_cached_list_of_the_current_generation_is_complete() {
    loom::model(|| {
        let registry = Arc::new(Registry::new());
        let host = Arc::clone(&registry);
        let registers = thread::spawn(move || {
            let tool = FnTool::typed("add", |(): ()| async { Ok::<_, Infallible>(()) });
            host.register_host_tool(tool).unwrap();
        });
        let (cached, tools) = snapshot(&registry);
        registers.join().unwrap();
        let (current, all) = snapshot(&registry);
        assert!(cached != current || tools == all, "a reader keeps a list without the new tool");
    });
}
