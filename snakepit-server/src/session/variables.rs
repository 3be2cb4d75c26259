//! The variables of a session, as an embedding program holds them.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::{
    Batch, NewVariable, Note, Payload, SessionError, SetVariable, Variable, VariableName, VariableType,
    VariableVersion, VariableWatch,
};

use super::SessionHandle;
use crate::Error;

/// How often [`SessionHandle::update`] tries before it gives up. With each failure somebody else succeeded.
const ATTEMPTS: usize = 100;

impl SessionHandle {
    /// Registers a variable with its first value, which becomes version 0.
    ///
    /// # Errors
    /// [`Error::Session`] when the name is odd or taken, the value outside the type, or the session full or gone;
    /// [`Error::Payload`] when the value does not serialize.
    pub async fn register(
        &self,
        name: &str,
        ty: Arc<VariableType>,
        value: impl Serialize,
    ) -> Result<Variable, Error> {
        let value = Payload::try_from_serde(&value)?;
        self.register_with(name, NewVariable { ty, value, note: Note::default() }).await
    }

    /// Registers a variable with a note, or with a raw buffer such as a [`Payload::tensor`] for its first value.
    ///
    /// # Errors
    /// [`Error::Session`] as for [`register`](Self::register).
    pub async fn register_with(&self, name: &str, new: NewVariable) -> Result<Variable, Error> {
        let name = VariableName::try_new(name)?;
        Ok(self.host.sessions.register_variable(&self.id, &name, new).await?)
    }

    /// Returns the value of a variable, by id or name: of a tensor or an embedding nested lists of numbers, however it was
    /// written.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there; [`Error::Payload`] when the value does not fit `T`.
    pub async fn get<T: DeserializeOwned>(&self, identifier: &str) -> Result<T, Error> {
        Ok(self.variable(identifier).await?.value.to_serde()?)
    }

    /// Returns a variable, by id or name, with its version and all else that is known of it.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn variable(&self, identifier: &str) -> Result<Variable, Error> {
        Ok(self.host.sessions.variable(&self.id, identifier).await?)
    }

    /// Lists the variables whose names match a pattern, ordered by name. `*` stands for any characters; an empty pattern
    /// lists all.
    ///
    /// # Errors
    /// [`Error::Session`] when the session is gone.
    pub async fn variables(&self, pattern: &str) -> Result<Vec<Variable>, Error> {
        Ok(self.host.sessions.list_variables(&self.id, pattern).await?)
    }

    /// Writes a variable, by id or name, and returns its new version. Floats that may be NaN or infinite go by
    /// [`write`](Self::write) and [`Payload::float`].
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there, or the value outside its type;
    /// [`Error::Payload`] when the value does not serialize.
    pub async fn set(&self, identifier: &str, value: impl Serialize) -> Result<u32, Error> {
        self.write(SetVariable::new(identifier, Payload::try_from_serde(&value)?)).await
    }

    /// Writes a variable with conditions, a note, or a raw buffer, and returns its new version.
    ///
    /// # Errors
    /// [`Error::Session`]; [`SessionError::VersionConflict`] when the variable is not at the version expected.
    pub async fn write(&self, write: SetVariable) -> Result<u32, Error> {
        Ok(self.host.sessions.set_variable(&self.id, write).await?)
    }

    /// Writes all of these or none, and returns the new versions in their order.
    ///
    /// # Errors
    /// [`Error::Session`]; [`SessionError::BatchRefused`] with everything that is wrong.
    pub async fn write_all(&self, writes: Vec<SetVariable>) -> Result<Vec<u32>, Error> {
        let versions = self.host.sessions.set_variables(&self.id, writes, Batch::Atomic).await?;
        Ok(versions.into_iter().collect::<Result<_, _>>()?)
    }

    /// Makes a variable's next value of its last one, and returns it. Nothing that others write meanwhile is lost: then the
    /// function is called again, with what they wrote.
    ///
    /// # Errors
    /// [`Error::Session`] and [`Error::Payload`] as for [`get`](Self::get) and [`set`](Self::set);
    /// [`SessionError::VersionConflict`] when others were faster a hundred times.
    ///
    /// # Cancel safety
    /// The variable is written or not, never half.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        identifier: &str,
        mut next: impl FnMut(T) -> T,
    ) -> Result<T, Error> {
        let mut attempt = 1;
        loop {
            let seen = self.variable(identifier).await?;
            let value = next(seen.value.to_serde()?);
            let write = SetVariable::new(seen.id.as_str(), Payload::try_from_serde(&value)?);
            match self.write(write.if_version(seen.version)).await {
                Err(Error::Session(SessionError::VersionConflict { .. })) if attempt < ATTEMPTS => {
                    attempt += 1;
                }
                written => return written.map(|_| value),
            }
        }
    }

    /// Deletes a variable, by id or name, and returns what it was.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn delete_variable(&self, identifier: &str) -> Result<Variable, Error> {
        Ok(self.host.sessions.delete_variable(&self.id, identifier).await?)
    }

    /// Returns the newest versions of a variable that are kept, newest first; at most `limit`, 0 for all.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there.
    pub async fn history(&self, identifier: &str, limit: usize) -> Result<Vec<VariableVersion>, Error> {
        Ok(self.host.sessions.variable_history(&self.id, identifier, limit).await?)
    }

    /// Gives a variable the value that it had at a version, as a new version.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or the variable is not there, or the version no longer kept.
    pub async fn rollback(&self, identifier: &str, version: u32) -> Result<Variable, Error> {
        let sessions = &self.host.sessions;
        Ok(sessions.rollback_variable(&self.id, identifier, version, Note::default()).await?)
    }

    /// Watches variables, by id or name, or without any all that the session has or will have. `initial` begins with what
    /// they are now.
    ///
    /// # Errors
    /// [`Error::Session`] when the session or one of the variables is not there.
    pub async fn watch(&self, identifiers: &[&str], initial: bool) -> Result<VariableWatch, Error> {
        let identifiers: Vec<_> = identifiers.iter().map(|&identifier| identifier.to_owned()).collect();
        Ok(self.host.sessions.watch_variables(&self.id, &identifiers, initial).await?)
    }
}
