//! Several variables of a session in one operation.

use std::collections::HashSet;

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{Batch, Payload, SessionError, SetVariable, Variable};

use super::SessionHandle;
use crate::{Error, HostHandle};

/// Operations on several variables. Each is one request to a remote host.
///
/// | method | atomicity |
/// | --- | --- |
/// | [`get_many`](SessionHandle::get_many), [`find_variables`](SessionHandle::find_variables) | one consistent snapshot: no write happens between two of the reads |
/// | [`set_many`](SessionHandle::set_many), [`write_all`](SessionHandle::write_all) | all writes happen or none; readers see all of them or none |
/// | [`write_each`](SessionHandle::write_each) | each write succeeds or fails alone; readers see all successful ones or none |
/// | [`delete_many`](SessionHandle::delete_many) | one step: readers see all of the variables or none |
impl<H: HostHandle> SessionHandle<H> {
    /// Returns the values of variables, by id or name, in the same order, with `None` for missing variables. The values
    /// are a consistent snapshot.
    ///
    /// ```no_run
    /// use snakepit_client::Client;
    ///
    /// # async fn example() -> Result<(), snakepit_client::Error> {
    /// let session = Client::connect("127.0.0.1:50051").await?.session("alice").await?;
    /// session.set_many([("low", 0.1), ("high", 0.9)]).await?;
    /// let bounds = session.get_many::<f64>(&["low", "high", "unknown"]).await?;
    /// assert_eq!(bounds, [Some(0.1), Some(0.9), None]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist, or for more identifiers than the host accepts, 1000 by
    /// default; [`Error::Payload`] if a value does not fit `T`.
    pub async fn get_many<T: DeserializeOwned>(&self, identifiers: &[&str]) -> Result<Vec<Option<T>>, Error> {
        let variables = self.find_variables(identifiers).await?;
        let value =
            |variable: Option<Variable>| variable.map(|variable| variable.value.to_serde()).transpose();
        Ok(variables.into_iter().map(value).collect::<Result<_, _>>()?)
    }

    /// Returns variables with their versions and metadata, by id or name, in the same order, with `None` for missing
    /// variables. They are a consistent snapshot.
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist, or for more identifiers than the host accepts, 1000 by
    /// default.
    pub async fn find_variables(&self, identifiers: &[&str]) -> Result<Vec<Option<Variable>>, Error> {
        self.host().find_variables(self.id(), identifiers).await
    }

    /// Writes all variables or none, by id or name, and returns the new versions in the same order. The values have one
    /// type; [`write_all`](Self::write_all) takes values of different types.
    ///
    /// # Errors
    /// - [`Error::Session`] as for [`write_all`](Self::write_all),
    /// - [`Error::Payload`] if a value does not serialize.
    ///
    /// # Cancel safety
    /// If the future is dropped, all variables have either their old or their new values.
    pub async fn set_many<K: Into<String>, V: Serialize>(
        &self,
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Vec<u32>, Error> {
        let write = |(identifier, value): (K, V)| {
            Ok(SetVariable::new(identifier.into(), Payload::try_from_serde(&value)?))
        };
        let writes = values.into_iter().map(write).collect::<Result<Vec<_>, Error>>()?;
        self.write_all(writes).await
    }

    /// Writes all variables or none, and returns the new versions in the same order.
    ///
    /// # Errors
    /// [`Error::Session`]; in particular [`SessionError::BatchRejected`], which lists every rejected write. A remote
    /// host accepts one note per batch, so writes with different notes fail with [`Error::Rejected`].
    ///
    /// # Cancel safety
    /// If the future is dropped, all variables have either their old or their new values.
    pub async fn write_all(&self, writes: Vec<SetVariable>) -> Result<Vec<u32>, Error> {
        let versions = self.host().set_variables(self.id(), writes, Batch::Atomic).await?;
        Ok(versions.into_iter().collect::<Result<_, _>>()?)
    }

    /// Writes each variable independently, and returns the new version of each, or the error of its write, in the same
    /// order.
    ///
    /// # Errors
    /// [`Error::Session`] if no write could be attempted: the session does not exist, or two writes have the same
    /// identifier ([`SessionError::BatchRejected`]). A remote host accepts one note per batch, so writes with different
    /// notes fail with [`Error::Rejected`].
    ///
    /// # Cancel safety
    /// If the future is dropped, either all writes were attempted or none.
    pub async fn write_each(
        &self,
        writes: Vec<SetVariable>,
    ) -> Result<Vec<Result<u32, SessionError>>, Error> {
        if let Some(twice) = duplicate(&writes) {
            let error = SessionError::WrittenTwice { variable: twice.to_owned() };
            return Err(SessionError::BatchRejected { errors: [(twice.to_owned(), error)].into() }.into());
        }
        self.host().set_variables(self.id(), writes, Batch::Each).await
    }

    /// Deletes variables with their histories, by id or name, and returns for each, in the same order, whether it existed.
    /// Readers see all of them or none. Each watch receives an update per variable.
    ///
    /// ```no_run
    /// use snakepit_client::Client;
    ///
    /// # async fn example() -> Result<(), snakepit_client::Error> {
    /// let session = Client::connect("127.0.0.1:50051").await?.session("alice").await?;
    /// let deleted = session.delete_many(&["low", "unknown"]).await?;
    /// assert_eq!(deleted, [true, false]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Session`] if the session does not exist, or for more identifiers than the host accepts, 1000 by default.
    ///
    /// # Cancel safety
    /// If the future is dropped, either all of the variables are deleted or none. A custom backend without its own
    /// `delete_variables`, or a remote host of an earlier version, may have deleted some of them. The client deletes variables one by
    /// one on such a host.
    pub async fn delete_many(&self, identifiers: &[&str]) -> Result<Vec<bool>, Error> {
        self.host().delete_variables(self.id(), identifiers).await
    }
}

/// Returns an identifier that occurs in two writes.
fn duplicate(writes: &[SetVariable]) -> Option<&str> {
    let mut identifiers = HashSet::with_capacity(writes.len());
    writes.iter().map(|write| write.identifier.as_str()).find(|identifier| !identifiers.insert(*identifier))
}
