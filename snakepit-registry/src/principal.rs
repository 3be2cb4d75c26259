//! [`Principal`]: the party that makes a call, as the host authenticated it.

use std::{borrow::Cow, collections::BTreeSet, fmt, sync::Arc};

/// The way on which a principal reached the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// A call of the program that embeds the host.
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
    /// A method of the program, such as `oidc`.
    Other(&'static str),
}

/// The party that makes a call: the program itself, a user of this machine, a worker, or anyone whom the program authenticated.
///
/// The host sets it, so a caller cannot choose it. Tools of the host and layers read it from
/// [`ToolCall::principal`](crate::ToolCall::principal). Clones are cheap, and only those that [`new`](Self::new) creates are
/// allocated.
///
/// | principal | name | via |
/// | --- | --- | --- |
/// | [`program`](Self::program) | `program` | [`Via::Program`] |
/// | [`user`](Self::user) | `uid:1000` | [`Via::UnixSocket`] |
/// | [`loopback`](Self::loopback) | `loopback` | [`Via::Loopback`] |
/// | [`remote`](Self::remote) | `remote` | [`Via::Remote`] |
/// | [`mounted`](Self::mounted) | `mounted` | [`Via::Mounted`] |
/// | [`worker`](Self::worker) | the worker's id, such as `default-1-1` | [`Via::Worker`] |
///
/// ```
/// use snakepit_registry::{Principal, Via};
///
/// let alice = Principal::new("alice", Via::Other("oidc")).with_grants(["call:embed"]);
/// assert_eq!((&*alice.name(), alice.has_grant("call:embed")), ("alice", true));
/// assert_eq!(Principal::user(1000).name(), "uid:1000");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Principal(Identity);

#[derive(Clone, PartialEq, Eq)]
enum Identity {
    Program,
    User(u32),
    Loopback,
    Remote,
    Mounted,
    Worker(Arc<str>),
    Named(Arc<Named>),
}

#[derive(Clone, PartialEq, Eq)]
struct Named {
    name: String,
    via: Via,
    grants: BTreeSet<String>,
}

impl Principal {
    /// Creates a principal that the program authenticated, without grants.
    pub fn new(name: impl Into<String>, via: Via) -> Self {
        Self(Identity::Named(Arc::new(Named { name: name.into(), via, grants: BTreeSet::new() })))
    }

    /// The program that embeds the host. The host permits it everything.
    #[must_use]
    pub const fn program() -> Self {
        Self(Identity::Program)
    }

    /// A user of this machine, by its id.
    #[must_use]
    pub const fn user(uid: u32) -> Self {
        Self(Identity::User(uid))
    }

    /// A client on this machine, over TCP.
    #[must_use]
    pub const fn loopback() -> Self {
        Self(Identity::Loopback)
    }

    /// A client on another machine, over TCP.
    #[must_use]
    pub const fn remote() -> Self {
        Self(Identity::Remote)
    }

    /// A client of a server of the program, which did not set a principal.
    #[must_use]
    pub const fn mounted() -> Self {
        Self(Identity::Mounted)
    }

    /// A worker that the host launched, by its id.
    #[must_use]
    pub const fn worker(id: Arc<str>) -> Self {
        Self(Identity::Worker(id))
    }

    /// Adds grants, whose meaning the program defines. A principal that does not come from [`new`](Self::new) gets its name and
    /// its way in addition.
    #[must_use]
    pub fn with_grants<G: Into<String>>(self, grants: impl IntoIterator<Item = G>) -> Self {
        let (name, via) = (self.name().into_owned(), self.via());
        let mut named = match self.0 {
            Identity::Named(named) => Arc::unwrap_or_clone(named),
            _ => Named { name, via, grants: BTreeSet::new() },
        };
        named.grants.extend(grants.into_iter().map(Into::into));
        Self(Identity::Named(Arc::new(named)))
    }

    /// The name, unique among the principals of the same [way](Self::via).
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match &self.0 {
            Identity::Program => "program".into(),
            Identity::User(uid) => format!("uid:{uid}").into(),
            Identity::Loopback => "loopback".into(),
            Identity::Remote => "remote".into(),
            Identity::Mounted => "mounted".into(),
            Identity::Worker(id) => Cow::Borrowed(id),
            Identity::Named(named) => Cow::Borrowed(&named.name),
        }
    }

    /// The way on which the principal reached the host.
    #[must_use]
    pub fn via(&self) -> Via {
        match &self.0 {
            Identity::Program => Via::Program,
            Identity::User(_) => Via::UnixSocket,
            Identity::Loopback => Via::Loopback,
            Identity::Remote => Via::Remote,
            Identity::Mounted => Via::Mounted,
            Identity::Worker(_) => Via::Worker,
            Identity::Named(named) => named.via,
        }
    }

    /// The grants, in alphabetical order.
    pub fn grants(&self) -> impl Iterator<Item = &str> {
        let named = match &self.0 {
            Identity::Named(named) => Some(named),
            _ => None,
        };
        named.into_iter().flat_map(|named| named.grants.iter().map(String::as_str))
    }

    /// Whether the principal has this grant.
    #[must_use]
    pub fn has_grant(&self, grant: &str) -> bool {
        matches!(&self.0, Identity::Named(named) if named.grants.contains(grant))
    }

    /// Whether this is the program that embeds the host.
    #[inline]
    #[must_use]
    pub const fn is_program(&self) -> bool {
        matches!(self.0, Identity::Program)
    }

    /// Whether this is a worker of the host.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.via() == Via::Worker
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
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_can_be_added_to_any_principal() {
        let user = Principal::user(7).with_grants(["b", "a"]).with_grants(["c"]);
        assert_eq!((&*user.name(), user.via()), ("uid:7", Via::UnixSocket));
        assert_eq!(user.grants().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(user.has_grant("c") && !Principal::user(7).has_grant("c"));
        assert_ne!(user, Principal::user(7));
    }

    #[test]
    fn only_the_program_is_the_program() {
        let named = Principal::new("program", Via::Other("token"));
        assert!(Principal::program().is_program() && !named.is_program());
        assert!(Principal::worker("w".into()).is_worker() && !Principal::new("w", Via::Mounted).is_worker());
    }
}
