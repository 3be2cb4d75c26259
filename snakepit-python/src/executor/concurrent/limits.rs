//! [`ConcurrencyLimits`]: decides which calls of a worker may run together.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use snakepit_proto::launch;

/// The limits of a worker, and the number of its running calls.
///
/// A coroutine counts towards the limit of its tool, or else towards the limit that all tools without their own share. A plain
/// function counts towards the limit of synchronous functions, because it occupies the event loop or a thread.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimits {
    all: Limit,
    plain: Limit,
    shared: Limit,
    tools: HashMap<String, ToolLimits, RandomState>,
    /// Whether tools that the adapter does not declare are synchronous functions.
    are_others_plain: bool,
}

/// A limit, and the number of running calls that count towards it.
#[derive(Debug, Clone, Copy)]
struct Limit {
    most: usize,
    running: usize,
}

#[derive(Debug)]
struct ToolLimits {
    is_plain: bool,
    own: Option<Limit>,
}

impl Limit {
    const fn new(limit: usize) -> Self {
        Self { most: limit, running: 0 }
    }

    const fn has_room(self) -> bool {
        self.running < self.most
    }
}

impl ConcurrencyLimits {
    /// `all` limits all calls together, `shared` the coroutines of tools without their own limit, and `plain` the plain
    /// functions.
    pub(crate) fn new(all: usize, shared: usize, plain: usize, are_others_plain: bool) -> Self {
        let [all, shared, plain] = [all, shared, plain].map(|limit| Limit::new(limit.max(1)));
        Self { all, plain, shared, tools: HashMap::default(), are_others_plain }
    }

    /// Declares a tool.
    pub(crate) fn add(&mut self, tool: &str, is_plain: bool, limit: Option<usize>) {
        self.tools.insert(tool.to_owned(), ToolLimits { is_plain, own: limit.map(Limit::new) });
    }

    /// Describes the limits for the host.
    pub(crate) fn describe(&self) -> launch::CallLimits {
        let named = |is_listed: fn(&ToolLimits) -> bool| {
            let mut names: Vec<_> =
                self.tools.iter().filter(|(_, tool)| is_listed(tool)).map(|(name, _)| name.clone()).collect();
            names.sort_unstable();
            names
        };
        let own = self.tools.iter().filter_map(|(name, tool)| Some((name.clone(), tool.own?.most)));
        launch::CallLimits {
            shared: self.shared.most,
            tools: own.collect(),
            plain: self.plain.most,
            plain_tools: named(|tool| tool.is_plain),
            shared_tools: self.are_others_plain.then(|| named(|tool| !tool.is_plain && tool.own.is_none())),
        }
    }

    /// The number of running calls.
    pub(crate) const fn running(&self) -> usize {
        self.all.running
    }

    /// Returns whether another call to this tool may begin.
    pub(crate) fn has_room(&self, tool: &str) -> bool {
        let (is_plain, own) = self.of(tool);
        let is_below_own = own.is_none_or(Limit::has_room);
        let is_below_others = match (is_plain, own) {
            (true, _) => self.plain.has_room(),
            (false, None) => self.shared.has_room(),
            (false, Some(_)) => true,
        };
        self.all.has_room() && is_below_own && is_below_others
    }

    /// Counts a call that begins.
    pub(crate) fn begin(&mut self, tool: &str) {
        self.each_of(tool, |limit| limit.running += 1);
    }

    /// Counts a call that has ended.
    pub(crate) fn end(&mut self, tool: &str) {
        self.each_of(tool, |limit| limit.running = limit.running.saturating_sub(1));
    }

    fn of(&self, tool: &str) -> (bool, Option<Limit>) {
        self.tools.get(tool).map_or((self.are_others_plain, None), |tool| (tool.is_plain, tool.own))
    }

    fn each_of(&mut self, tool: &str, mut change: impl FnMut(&mut Limit)) {
        let (is_plain, own) = self.of(tool);
        change(&mut self.all);
        if is_plain {
            change(&mut self.plain);
        } else if own.is_none() {
            change(&mut self.shared);
        }
        if let Some(own) = self.tools.get_mut(tool).and_then(|tool| tool.own.as_mut()) {
            change(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tools of this list that may begin, after these calls began in order.
    fn open<'a>(limits: &mut ConcurrencyLimits, calls: &[&str], tools: &[&'a str]) -> Vec<&'a str> {
        for call in calls {
            assert!(limits.has_room(call), "{call}");
            limits.begin(call);
        }
        tools.iter().copied().filter(|tool| limits.has_room(tool)).collect()
    }

    #[test]
    fn each_kind_of_tool_has_its_limit() {
        let mut limits = ConcurrencyLimits::new(6, 2, 1, true);
        limits.add("a", false, None);
        limits.add("b", false, None);
        limits.add("wide", false, Some(4));
        limits.add("plain", true, None);
        let all = ["a", "b", "wide", "plain", "undeclared"];
        assert_eq!(open(&mut limits, &[], &all), all);
        assert_eq!(open(&mut limits, &["a"], &all), all);
        assert_eq!(open(&mut limits, &["b"], &all), ["wide", "plain", "undeclared"], "the shared limit is 2");
        assert_eq!(
            open(&mut limits, &["undeclared"], &all),
            ["wide"],
            "synchronous functions run one at a time"
        );
        assert_eq!(open(&mut limits, &["wide", "wide"], &all), ["wide"]);
        assert_eq!(open(&mut limits, &["wide"], &all), [""; 0], "six calls run");
        assert_eq!(limits.running(), 6);
        limits.end("a");
        assert_eq!(open(&mut limits, &[], &all), ["a", "b", "wide"]);
        limits.end("undeclared");
        assert_eq!(open(&mut limits, &["wide"], &all), ["a", "b", "plain", "undeclared"], "4 of wide run");
    }

    #[test]
    fn a_plain_tool_may_have_a_lower_limit_than_the_threads() {
        let mut limits = ConcurrencyLimits::new(4, 1, 4, false);
        limits.add("gpu", true, Some(1));
        limits.add("cpu", true, None);
        assert_eq!(open(&mut limits, &["gpu"], &["gpu", "cpu"]), ["cpu"]);
        assert_eq!(open(&mut limits, &["cpu", "cpu"], &["gpu", "cpu"]), ["cpu"]);
    }

    #[test]
    fn the_host_learns_whether_undeclared_tools_are_plain() {
        for are_others_plain in [true, false] {
            let mut limits = ConcurrencyLimits::new(8, 2, 0, are_others_plain);
            limits.add("wide", false, Some(4));
            limits.add("gpu", true, Some(1));
            limits.add("b", false, None);
            limits.add("a", false, None);
            let expected = launch::CallLimits {
                shared: 2,
                tools: [("gpu".to_owned(), 1), ("wide".to_owned(), 4)].into(),
                plain: 1,
                plain_tools: vec!["gpu".to_owned()],
                shared_tools: are_others_plain.then(|| vec!["a".to_owned(), "b".to_owned()]),
            };
            assert_eq!(limits.describe(), expected);
        }
    }
}
