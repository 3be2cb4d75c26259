//! [`CallLimits`]: which calls a worker that runs several can begin together.

use std::collections::{BTreeMap, BTreeSet};

/// The limits within which a worker that runs several calls begins them. A call beyond a limit occupies a place of the worker and
/// waits. The pool does not apply these limits, but uses them to reject nested calls that would deadlock.
///
/// # Example
///
/// ```
/// use snakepit_worker::CallLimits;
///
/// let limits = CallLimits::new(8).with_tool("search", 1);
/// assert!(limits.can_begin("search", ["fetch"; 7]));
/// assert!(!limits.can_begin("search", ["search"]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallLimits {
    shared: usize,
    tools: BTreeMap<String, usize>,
    plain: usize,
    plain_tools: BTreeSet<String>,
    /// The tools under the shared limit, if all tools without another limit are plain.
    shared_tools: Option<BTreeSet<String>>,
}

impl CallLimits {
    /// `shared` limits the calls to all tools without a limit of their own together.
    #[must_use]
    pub const fn new(shared: usize) -> Self {
        Self { shared, tools: BTreeMap::new(), plain: 1, plain_tools: BTreeSet::new(), shared_tools: None }
    }

    /// Limits the calls to one tool. They do not count towards the shared limit.
    #[must_use]
    pub fn with_tool(mut self, tool: impl Into<String>, calls: usize) -> Self {
        self.tools.insert(tool.into(), calls);
        self
    }

    /// Limits the calls of all of these tools together, because each occupies a thread. They do not count towards the shared limit,
    /// but may also have their own.
    #[must_use]
    pub fn with_plain_tools(
        mut self,
        calls: usize,
        tools: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.plain = calls;
        self.plain_tools = tools.into_iter().map(Into::into).collect();
        self
    }

    /// Counts all other tools as [plain](Self::with_plain_tools), such as those that a worker serves without declaring them. `shared`
    /// names the tools that share the shared limit.
    #[must_use]
    pub fn with_other_tools_plain(mut self, shared: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shared_tools = Some(shared.into_iter().map(Into::into).collect());
        self
    }

    fn is_plain(&self, tool: &str) -> bool {
        let is_shared = |shared: &BTreeSet<String>| shared.contains(tool) || self.tools.contains_key(tool);
        self.plain_tools.contains(tool) || self.shared_tools.as_ref().is_some_and(|shared| !is_shared(shared))
    }

    /// Returns whether a call to `tool` can begin while calls to these tools run and none of them ends.
    pub fn can_begin<'a>(&self, tool: &str, running: impl IntoIterator<Item = &'a str>) -> bool {
        let is_plain = self.is_plain(tool);
        let own = self.tools.get(tool).copied();
        let (mut of_tool, mut plain, mut shared) = (0, 0, 0);
        for other in running {
            of_tool += usize::from(other == tool);
            let is_other_plain = self.is_plain(other);
            plain += usize::from(is_other_plain);
            shared += usize::from(!is_other_plain && !self.tools.contains_key(other));
        }
        let is_below_shared = match (is_plain, own) {
            (true, _) => plain < self.plain,
            (false, None) => shared < self.shared,
            (false, Some(_)) => true,
        };
        is_below_shared && own.is_none_or(|limit| of_tool < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_begins_below_all_limits_of_its_tool() {
        let limits =
            CallLimits::new(2).with_tool("one", 1).with_tool("gpu", 1).with_plain_tools(2, ["gpu", "cpu"]);
        assert!(limits.can_begin("a", ["b", "one", "cpu", "cpu"]));
        assert!(!limits.can_begin("a", ["b", "c"]));
        assert!(limits.can_begin("one", ["b", "c", "cpu", "cpu"]));
        assert!(!limits.can_begin("one", ["one"]));
        assert!(limits.can_begin("cpu", ["gpu", "a", "b"]));
        assert!(!limits.can_begin("cpu", ["gpu", "cpu"]));
        assert!(!limits.can_begin("gpu", ["gpu"]));
    }

    #[test]
    fn tools_that_a_worker_does_not_declare_can_be_plain() {
        let limits = CallLimits::new(2).with_tool("one", 1).with_plain_tools(1, ["cpu"]);
        assert!(limits.can_begin("undeclared", ["cpu"]), "they share the shared limit");
        let limits = limits.with_other_tools_plain(["a"]);
        assert!(!limits.can_begin("undeclared", ["cpu"]) && !limits.can_begin("cpu", ["undeclared"]));
        assert!(limits.can_begin("a", ["undeclared", "a"]) && limits.can_begin("one", ["undeclared"]));
        assert!(limits.can_begin("undeclared", ["a", "a", "one"]));
    }
}
