//! [`Extensions`]: typed values that travel with a call inside the host.

use std::{
    any::{Any, TypeId, type_name},
    fmt,
    sync::Arc,
};

/// Typed values that layers and handlers attach to a [`ToolCall`](crate::ToolCall), at most one of each type.
///
/// They stay in this process: neither workers nor remote hosts receive them. Cloning a call copies the set but shares the values.
/// A call without extensions allocates nothing for them.
///
/// ```
/// use snakepit_registry::ToolCall;
///
/// #[derive(Debug, PartialEq)]
/// struct Tenant(u32);
///
/// let mut call = ToolCall::new("add");
/// call.extensions.insert(Tenant(7));
/// assert_eq!(call.clone().extensions.get(), Some(&Tenant(7)));
/// assert_eq!(call.extensions.get::<String>(), None);
/// ```
#[derive(Clone, Default)]
pub struct Extensions(Option<Box<Entries>>);

#[derive(Clone, Default)]
struct Entries(Vec<Entry>);

#[derive(Clone)]
struct Entry {
    type_id: TypeId,
    type_name: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

impl Extensions {
    /// Stores a value, and replaces a value of the same type.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        let entry = Entry { type_id: TypeId::of::<T>(), type_name: type_name::<T>(), value: Arc::new(value) };
        let entries = &mut self.0.get_or_insert_default().0;
        match entries.iter_mut().find(|other| other.type_id == entry.type_id) {
            Some(other) => *other = entry,
            None => entries.push(entry),
        }
    }

    /// Returns the value of this type.
    #[inline]
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let entries = self.0.as_ref()?;
        let entry = entries.0.iter().find(|entry| entry.type_id == TypeId::of::<T>())?;
        entry.value.downcast_ref()
    }

    /// Whether there are no values.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Extensions {
    /// Writes the types of the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.iter().flat_map(|entries| &entries.0);
        f.debug_set().entries(entries.map(|entry| entry.type_name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_value_of_each_type_and_clones_are_independent() {
        let mut extensions = Extensions::default();
        assert!(extensions.is_empty() && extensions.get::<u8>().is_none());
        extensions.insert(1_u8);
        extensions.insert("text");
        let mut copy = extensions.clone();
        copy.insert(2_u8);
        assert_eq!((extensions.get(), copy.get()), (Some(&1_u8), Some(&2_u8)));
        assert_eq!(copy.get(), Some(&"text"));
        assert_eq!(format!("{extensions:?}"), r#"{"u8", "&str"}"#);
    }
}
