//! Model check of the generation, which tells readers whether their cached list of tools is current.

use std::{convert::Infallible, sync::Arc};

use loom::thread;

use super::*;

fn snapshot(registry: &Registry) -> (u64, usize) {
    // The generation comes first, as the documentation of `generation` requires.
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
