//! Building blocks for a [`SessionBackend`](crate::SessionBackend) of your own: load and store a record, and the kit does
//! the rest.

mod record;

pub use crate::{
    limits::{most_of_write, size_of_metadata, size_of_program, size_of_version},
    variable_type::Checked,
    watch::Watchers,
};
pub use record::{
    Head, Prepared, Preparing, ProgramRecord, Record, Room, VariableRecord, is_like, name_of, no_program,
    no_variable,
};
