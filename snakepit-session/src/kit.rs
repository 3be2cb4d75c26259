//! The record kit: the semantics of sessions, for backends that load and store them.
//!
//! A [`SessionBackend`](crate::SessionBackend) decides where sessions are stored. The rules for types, versions, history,
//! batches, limits and errors are the same on every backend, and this module implements them. A backend has three tasks:
//!
//! 1. **Exclusive access.** Use a lock, a single writer, or optimistic concurrency with a revision.
//! 2. **Load and store.** Load a [`SessionRecord`], call the operation, and store the result: the header, and the variables
//!    and programs that the operation named. If the operation fails, store nothing.
//! 3. **Time.** Renew the TTL of a session when an operation uses it, and answer
//!    [`NotFound`](crate::SessionError::NotFound) for an expired one.
//!
//! | operation | load | call |
//! | --- | --- | --- |
//! | `create` | the header, if it exists | [`SessionLimits::check_new`](crate::SessionLimits::check_new), before the lookup and also for an existing session; [`SessionHeader::new`] |
//! | `get`, `list`, `delete` | the header | [`SessionHeader::snapshot`] |
//! | `put_program`, `delete_program` | the description of the program | methods of [`SessionRecord`]; for global programs, [`ProgramRecord::global`] |
//! | `program` | the program with its data | [`SessionRecord::program`] |
//! | `register_variable`, `delete_variable` | the variable | methods of [`SessionRecord`] |
//! | `set_variables` | the variables | [`SessionRecord::set_batch`] |
//! | `delete_variables` | the variables | [`SessionRecord::delete_variables`] |
//! | `variables` | the variables | [`SessionRecord::find`] |
//! | `list_variables` | all variables | [`matches_pattern`] |
//! | `variable_history`, `rollback_variable` | the variable and its older versions | [`VariableRecord::history`], [`SessionRecord::rollback`] |
//! | `watch_variables` | the watched variables | [`Watcher::for_record`](crate::Watcher::for_record), [`Watchers`] |
//!
//! An identifier is a name or an id; [`variable_name_in`] returns the name under which to load the variable.
//! Every operation that can grow a session takes a [`SizeGuard`], through which the backend counts the total size.
//! [`WritePreparation`] and [`CheckedValue`] move expensive checks out of the lock; backends without a lock can
//! ignore them.
//!
//! # Storage formats
//!
//! [`SessionHeader`], [`ProgramInfo`](crate::ProgramInfo), [`VariableRecord`] and [`VariableVersion`](crate::VariableVersion)
//! implement serde traits with stable field names. New releases may add fields, so choose a binary encoding with named fields,
//! such as that of `encode` and `decode` (feature `codec`). Text formats such as JSON do not keep the types of values. The
//! serialized [`VariableRecord`] does not contain its older versions. Store those separately: [`older`](VariableRecord::older)
//! returns their numbers, [`history`](VariableRecord::history) returns the loaded versions, and [`load`](VariableRecord::load)
//! adds a stored version to the record.
//!
//! # Watches and events
//!
//! Keep the [`Watchers`] of each session, and call [`notify`](Watchers::notify) with [`VariableRecord::update`] after each change
//! is stored, in the order of the changes. End them when the session ends. A
//! [`SessionEventSender`](crate::SessionEventSender) implements `subscribe`.
//!
//! # Tests
//!
//! Run the suites of `snakepit-session-testkit` on your backend.
//!
//! # Key-value stores
//!
//! With the feature `codec`, `KeyValueBackend` is a complete backend over any ordered key-value store with atomic commits.
//! The store implements the three methods of `KeyValueStore`. `examples/sqlite_backend.rs` in this crate stores sessions in
//! SQLite that way.
//! The source of `KeyValueBackend` also shows how a backend uses this kit.

#[cfg(feature = "codec")]
mod codec;
mod header;
#[cfg(feature = "codec")]
mod key_value;
mod lookup;
mod prepare;
mod program;
mod record;
mod variable;

pub use crate::{
    limits::{max_write_size, size_of_metadata, size_of_program, size_of_version},
    variable_type::CheckedValue,
    watch::Watchers,
};
#[cfg(feature = "codec")]
pub use codec::{decode, encode};
pub use header::{SessionHeader, SizeGuard};
#[cfg(feature = "codec")]
pub use key_value::{KeyValueBackend, KeyValueStore, StoreError, StoreWrites};
pub use lookup::{matches_pattern, program_not_found, variable_name_in, variable_not_found};
pub use prepare::{PreparedWrite, WritePreparation};
pub use program::ProgramRecord;
pub use record::SessionRecord;
pub use variable::VariableRecord;
