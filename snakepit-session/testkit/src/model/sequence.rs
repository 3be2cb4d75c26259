//! Sequential operations.

use std::fmt;

use proptest::{collection::vec, prelude::*};
use snakepit_session::{SessionBackend, SessionLimits};

use super::{
    generate,
    operation::{Act, Answer, Operation, without_texts},
    state::Model,
    watching::Watching,
};

/// A step of a test.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Do(Operation),
    /// Reads events from a watch.
    Take {
        watch: usize,
        most: usize,
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
        12 => generate::operation().prop_map(Step::Do),
        1 => (0_usize..4, 1_usize..4).prop_map(|(watch, most)| Step::Take { watch, most }),
        1 => (0_usize..4).prop_map(|watch| Step::Drop { watch }),
    ];
    let first =
        generate::register().prop_map(|act| Step::Do(Operation { session: generate::session(), act }));
    let steps = (vec(first, 0..4), vec(step, 1..60)).prop_map(|(first, rest)| Steps([first, rest].concat()));
    (generate::limits(), steps)
}

/// Runs the steps and compares everything with the model.
pub(super) async fn check<B: SessionBackend>(
    backend: &B,
    limits: SessionLimits,
    Steps(steps): Steps,
) -> Result<(), String> {
    let mut run =
        Run { backend, model: Model::new(limits.clone()), limits, watches: Vec::new(), ids: Vec::new() };
    for act in [Act::Create(Default::default()), generate::raced("a", 0)] {
        run.compare(Operation { session: generate::session(), act }).await?;
    }
    for step in steps {
        match step {
            Step::Do(operation) => run.compare(operation).await?,
            Step::Take { watch, most } => run.take(watch, most).await?,
            Step::Drop { watch } => run.drop(watch),
        }
    }
    run.compare_all().await?;
    for session in generate::sessions() {
        run.compare(Operation { session, act: Act::Delete }).await?;
    }
    for watching in run.watches.drain(..).flatten() {
        let watch = &run.model.watches[watching.number];
        watching.finish(&run.limits, watch).await?;
    }
    Ok(())
}

struct Run<'a, B> {
    backend: &'a B,
    model: Model,
    limits: SessionLimits,
    /// The watches, by their number in the model; `None` for dropped ones.
    watches: Vec<Option<Watching>>,
    /// The ids of all variables so far.
    ids: Vec<String>,
}

impl<B: SessionBackend> Run<'_, B> {
    async fn compare(&mut self, mut operation: Operation) -> Result<(), String> {
        operation.act.name_ids(&self.ids);
        let mut begun = Vec::new();
        let seen = operation.run(self.backend, &mut begun).await;
        let number = self.watches.len();
        self.watches.extend(begun.into_iter().map(|watch| Some(Watching::new(number, watch))));
        let expected = self.model.apply(&operation, &seen);
        if let (Act::Register { .. }, Ok(Answer::Variable(variable))) = (&operation.act, &seen) {
            if !variable.id.starts_with("var_") || self.ids.contains(&variable.id) {
                return Err(format!("`{}` is not a new id of a variable", variable.id));
            }
            self.ids.push(variable.id.clone());
        }
        let (seen, expected) = (without_texts(seen), without_texts(expected));
        if seen != expected {
            return Err(format!("{operation:?}\nanswered {seen:?}\nand not  {expected:?}"));
        }
        Ok(())
    }

    /// Compares the complete state.
    async fn compare_all(&mut self) -> Result<(), String> {
        let mut acts = vec![Act::Stats, Act::Sessions, Act::Programs { global: true }];
        acts.extend(generate::program_names().map(|name| Act::Program { global: true, name }));
        for session in generate::sessions() {
            let programs = generate::program_names().map(|name| Act::Program { global: false, name });
            let histories =
                self.ids.clone().into_iter().map(|identifier| Act::History { identifier, limit: 0 });
            let all = [Act::List(String::new()), Act::Programs { global: false }];
            for act in acts.drain(..).chain(all).chain(programs).chain(histories) {
                self.compare(Operation { session: session.clone(), act }).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, watch: usize, most: usize) -> Result<(), String> {
        let Some(Some(watching)) = self.watches.get_mut(watch) else { return Ok(()) };
        watching.take(most, &self.limits, &self.model.watches[watch]).await
    }

    fn drop(&mut self, watch: usize) {
        if let Some(watching) = self.watches.get_mut(watch) {
            *watching = None;
            self.model.watches[watch].ended = true;
        }
    }
}
