//! Checks the values of writes before the backend takes its lock.

use std::sync::Arc;

use super::{CheckedValue, SessionRecord};
use crate::{NewVariable, SessionLimits, SetVariable, VariableType, variable_type::may_be_expensive};

impl CheckedValue {
    /// Checks the value of a new variable on a blocking thread. Returns `None` if the check is cheap or the value exceeds
    /// the limits; registering the variable then checks the value. The caller must not hold a lock.
    ///
    /// # Cancel safety
    /// Cancel safe: it changes nothing.
    pub async fn for_new_variable(limits: &SessionLimits, new: &NewVariable) -> Option<Self> {
        limits.check_value("", &new.value).ok()?;
        Self::all_if_expensive(vec![Some((Arc::clone(&new.ty), new.value.clone()))]).await?.pop()?
    }
}

/// A write whose value may have been checked already.
#[derive(Debug, Clone)]
pub struct PreparedWrite {
    pub(super) update: SetVariable,
    pub(super) checked: Option<CheckedValue>,
}

impl From<SetVariable> for PreparedWrite {
    fn from(update: SetVariable) -> Self {
        Self { update, checked: None }
    }
}

/// Writes whose expensive checks are about to run outside the lock.
///
/// Validating a large value or compiling a pattern takes longer than a backend should hold a lock. Record the types of the
/// variables with [`of`](Self::of) while you hold the lock, release it, and check the values with [`prepare`](Self::prepare). If
/// the type of a variable changes in between, the write checks the value again.
#[derive(Debug)]
pub struct WritePreparation(Vec<(SetVariable, Option<Arc<VariableType>>)>);

impl WritePreparation {
    /// Whether checking the values may be expensive. If not, convert the writes with `PreparedWrite::from`.
    pub fn is_needed<'a>(updates: impl IntoIterator<Item = &'a SetVariable>) -> bool {
        may_be_expensive(updates.into_iter().map(|update| &update.value))
    }

    /// Records the current types of the variables. Pass `None` if the session does not exist.
    pub fn of(limits: &SessionLimits, record: Option<&SessionRecord>, updates: Vec<SetVariable>) -> Self {
        let ty_of = |update: &SetVariable| {
            let found = record?.find(&update.identifier)?;
            let is_small = limits.check_value("", &update.value).is_ok();
            is_small.then(|| Arc::clone(&found.variable.ty))
        };
        let with_type = |update: SetVariable| {
            let ty = ty_of(&update);
            (update, ty)
        };
        Self(updates.into_iter().map(with_type).collect())
    }

    /// Runs the checks on a blocking thread if they are expensive. The checks of one batch share a budget for patterns.
    ///
    /// # Cancel safety
    /// Cancel safe: it changes nothing.
    pub async fn prepare(self) -> Vec<PreparedWrite> {
        let typed =
            |(update, ty): &(SetVariable, Option<_>)| Some((Arc::clone(ty.as_ref()?), update.value.clone()));
        let checked = CheckedValue::all_if_expensive(self.0.iter().map(typed).collect()).await;
        let checked = checked.into_iter().flatten().chain(std::iter::repeat(None));
        let writes = self.0.into_iter().zip(checked);
        writes.map(|((update, _), checked)| PreparedWrite { update, checked }).collect()
    }
}
