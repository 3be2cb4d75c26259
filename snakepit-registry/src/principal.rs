//! [`Principal`]: the authenticated party that makes a call.

use std::{borrow::Cow, collections::BTreeSet, fmt, sync::Arc};

/// The route by which a principal reaches the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// No route, because the principal is not set.
    Unset,
    /// A call from the program that embeds the host.
    Program,
    /// A Unix socket. The kernel reports the user at the other end.
    UnixSocket,
    /// A TCP connection from the same machine.
    Loopback,
    /// A TCP connection from another machine.
    Remote,
    /// A server of the program in which the host's services are mounted.
    Mounted,
    /// A worker that the host launched, and its descendants.
    Worker,
    /// An authentication method of the program, such as `oidc`.
    Other(&'static str),
}

/// The party that makes a call: the program itself, a user of this machine, a worker, or a client that the program authenticated.
///
/// The host sets it, so a caller cannot choose it. Host tools and layers read it from
/// [`ToolCall::principal`](crate::ToolCall::principal). Cloning it does not allocate. Creating it allocates only for a
/// [name](Self::new), for [grants](Self::with_grants), and for a principal [in a worker](Self::in_worker).
///
/// | principal | name | via |
/// | --- | --- | --- |
/// | [`unset`](Self::unset) | `unset` | [`Via::Unset`] |
/// | [`program`](Self::program) | `program` | [`Via::Program`] |
/// | [`user`](Self::user) | `uid:1000` | [`Via::UnixSocket`] |
/// | [`loopback`](Self::loopback) | `loopback` | [`Via::Loopback`] |
/// | [`remote`](Self::remote) | `remote` | [`Via::Remote`] |
/// | [`mounted`](Self::mounted) | `mounted` | [`Via::Mounted`] |
/// | [`worker`](Self::worker) | the worker's id, such as `default-1-1` | [`Via::Worker`] |
/// | [`new`](Self::new) | as given | [`Via::Other`] |
///
/// ```
/// use snakepit_registry::{Principal, Via};
///
/// let alice = Principal::new("alice", "oidc").with_grants(["call:embed"]);
/// assert_eq!((&*alice.name(), alice.via()), ("alice", Via::Other("oidc")));
/// assert!(alice.has_grant("call:embed"));
/// assert_eq!(Principal::user(1000).name(), "uid:1000");
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Principal(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Plain(Identity),
    Detailed(Arc<Details>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Identity {
    Unset,
    Program,
    User(u32),
    Loopback,
    Remote,
    Mounted,
    Worker(Arc<str>),
    /// Shared, because each call contains its principal, and a smaller call is cheaper to move.
    Named(Arc<Named>),
}

#[derive(PartialEq, Eq, Hash)]
struct Named {
    name: Arc<str>,
    method: &'static str,
}

/// An identity with grants, or in a worker. The identity stays the same, so grants cannot turn a principal into a worker or the
/// program.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Details {
    identity: Identity,
    grants: BTreeSet<String>,
    worker: Option<Arc<str>>,
}

impl Principal {
    /// Creates a principal that the program authenticated by this method, such as `oidc`, without grants.
    pub fn new(name: impl Into<Arc<str>>, method: &'static str) -> Self {
        Self(Form::Plain(Identity::Named(Arc::new(Named { name: name.into(), method }))))
    }

    /// The principal of a call whose caller is not authenticated yet. This is the default of
    /// [`ToolCall::new`](crate::ToolCall::new). A host with an authorizer denies every operation of it, so a listener that
    /// forgets to set the principal fails closed.
    #[must_use]
    pub const fn unset() -> Self {
        Self(Form::Plain(Identity::Unset))
    }

    /// The program that embeds the host. The host permits it everything.
    #[must_use]
    pub const fn program() -> Self {
        Self(Form::Plain(Identity::Program))
    }

    /// A user of this machine, by its id.
    #[must_use]
    pub const fn user(uid: u32) -> Self {
        Self(Form::Plain(Identity::User(uid)))
    }

    /// A client on this machine, over TCP.
    #[must_use]
    pub const fn loopback() -> Self {
        Self(Form::Plain(Identity::Loopback))
    }

    /// A client on another machine, over TCP.
    #[must_use]
    pub const fn remote() -> Self {
        Self(Form::Plain(Identity::Remote))
    }

    /// A client of the program's own server, which mounts the host and did not set a principal.
    #[must_use]
    pub const fn mounted() -> Self {
        Self(Form::Plain(Identity::Mounted))
    }

    /// A worker that the host launched, by its id.
    #[must_use]
    pub const fn worker(id: Arc<str>) -> Self {
        Self(Form::Plain(Identity::Worker(id)))
    }

    /// Adds grants, whose meaning the program defines. The name and the route stay the same.
    #[must_use]
    pub fn with_grants<G: Into<String>>(self, grants: impl IntoIterator<Item = G>) -> Self {
        let mut details = self.into_details();
        details.grants.extend(grants.into_iter().map(Into::into));
        Self(Form::Detailed(Arc::new(details)))
    }

    /// Returns the principal as which a tool in this worker acts while it runs a call of this principal. It has the same name,
    /// route and grants, and also the [id of the worker](Self::worker_id). For a call of the program, and for a call without a
    /// principal, returns the [worker](Self::worker) itself, because a worker must not have the rights of the program.
    #[must_use]
    pub fn in_worker(self, worker: Arc<str>) -> Self {
        match self.identity() {
            Identity::Unset | Identity::Program | Identity::Worker(_) => Self::worker(worker),
            _ => {
                let details = Details { worker: Some(worker), ..self.into_details() };
                Self(Form::Detailed(Arc::new(details)))
            }
        }
    }

    fn into_details(self) -> Details {
        match self.0 {
            Form::Plain(identity) => Details { identity, grants: BTreeSet::new(), worker: None },
            Form::Detailed(details) => Arc::unwrap_or_clone(details),
        }
    }

    #[inline]
    fn identity(&self) -> &Identity {
        match &self.0 {
            Form::Plain(identity) => identity,
            Form::Detailed(details) => &details.identity,
        }
    }

    fn details(&self) -> Option<&Details> {
        match &self.0 {
            Form::Plain(_) => None,
            Form::Detailed(details) => Some(details),
        }
    }

    /// The name, unique among the principals of the same [route](Self::via).
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match self.identity() {
            Identity::Unset => "unset".into(),
            Identity::Program => "program".into(),
            Identity::User(uid) => format!("uid:{uid}").into(),
            Identity::Loopback => "loopback".into(),
            Identity::Remote => "remote".into(),
            Identity::Mounted => "mounted".into(),
            Identity::Worker(id) => Cow::Borrowed(id),
            Identity::Named(named) => Cow::Borrowed(&named.name),
        }
    }

    /// The route by which the principal reached the host.
    #[must_use]
    pub fn via(&self) -> Via {
        match self.identity() {
            Identity::Unset => Via::Unset,
            Identity::Program => Via::Program,
            Identity::User(_) => Via::UnixSocket,
            Identity::Loopback => Via::Loopback,
            Identity::Remote => Via::Remote,
            Identity::Mounted => Via::Mounted,
            Identity::Worker(_) => Via::Worker,
            Identity::Named(named) => Via::Other(named.method),
        }
    }

    /// The grants, in alphabetical order.
    pub fn grants(&self) -> impl Iterator<Item = &str> {
        self.details().into_iter().flat_map(|details| details.grants.iter().map(String::as_str))
    }

    /// Whether the principal has this grant.
    #[must_use]
    pub fn has_grant(&self, grant: &str) -> bool {
        self.details().is_some_and(|details| details.grants.contains(grant))
    }

    /// Whether this is the program that embeds the host.
    #[inline]
    #[must_use]
    pub fn is_program(&self) -> bool {
        matches!(self.identity(), Identity::Program)
    }

    /// Whether the principal is not set.
    #[inline]
    #[must_use]
    pub fn is_unset(&self) -> bool {
        matches!(self.identity(), Identity::Unset)
    }

    /// Whether this is a worker of the host. `false` for other principals [in a worker](Self::worker_id).
    #[must_use]
    pub fn is_worker(&self) -> bool {
        matches!(self.identity(), Identity::Worker(_))
    }

    /// The id of the worker in which a tool acts for this principal. For a [worker](Self::worker), its own id. `None` if the
    /// principal itself makes the request. With the id, an authorizer can permit operations to tools that it denies to their
    /// callers.
    #[must_use]
    pub fn worker_id(&self) -> Option<&str> {
        match self.identity() {
            Identity::Worker(id) => Some(id),
            _ => self.details()?.worker.as_deref(),
        }
    }

    /// Whether this principal is on the machine of the host: the program, a worker, a tool that acts for any principal, or a client
    /// on a Unix socket or a loopback address.
    ///
    /// By default, only local principals receive tracebacks and output of workers, which reveal code and paths. Without an
    /// authorizer, only they may restart the workers.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let is_local = matches!(self.via(), Via::Program | Via::UnixSocket | Via::Loopback);
        is_local || self.worker_id().is_some()
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grants: Vec<_> = self.grants().collect();
        f.debug_struct("Principal")
            .field("name", &self.name())
            .field("via", &self.via())
            .field("grants", &grants)
            .field("worker_id", &self.worker_id())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls are moved many times, and the memory of a call in a host must not exceed the allocator's limit for small blocks.
    #[test]
    fn a_principal_is_small() {
        assert!(size_of::<Principal>() <= 3 * size_of::<usize>());
    }

    #[test]
    fn grants_change_neither_name_nor_way() {
        let user = Principal::user(7).with_grants(["b", "a"]).with_grants(["c"]);
        assert_eq!((&*user.name(), user.via()), ("uid:7", Via::UnixSocket));
        assert_eq!(user.grants().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(user.has_grant("c") && !Principal::user(7).has_grant("c"));
        assert_ne!(user, Principal::user(7));
        assert!(Principal::worker("w".into()).with_grants(["a"]).is_worker());
        assert!(Principal::unset().with_grants(["a"]).is_unset());
    }

    #[test]
    fn no_name_or_grant_makes_a_program_or_a_worker() {
        let named = Principal::new("program", "token").with_grants(["program"]);
        assert!(Principal::program().is_program() && !named.is_program());
        assert!(Principal::worker("w".into()).is_worker() && !Principal::new("w", "worker").is_worker());
        assert_eq!(named.via(), Via::Other("token"));
    }

    #[test]
    fn a_tool_acts_for_its_caller_but_never_as_the_program() {
        let alice = Principal::new("alice", "token").with_grants(["a"]);
        let acting = alice.clone().in_worker("w-1".into());
        assert_eq!((&*acting.name(), acting.via(), acting.worker_id()), ("alice", alice.via(), Some("w-1")));
        assert!(acting.has_grant("a") && !acting.is_worker() && acting != alice);
        assert_eq!(acting.in_worker("w-2".into()).worker_id(), Some("w-2"));
        for principal in [Principal::program(), Principal::unset(), Principal::worker("w-1".into())] {
            assert_eq!(principal.in_worker("w-2".into()), Principal::worker("w-2".into()));
        }
    }

    #[test]
    fn tracebacks_stay_on_this_machine() {
        let local =
            [Principal::program(), Principal::user(1), Principal::loopback(), Principal::worker("w".into())];
        assert!(local.iter().all(Principal::is_local));
        let others =
            [Principal::remote(), Principal::mounted(), Principal::new("alice", "token"), Principal::unset()];
        assert!(!others.iter().any(Principal::is_local));
        assert!(Principal::remote().in_worker("w".into()).is_local(), "the reader is a tool");
    }
}
