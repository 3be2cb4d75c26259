//! Tools that workers announce: the rules for redefining them, their limits, and their removal.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Registration, Registry, RegistryError, ResolvedTool, check_name};
use crate::{ToolHandler, ToolSpec};

/// The maximum number of tools per provider. Bounds the memory that workers can occupy.
const MAX_REMOTE_TOOLS: usize = 10_000;
/// The maximum size of a spec, in bytes of memory.
const MAX_SPEC_BYTES: usize = 64 * 1024;
/// The maximum total size of the specs per provider, in bytes of memory. A listing contains all of them, and every client
/// must accept a message of its size.
const MAX_PROVIDER_BYTES: usize = 2 * 1024 * 1024;

/// A worker that announces tools.
#[derive(Debug, Clone)]
pub struct Announcer {
    pub(super) worker: Arc<str>,
    liveness: Weak<()>,
    /// Whether a restart has replaced the worker.
    is_retired: Arc<AtomicBool>,
}

impl Announcer {
    /// Creates an announcer with the id of a worker. The worker counts as alive until the last clone of `liveness` is dropped.
    #[must_use]
    pub fn new(worker: Arc<str>, liveness: &Arc<()>) -> Self {
        Self { worker, liveness: Arc::downgrade(liveness), is_retired: Arc::default() }
    }

    /// Whether the worker is alive, and no restart has replaced it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.liveness.strong_count() > 0 && !self.is_retired()
    }

    /// Treats the worker as ended, including in its clones. Its later announcements have no effect.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Whether a restart has replaced the worker. It may still finish calls.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// The id of the worker.
    pub(super) fn worker(&self) -> &str {
        &self.worker
    }
}

impl Registry {
    /// Adds the tools that a worker of a pool announced, all or none. Returns the outcome for each spec.
    ///
    /// All workers of a pool announce the same tools, so the pool may have them already. A new spec replaces an old one
    /// if no other live worker announced that tool.
    ///
    /// Announcements of a worker that a restart has [replaced](Self::retire_replaced_workers) have no effect.
    ///
    /// Tools whose workers have all exited remain registered, because their calls wait for the replacements of these
    /// workers. The next announcement by a worker of the pool removes them, unless it contains them.
    ///
    /// # Errors
    /// - [`RegistryError::InvalidName`]
    /// - [`RegistryError::NameTaken`] if the host or another pool has a tool with this name
    /// - [`RegistryError::DuplicateTool`] if another live worker announced the tool with another spec
    /// - [`RegistryError::TooManyTools`], [`RegistryError::SpecTooLarge`] or [`RegistryError::SpecsTooLarge`] beyond a limit
    pub fn register_remote(
        &self,
        provider: &str,
        announcer: &Announcer,
        handler: &Arc<dyn ToolHandler>,
        mut specs: Vec<ToolSpec>,
    ) -> Result<Vec<Registration>, RegistryError> {
        self.register_specs(provider, announcer, handler, &mut specs).map_err(|rejected| rejected.error)
    }

    /// Registers the specs, and takes them out of the vector. On an error, leaves them there.
    pub(super) fn register_specs(
        &self,
        provider: &str,
        announcer: &Announcer,
        handler: &Arc<dyn ToolHandler>,
        specs: &mut Vec<ToolSpec>,
    ) -> Result<Vec<Registration>, RejectedAnnouncement> {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        let mut announcers = self.announcers.lock().unwrap_or_else(PoisonError::into_inner);
        // Some workers announce their tools with every call, also with those that they finish after a restart.
        if announcer.is_retired() {
            return Ok(vec![Registration::Unchanged; specs.len()]);
        }
        for spec in &*specs {
            check_name(&spec.name)?;
            if let Some(existing) = tools.get(spec.name.as_str()).filter(|tool| tool.provider != provider) {
                let (name, owner) = (spec.name.clone(), existing.provider.clone());
                return Err(RegistryError::NameTaken { name, owner }.into());
            }
        }
        // The last spec with a name applies.
        let announced: BTreeMap<&str, &ToolSpec> =
            specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let current_spec = |name: &str| tools.get(name).and_then(|tool| tool.spec.as_ref());
        let is_changed = |name: &str, spec: &ToolSpec| current_spec(name) != Some(spec);
        let has_changes = announced.iter().any(|(name, spec)| is_changed(name, spec));
        // Skips the checks if nothing changes, because some workers register with every call.
        if has_changes {
            let old_worker = self.old_worker(provider, announcer);
            for (name, spec) in announced.iter().filter(|(name, spec)| is_changed(name, spec)) {
                let mut others = announcers.get(*name).into_iter().flatten();
                let other = others
                    .find(|other| other.is_alive() && other.worker != announcer.worker)
                    .or(old_worker.as_ref());
                if let Some(other) = other {
                    let change = current_spec(name).and_then(|current| current.change_to(spec));
                    let error = RegistryError::DuplicateTool {
                        name: (*name).to_owned(),
                        worker: other.worker.to_string(),
                        change: change.unwrap_or_else(|| "the tool is new".to_owned()),
                    };
                    return Err(RejectedAnnouncement { error, blocker: Some(other.clone()) });
                }
            }
            let remains = |name: &str, tool: &ResolvedTool| {
                tool.provider == provider
                    && !announced.contains_key(name)
                    && announcers
                        .get(name)
                        .is_some_and(|announcers| announcers.iter().any(Announcer::is_alive))
            };
            check_limits(provider, &announced, tools.iter().filter(|(name, tool)| remains(name, tool)))?;
        }
        let announced_before = |name: &str| {
            let workers = announcers.get(name).into_iter().flatten();
            workers.into_iter().any(|worker| worker.worker == announcer.worker && worker.is_alive())
        };
        if !has_changes && specs.iter().all(|spec| announced_before(&spec.name)) {
            return Ok(vec![Registration::Unchanged; specs.len()]);
        }
        self.increment_revision();
        // Removes tools that no worker will serve. Their calls would wait until their deadlines.
        announcers.retain(|name, announcers| {
            let is_served = announced.contains_key(&**name) || announcers.iter().any(Announcer::is_alive);
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
            if !workers.iter().any(|worker| worker.worker == announcer.worker && worker.is_alive()) {
                workers.retain(Announcer::is_alive);
                workers.push(announcer.clone());
            }
            if outcome != Registration::Unchanged {
                let name = Arc::from(spec.name.as_str());
                tools.insert(name, Arc::new(ResolvedTool::new(Some(spec), provider, Arc::clone(handler))));
            }
            outcome
        };
        Ok(std::mem::take(specs).into_iter().map(&mut register).collect())
    }
}

/// The error of an announcement.
pub(super) struct RejectedAnnouncement {
    pub(super) error: RegistryError,
    /// A live worker with other specs, if the announcement can wait until it has ended.
    pub(super) blocker: Option<Announcer>,
}

impl From<RegistryError> for RejectedAnnouncement {
    fn from(error: RegistryError) -> Self {
        Self { error, blocker: None }
    }
}

/// Checks the limits of a provider. After the registration, it has the specs `announced` and the tools `remaining`.
fn check_limits<'a>(
    provider: &str,
    announced: &BTreeMap<&str, &ToolSpec>,
    remaining: impl Iterator<Item = (&'a Arc<str>, &'a Arc<ResolvedTool>)>,
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
    for (_, tool) in remaining {
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
    use crate::{
        FnTool,
        registry::testing::{handler, names, specs_named, worker},
    };

    #[test]
    fn a_spec_that_another_live_worker_serves_is_not_replaced() {
        let (registry, handler) = (Registry::new(), handler());
        let ((first_liveness, first), (_liveness, second)) = (worker("first"), worker("second"));
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        let other = || vec![ToolSpec::new("add").parameter("password", "string", ""), ToolSpec::new("more")];
        register(&first, specs_named(&["add"])).unwrap();
        let rejected = register(&second, other()).unwrap_err();
        let change = "the parameter `password` is new".to_owned();
        let expected = RegistryError::DuplicateTool { name: "add".into(), worker: "first".into(), change };
        assert_eq!(rejected, expected);
        // Workers of the original Snakepit search for this word.
        assert!(rejected.to_string().starts_with("duplicate_tool"), "{rejected}");
        assert_eq!(registry.tools()[0].0, ToolSpec::new("add"));
        assert_eq!(names(&registry), ["add"], "all or none");
        // The same spec is not a conflict. A worker may change its own spec unless another worker serves the tool.
        assert_eq!(register(&second, specs_named(&["add"])).unwrap(), [Registration::Unchanged]);
        register(&first, other()).unwrap_err();
        drop(first_liveness);
        assert_eq!(register(&second, other()).unwrap(), [Registration::Replaced, Registration::New]);
    }

    #[test]
    fn tools_of_exited_workers_remain_until_a_replacement_registers_without_them() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        let (first_liveness, first) = worker("first");
        register(&first, specs_named(&["kept", "dropped"])).unwrap();
        let before = registry.revision();
        register(&first, specs_named(&["added"])).unwrap();
        let after = registry.revision();
        register(&first, specs_named(&["added"])).unwrap();
        assert!(before < after && registry.revision() == after, "the second registration changes nothing");
        assert_eq!(names(&registry), ["added", "dropped", "kept"], "a worker may register tools one by one");
        drop(first_liveness);
        registry.resolve("dropped").expect("its calls wait for the next worker");
        let (_liveness, second) = worker("second");
        register(&second, specs_named(&["kept"])).unwrap();
        assert_eq!(names(&registry), ["kept"]);
        registry.resolve("dropped").unwrap_err();
    }

    #[test]
    fn the_newest_specs_apply_once_the_last_worker_with_the_old_ones_has_ended() {
        let (registry, handler) = (Registry::new(), handler());
        let announce = |worker: &Announcer, specs| {
            registry.register_remote_or_defer("pool", worker, &handler, specs).map(drop)
        };
        let edited = |parameter: &str| vec![ToolSpec::new("add").parameter(parameter, "string", "")];
        let parameters = || registry.resolve("add").unwrap().spec.as_ref().unwrap().parameters.len();
        let (first_liveness, first) = worker("first");
        let (second_liveness, second) = worker("second");
        announce(&first, specs_named(&["add"])).unwrap();
        announce(&second, specs_named(&["add"])).unwrap();
        let (third_liveness, third) = worker("third");
        let (_fourth_liveness, fourth) = worker("fourth");
        let (fifth_liveness, fifth) = worker("fifth");
        announce(&third, edited("a")).unwrap_err();
        announce(&fourth, edited("b")).unwrap_err();
        announce(&fifth, edited("b")).unwrap_err();
        assert_eq!(parameters(), 0);
        drop(first_liveness);
        assert_eq!(parameters(), 0, "the second worker has the old code");
        let before = registry.revision();
        drop(second_liveness);
        let spec = registry.tools().remove(0).0;
        assert_eq!(spec.parameters[0].name, "b", "the newest code");
        assert!(registry.revision() > before);
        // The third worker waits for the others, and is forgotten when it ends.
        assert_eq!(registry.deferred.lock().unwrap().len(), 1);
        drop(third_liveness);
        registry.resolve("add").unwrap();
        assert_eq!(registry.deferred.lock().unwrap().len(), 0);
        // The fourth and fifth worker both serve the tool.
        let (_liveness, sixth) = worker("sixth");
        drop(fifth_liveness);
        announce(&sixth, edited("c")).unwrap_err();
    }

    #[test]
    fn the_revision_changes_when_a_deferred_announcement_takes_effect() {
        let (registry, handler) = (Registry::new(), handler());
        let announce = |worker: &Announcer, specs| {
            registry.register_remote_or_defer("pool", worker, &handler, specs).map(drop)
        };
        let ((first_liveness, first), (_liveness, second)) = (worker("first"), worker("second"));
        announce(&first, specs_named(&["add"])).unwrap();
        announce(&second, vec![ToolSpec::new("add").description("edited")]).unwrap_err();
        let before = registry.revision();
        drop(first_liveness);
        assert!(registry.revision() > before, "a cached list is stale, although no call has resolved a tool");
    }

    #[test]
    fn deferred_announcements_of_ended_workers_are_removed_by_the_next_one() {
        let (registry, handler) = (Registry::new(), handler());
        let (_first_liveness, first) = worker("first");
        let mut edited = vec![ToolSpec::new("add").description("edited")];
        let announce = |worker: &Announcer, specs| {
            registry.register_remote_or_defer("pool", worker, &handler, specs).map(drop)
        };
        announce(&first, specs_named(&["add"])).unwrap();
        for round in 0..5 {
            let (_liveness, crashing) = worker(&format!("w-{round}"));
            announce(&crashing, edited.clone()).unwrap_err();
        }
        assert_eq!(registry.deferred.lock().unwrap().len(), 1);
        // The last announcement of a worker replaces its earlier one.
        let (_liveness, second) = worker("second");
        announce(&second, edited.clone()).unwrap_err();
        edited[0].description = "edited again".to_owned();
        announce(&second, edited.clone()).unwrap_err();
        let deferred = registry.deferred.lock().unwrap();
        assert_eq!((deferred.len(), &deferred[0].specs), (1, &edited));
    }

    #[test]
    fn replaced_workers_do_not_fill_the_registry() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| registry.register_remote("pool", worker, &handler, specs);
        for round in 0..3 {
            let (_liveness, worker) = worker(&format!("w-{round}"));
            let specs = (0..MAX_REMOTE_TOOLS).map(|n| ToolSpec::new(format!("{round}-{n}"))).collect();
            register(&worker, specs).unwrap();
            assert_eq!(registry.len(), MAX_REMOTE_TOOLS);
        }
        registry.register_host_tool(FnTool::typed("mine", |_: Value| async { Ok::<_, String>(()) })).unwrap();
        let (_liveness, worker) = worker("last");
        register(&worker, specs_named(&["one"])).unwrap();
        assert_eq!(names(&registry), ["mine", "one"], "host tools remain");
        assert_eq!(registry.announcers.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_tools_of_a_provider_are_limited() {
        let (registry, handler) = (Registry::new(), handler());
        let (_liveness, worker) = worker("w");
        let specs = |numbers: std::ops::Range<usize>| -> Vec<ToolSpec> {
            numbers.map(|n| ToolSpec { name: format!("tool-{n}"), ..ToolSpec::default() }).collect()
        };
        let full = specs(0..MAX_REMOTE_TOOLS);
        registry.register_remote("pool", &worker, &handler, full.clone()).unwrap();
        let rejected =
            registry.register_remote("pool", &worker, &handler, specs(0..MAX_REMOTE_TOOLS + 1)).unwrap_err();
        assert_eq!(
            rejected,
            RegistryError::TooManyTools { provider: "pool".into(), limit: MAX_REMOTE_TOOLS }
        );
        assert_eq!(registry.len(), MAX_REMOTE_TOOLS, "all or none");
        // Known tools may be announced again. Each provider has its own limit.
        registry.register_remote("pool", &worker, &handler, full).unwrap();
        registry
            .register_remote("other", &worker, &handler, specs(MAX_REMOTE_TOOLS..MAX_REMOTE_TOOLS + 1))
            .unwrap();
    }

    #[test]
    fn the_size_of_specs_is_limited() {
        let (registry, handler) = (Registry::new(), handler());
        let (_liveness, worker) = worker("w");
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
        // Replaced specs do not count.
        register(specs(51_000)).unwrap();
        register(specs(10)).unwrap();
        register(vec![spec("one", 60_000), spec("two", 60_000)]).unwrap();
    }
}
