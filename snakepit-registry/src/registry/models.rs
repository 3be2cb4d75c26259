//! Model checks of the revision, which shows readers that their list of tools is stale, and of deferred announcements.

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

/// A registry with the tool `add` of a worker, that worker, and the handler.
fn announced() -> (Arc<Registry>, Arc<()>, Arc<dyn ToolHandler>) {
    let registry = Arc::new(Registry::new());
    let handler: Arc<dyn ToolHandler> =
        Arc::new(FnTool::typed("add", |(): ()| async { Ok::<_, Infallible>(()) }));
    let liveness = Arc::new(());
    let first = Announcer::new("first".into(), &liveness);
    registry.register_remote("pool", &first, &handler, vec![ToolSpec::new("add")]).unwrap();
    (registry, liveness, handler)
}

fn edited() -> Vec<ToolSpec> {
    vec![ToolSpec::new("add").description("edited"), ToolSpec::new("more")]
}

#[test]
fn loom_a_cached_list_of_the_current_revision_has_the_deferred_tools() {
    loom::model(|| {
        let (registry, first, handler) = announced();
        let second = Arc::new(());
        let announcer = Announcer::new("second".into(), &second);
        registry.register_remote_or_defer("pool", &announcer, &handler, edited()).unwrap_err();
        let reader = Arc::clone(&registry);
        let end = thread::spawn(move || {
            drop(first);
            reader.resolve("add").unwrap();
        });
        let (cached, tools) = snapshot(&registry);
        end.join().unwrap();
        let (current, all) = snapshot(&registry);
        assert_eq!(all, 2);
        assert!(cached != current || tools == all, "a reader keeps a list without the new tool");
    });
}

#[test]
fn loom_an_announcement_is_not_lost_if_its_blocker_ends_meanwhile() {
    loom::model(|| {
        let (registry, first, handler) = announced();
        let second = Arc::new(());
        let announcer = Announcer::new("second".into(), &second);
        let (other, other_handler) = (Arc::clone(&registry), Arc::clone(&handler));
        let end = thread::spawn(move || {
            drop(first);
            // Removes the ended worker.
            let third = Arc::new(());
            let announcer = Announcer::new("third".into(), &third);
            let specs = vec![ToolSpec::new("other")];
            other.register_remote("pool", &announcer, &other_handler, specs).unwrap();
        });
        let _ = registry.register_remote_or_defer("pool", &announcer, &handler, edited());
        end.join().unwrap();
        assert_eq!(registry.resolve("more").unwrap().provider, "pool");
    });
}
