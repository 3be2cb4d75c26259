//! Tools that workers announce: who may redefine one, how many there may be, and when one is forgotten.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, Weak},
};

use super::{Registration, Registry, RegistryError, ResolvedTool, check_name};
use crate::{ToolHandler, ToolSpec};

/// The most tools that one provider may announce: workers may say anything at any time.
const MAX_REMOTE_TOOLS: usize = 10_000;

/// The largest spec that a worker may announce, in bytes of memory.
const MAX_SPEC_BYTES: usize = 64 * 1024;
/// What all specs that one provider announced may take together, in bytes of memory. Every listing of tools carries them
/// all, and must fit into a message that any client accepts.
const MAX_PROVIDER_BYTES: usize = 2 * 1024 * 1024;

/// A worker that announces tools.
#[derive(Debug, Clone)]
pub struct Announcer {
    worker: Arc<str>,
    life: Weak<()>,
}

impl Announcer {
    /// A worker by its id, which lives as long as `life` does.
    #[must_use]
    pub fn new(worker: Arc<str>, life: &Arc<()>) -> Self {
        Self { worker, life: Arc::downgrade(life) }
    }

    /// Whether the worker lives.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.life.strong_count() > 0
    }
}

impl Registry {
    /// Adds tools that a worker of a pool announced, all or none. Every worker announces the same ones, so a name the pool has
    /// already is no error; a name that no live worker announced takes the new spec.
    ///
    /// Names whose workers have all ended stay, because calls of them wait for the workers that replace those, until a worker
    /// of the pool announces its tools and they are not among them.
    ///
    /// # Errors
    /// When a name is odd, or taken by the host or another pool, or by another live worker with another spec, or when there are
    /// too many.
    pub fn register_remote(
        &self,
        provider: &str,
        announcer: &Announcer,
        handler: &Arc<dyn ToolHandler>,
        specs: Vec<ToolSpec>,
    ) -> Result<Vec<Registration>, RegistryError> {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        let mut announcers = self.announcers.lock().unwrap_or_else(PoisonError::into_inner);
        for spec in &specs {
            check_name(&spec.name)?;
            if let Some(taken) = tools.get(spec.name.as_str()).filter(|tool| tool.provider != provider) {
                return Err(RegistryError::NameTaken {
                    name: spec.name.clone(),
                    owner: taken.provider.clone(),
                });
            }
        }
        // The last spec of a name counts.
        let announced: BTreeMap<&str, &ToolSpec> =
            specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let known = |name: &str| tools.get(name).and_then(|tool| tool.spec.as_ref());
        let is_news = |name: &str, spec: &ToolSpec| known(name) != Some(spec);
        let is_changed = announced.iter().any(|(name, spec)| is_news(name, spec));
        // Looked at only when something changes: workers that register with every call bring nothing new.
        if is_changed {
            for (name, _) in announced.iter().filter(|(name, spec)| is_news(name, spec)) {
                let mut others = announcers.get(*name).into_iter().flatten();
                if let Some(other) = others.find(|other| other.lives() && other.worker != announcer.worker) {
                    return Err(RegistryError::DuplicateTool {
                        name: (*name).to_owned(),
                        worker: other.worker.to_string(),
                    });
                }
            }
            let is_kept = |name: &str, tool: &ResolvedTool| {
                tool.provider == provider
                    && !announced.contains_key(name)
                    && announcers.get(name).is_some_and(|announcers| announcers.iter().any(Announcer::lives))
            };
            check_room(provider, &announced, tools.iter().filter(|(name, tool)| is_kept(name, tool)))?;
        }
        let announced_before = |name: &str| {
            let workers = announcers.get(name).into_iter().flatten();
            workers.into_iter().any(|worker| worker.worker == announcer.worker && worker.lives())
        };
        if !is_changed && specs.iter().all(|spec| announced_before(&spec.name)) {
            return Ok(vec![Registration::Unchanged; specs.len()]);
        }
        self.changed();
        // Calls of these would wait for workers that will not come.
        announcers.retain(|name, announcers| {
            let is_served = announced.contains_key(&**name) || announcers.iter().any(Announcer::lives);
            let is_ours = tools.get(name).is_some_and(|tool| tool.provider == provider);
            if is_ours && !is_served {
                tools.remove(name);
            }
            is_served || !is_ours
        });
        let mut register = |spec: ToolSpec| {
            let outcome = match tools.get(spec.name.as_str()) {
                Some(tool) if tool.spec.as_ref() == Some(&spec) => Registration::Unchanged,
                Some(_) => Registration::Replaced,
                None => Registration::New,
            };
            let workers = match announcers.get_mut(spec.name.as_str()) {
                Some(workers) => workers,
                None => announcers.entry(Arc::from(spec.name.as_str())).or_default(),
            };
            if !workers.iter().any(|worker| worker.worker == announcer.worker && worker.lives()) {
                workers.retain(Announcer::lives);
                workers.push(announcer.clone());
            }
            if outcome != Registration::Unchanged {
                let name = Arc::from(spec.name.as_str());
                tools.insert(name, Arc::new(ResolvedTool::new(Some(spec), provider, Arc::clone(handler))));
            }
            outcome
        };
        Ok(specs.into_iter().map(&mut register).collect())
    }
}

/// Whether a provider may announce these specs beside those of its tools that it keeps.
fn check_room<'a>(
    provider: &str,
    announced: &BTreeMap<&str, &ToolSpec>,
    kept: impl Iterator<Item = (&'a Arc<str>, &'a Arc<ResolvedTool>)>,
) -> Result<(), RegistryError> {
    let (mut count, mut size) = (announced.len(), 0);
    for (name, spec) in announced {
        let bytes = spec.size();
        if bytes > MAX_SPEC_BYTES {
            let name = (*name).to_owned();
            return Err(RegistryError::SpecTooLarge { name, size: bytes, limit: MAX_SPEC_BYTES });
        }
        size += bytes;
    }
    for (_, tool) in kept {
        count += 1;
        size += tool.spec.as_ref().map_or(0, ToolSpec::size);
    }
    let provider = || provider.to_owned();
    if count > MAX_REMOTE_TOOLS {
        return Err(RegistryError::TooManyTools { provider: provider(), limit: MAX_REMOTE_TOOLS });
    }
    if size > MAX_PROVIDER_BYTES {
        return Err(RegistryError::SpecsTooLarge { provider: provider(), size, limit: MAX_PROVIDER_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::FnTool;

    fn handler() -> Arc<dyn ToolHandler> {
        Arc::new(FnTool::typed("host", |_: Value| async { Ok::<_, String>(()) }))
    }

    fn worker(id: &str) -> (Arc<()>, Announcer) {
        let life = Arc::new(());
        let worker = Announcer::new(id.into(), &life);
        (life, worker)
    }

    fn named(names: &[&str]) -> Vec<ToolSpec> {
        names.iter().map(|name| ToolSpec::new(*name)).collect()
    }

    fn names(registry: &Registry) -> Vec<String> {
        registry.tools().into_iter().map(|(spec, _)| spec.name).collect()
    }

    #[test]
    fn a_live_worker_keeps_its_description() {
        let (registry, handler) = (Registry::new(), handler());
        let ((life, first), (_life, second)) = (worker("first"), worker("second"));
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        let other = || vec![ToolSpec::new("add").parameter("password", "string", ""), ToolSpec::new("more")];
        register(&first, named(&["add"])).unwrap();
        let refused = register(&second, other()).unwrap_err();
        assert_eq!(refused, RegistryError::DuplicateTool { name: "add".into(), worker: "first".into() });
        // Workers of the original go on when they read this.
        assert!(refused.to_string().starts_with("duplicate_tool"), "{refused}");
        assert_eq!(registry.tools()[0].0, ToolSpec::new("add"));
        assert_eq!(names(&registry), ["add"], "all or none");
        // The same description is no conflict, and its own a worker may change, unless another serves it too.
        assert_eq!(register(&second, named(&["add"])).unwrap(), [Registration::Unchanged]);
        register(&first, other()).unwrap_err();
        drop(life);
        assert_eq!(register(&second, other()).unwrap(), [Registration::Replaced, Registration::New]);
    }

    #[test]
    fn tools_of_ended_workers_stay_until_their_replacement_has_others() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        let (life, first) = worker("first");
        register(&first, named(&["kept", "dropped"])).unwrap();
        let before = registry.generation();
        register(&first, named(&["added"])).unwrap();
        let after = registry.generation();
        register(&first, named(&["added"])).unwrap();
        assert!(before < after && registry.generation() == after, "nothing new the second time");
        assert_eq!(names(&registry), ["added", "dropped", "kept"], "a worker may register bit by bit");
        drop(life);
        registry.resolve("dropped").expect("calls of it wait for the next worker");
        let (_life, second) = worker("second");
        register(&second, named(&["kept"])).unwrap();
        assert_eq!(names(&registry), ["kept"]);
        registry.resolve("dropped").unwrap_err();
    }

    #[test]
    fn workers_that_come_and_go_never_fill_the_registry() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        for generation in 0..3 {
            let (_life, worker) = worker(&format!("w-{generation}"));
            let specs = (0..MAX_REMOTE_TOOLS).map(|n| ToolSpec::new(format!("{generation}-{n}"))).collect();
            register(&worker, specs).unwrap();
            assert_eq!(registry.len(), MAX_REMOTE_TOOLS);
        }
        registry.register_host_tool(FnTool::typed("mine", |_: Value| async { Ok::<_, String>(()) })).unwrap();
        let (_life, worker) = worker("last");
        register(&worker, named(&["one"])).unwrap();
        assert_eq!(names(&registry), ["mine", "one"], "tools of the host stay");
        assert_eq!(registry.announcers.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_provider_may_announce_only_so_many_tools() {
        let (registry, handler) = (Registry::new(), handler());
        let (_life, worker) = worker("w");
        let specs = |numbers: std::ops::Range<usize>| -> Vec<ToolSpec> {
            numbers.map(|n| ToolSpec { name: format!("tool-{n}"), ..ToolSpec::default() }).collect()
        };
        let full = specs(0..MAX_REMOTE_TOOLS);
        registry.register_remote("pool", &worker, &handler, full.clone()).unwrap();
        let refused =
            registry.register_remote("pool", &worker, &handler, specs(0..MAX_REMOTE_TOOLS + 1)).unwrap_err();
        assert_eq!(refused, RegistryError::TooManyTools { provider: "pool".into(), limit: MAX_REMOTE_TOOLS });
        assert_eq!(registry.len(), MAX_REMOTE_TOOLS, "all or none");
        // What is known may be announced again, and others have room of their own.
        registry.register_remote("pool", &worker, &handler, full).unwrap();
        registry
            .register_remote("other", &worker, &handler, specs(MAX_REMOTE_TOOLS..MAX_REMOTE_TOOLS + 1))
            .unwrap();
    }

    #[test]
    fn what_tools_say_about_themselves_is_bounded() {
        let (registry, handler) = (Registry::new(), handler());
        let (_life, worker) = worker("w");
        let spec = |name: &str, bytes: usize| ToolSpec::new(name).description("x".repeat(bytes));
        let register = |specs: Vec<ToolSpec>| registry.register_remote("pool", &worker, &handler, specs);
        let large = register(vec![spec("a", MAX_SPEC_BYTES)]).unwrap_err();
        assert!(matches!(&large, RegistryError::SpecTooLarge { name, .. } if name == "a"), "{large}");
        let parameter = spec("a", 1).parameter("p", "string", "x".repeat(MAX_SPEC_BYTES));
        assert!(matches!(register(vec![parameter]).unwrap_err(), RegistryError::SpecTooLarge { .. }));
        let specs = |bytes: usize| (0..40).map(|n| spec(&format!("tool-{n}"), bytes)).collect::<Vec<_>>();
        register(specs(50_000)).unwrap();
        let full = register(vec![spec("one", 60_000), spec("two", 60_000)]).unwrap_err();
        assert!(matches!(full, RegistryError::SpecsTooLarge { .. }), "{full}");
        assert_eq!(registry.len(), 40, "all or none");
        // What is replaced does not count.
        register(specs(51_000)).unwrap();
        register(specs(10)).unwrap();
        register(vec![spec("one", 60_000), spec("two", 60_000)]).unwrap();
    }
}
