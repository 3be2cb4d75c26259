//! Compares a backend with the model under sequential operations.

use std::fmt;

use proptest::{collection::vec, prelude::*};
use snakepit_session::{SessionBackend, SessionLimits};

use super::{
    generate,
    operation::{Action, Operation, Output, without_problems},
    state::Model,
    watching::WatchProgress,
};

/// A step of a test.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Run(Operation),
    /// Reads events from a watch.
    Read {
        watch: usize,
        max_events: usize,
    },
    /// Drops a watch.
    Drop {
        watch: usize,
    },
}

/// Steps, which a failing test prints line by line.
#[derive(Clone)]
pub(super) struct Steps(Vec<Step>);

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "\n{step:?}"))
    }
}

pub(super) fn case() -> impl Strategy<Value = (SessionLimits, Steps)> {
    let step = prop_oneof![
        12 => generate::operation().prop_map(Step::Run),
        1 => (0_usize..4, 1_usize..4).prop_map(|(watch, max_events)| Step::Read { watch, max_events }),
        1 => (0_usize..4).prop_map(|watch| Step::Drop { watch }),
    ];
    let first =
        generate::register().prop_map(|action| Step::Run(Operation { session: generate::session(), action }));
    let steps = (vec(first, 0..4), vec(step, 1..60)).prop_map(|(first, rest)| Steps([first, rest].concat()));
    (generate::limits(), steps)
}

/// Runs the steps and compares everything with the model.
pub(super) async fn check<B: SessionBackend>(
    backend: &B,
    limits: SessionLimits,
    Steps(steps): Steps,
) -> Result<(), String> {
    let mut comparison = Comparison {
        backend,
        model: Model::new(limits.clone()),
        limits,
        watches: Vec::new(),
        ids: Vec::new(),
    };
    for action in [Action::Create(Default::default()), generate::register_shared("a", 0)] {
        comparison.compare(Operation { session: generate::session(), action }).await?;
    }
    for step in steps {
        match step {
            Step::Run(operation) => comparison.compare(operation).await?,
            Step::Read { watch, max_events } => comparison.read(watch, max_events).await?,
            Step::Drop { watch } => comparison.drop(watch),
        }
    }
    comparison.compare_all().await?;
    for session in generate::sessions() {
        comparison.compare(Operation { session, action: Action::Delete }).await?;
    }
    for watching in comparison.watches.drain(..).flatten() {
        let watch = &comparison.model.watches[watching.number];
        watching.finish(&comparison.limits, watch).await?;
    }
    Ok(())
}

struct Comparison<'a, B> {
    backend: &'a B,
    model: Model,
    limits: SessionLimits,
    /// The watches, by their number in the model; `None` for dropped ones.
    watches: Vec<Option<WatchProgress>>,
    /// The ids of all variables so far.
    ids: Vec<String>,
}

impl<B: SessionBackend> Comparison<'_, B> {
    async fn compare(&mut self, mut operation: Operation) -> Result<(), String> {
        operation.action.resolve_ids(&self.ids);
        let mut new_watches = Vec::new();
        let actual = operation.run(self.backend, &mut new_watches).await;
        let number = self.watches.len();
        self.watches.extend(new_watches.into_iter().map(|watch| Some(WatchProgress::new(number, watch))));
        let expected = self.model.apply(&operation, &actual);
        if let (Action::Register { .. }, Ok(Output::Variable(variable))) = (&operation.action, &actual) {
            if !variable.id.starts_with("var_") || self.ids.contains(&variable.id) {
                return Err(format!("`{}` is not a new variable id", variable.id));
            }
            self.ids.push(variable.id.clone());
        }
        let (actual, expected) = (without_problems(actual), without_problems(expected));
        if actual != expected {
            return Err(format!("{operation:?}\nreturned {actual:?}\nexpected {expected:?}"));
        }
        Ok(())
    }

    /// Compares the complete state.
    async fn compare_all(&mut self) -> Result<(), String> {
        let mut actions = vec![Action::Stats, Action::Sessions, Action::Programs { is_global: true }];
        actions.extend(generate::program_names().map(|name| Action::Program { is_global: true, name }));
        for session in generate::sessions() {
            let programs = generate::program_names().map(|name| Action::Program { is_global: false, name });
            let histories =
                self.ids.clone().into_iter().map(|identifier| Action::History { identifier, limit: 0 });
            let all = [Action::List(String::new()), Action::Programs { is_global: false }];
            for action in actions.drain(..).chain(all).chain(programs).chain(histories) {
                self.compare(Operation { session: session.clone(), action }).await?;
            }
        }
        Ok(())
    }

    async fn read(&mut self, watch: usize, max_events: usize) -> Result<(), String> {
        let Some(Some(watching)) = self.watches.get_mut(watch) else { return Ok(()) };
        watching.read(max_events, &self.limits, &self.model.watches[watch]).await
    }

    fn drop(&mut self, watch: usize) {
        if let Some(watching) = self.watches.get_mut(watch) {
            *watching = None;
            self.model.watches[watch].has_ended = true;
        }
    }
}
