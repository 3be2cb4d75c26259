//! [`LoadPlan`]: the parts of a session that an operation loads. Also the encoding of sessions in Redis.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use redis::Value;
use serde::{Deserialize, Serialize};
use snakepit_session::{
    Metadata, Note, Payload, ProgramInfo, ProgramName, Session, SessionError, SessionId, UpdateKind,
    VariableName, VariableUpdate, VariableVersion,
    kit::{
        ProgramRecord, SessionHeader, SessionRecord, VariableRecord, decode, encode, variable_name_in,
        variable_not_found,
    },
};

use super::{MAX_INLINE_DECODE, back_off, connection::Connection, decode_sized, scripts};

/// The maximum number of attempts to read a session without a concurrent change.
const MAX_ATTEMPTS: u32 = 256;

/// The immutable part of a session.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    metadata: Metadata,
    created_at: SystemTime,
    ttl: Duration,
}

impl Meta {
    pub(super) fn encode(header: &SessionHeader) -> Result<Vec<u8>, SessionError> {
        let SessionHeader { metadata, created_at, ttl, .. } = header;
        encode(&Self { metadata: metadata.clone(), created_at: *created_at, ttl: *ttl })
    }
}

/// The size, counts and incarnation of a session, encoded as a string that scripts can parse.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) bytes: usize,
    pub(super) variables: usize,
    pub(super) programs: usize,
    /// The random id of this session, which differs from that of earlier sessions with the same session id.
    pub(super) incarnation: String,
}

impl Usage {
    pub(super) fn parse(text: &str) -> Result<Self, SessionError> {
        let mut words = text.split(' ');
        let mut number = || words.next()?.parse().ok();
        let parsed = (number(), number(), number());
        match (parsed, words.next()) {
            ((Some(bytes), Some(variables), Some(programs)), Some(incarnation)) => {
                Ok(Self { bytes, variables, programs, incarnation: incarnation.to_owned() })
            }
            _ => Err(SessionError::backend(format!("cannot read the usage of a session: `{text}`"))),
        }
    }

    pub(super) fn of(header: &SessionHeader, incarnation: &str) -> String {
        format!("{} {} {} {incarnation}", header.bytes, header.variables, header.programs)
    }
}

/// Decodes a session with this remaining lifetime.
pub(super) fn decode_session(
    id: &SessionId,
    expires_in: Duration,
    meta: &[u8],
    worker: Option<String>,
    usage: &str,
) -> Result<Session, SessionError> {
    let Usage { bytes, variables, programs, .. } = Usage::parse(usage)?;
    let Meta { metadata, created_at, ttl } = decode(meta)?;
    let last_worker = worker.map(Into::into);
    Ok(SessionHeader { metadata, created_at, ttl, last_worker, bytes, programs, variables }
        .snapshot(id, expires_in))
}

/// The stored form of a variable. Its older versions are earlier copies of this form in separate fields.
#[derive(Debug, Serialize, Deserialize)]
struct StoredVariable<R> {
    /// The kind of the last change, so that a stored variable is also its update.
    kind: UpdateKind,
    record: R,
}

/// Encodes a variable. A header line for the scripts precedes it, with the number of the last change, the oldest
/// version, and the current version.
pub(super) fn encode_variable(
    number: u64,
    kind: UpdateKind,
    record: &VariableRecord,
) -> Result<Bytes, SessionError> {
    let version = record.variable.version;
    let oldest = record.older().start;
    let mut text = format!("{number} {oldest} {version}\n").into_bytes();
    text.extend(encode(&StoredVariable { kind, record })?);
    Ok(text.into())
}

/// Returns the part after the header line.
fn body(text: &[u8]) -> Result<&[u8], SessionError> {
    let end = text.iter().position(|byte| *byte == b'\n');
    let missing_header = || SessionError::backend("cannot read a variable: its header is missing");
    Ok(&text[end.ok_or_else(missing_header)? + 1..])
}

fn decode_variable(text: &[u8]) -> Result<VariableRecord, SessionError> {
    Ok(decode::<StoredVariable<VariableRecord>>(body(text)?)?.record)
}

pub(super) fn decode_update(text: &[u8]) -> Result<VariableUpdate, SessionError> {
    let StoredVariable::<VariableRecord> { kind, record } = decode(body(text)?)?;
    Ok(record.update(kind))
}

fn decode_version(text: &[u8]) -> Result<VariableVersion, SessionError> {
    /// The fields of [`StoredVariable`] that an older version needs.
    #[derive(Deserialize)]
    struct StoredVersion {
        record: SessionRecord,
    }
    #[derive(Deserialize)]
    struct SessionRecord {
        variable: Variable,
        note: Note,
    }
    #[derive(Deserialize)]
    struct Variable {
        version: u32,
        value: Payload,
        updated_at: SystemTime,
    }
    let StoredVersion { record: SessionRecord { variable, note } } = decode(body(text)?)?;
    let Variable { version, value, updated_at: at } = variable;
    Ok(VariableVersion { version, value, at, note })
}

/// Returns the name of the field with an older version.
pub(super) fn older_field(name: &str, version: u32) -> String {
    format!("h:{version}:{name}")
}

/// A group of fields to read without their names.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FieldGroup {
    #[default]
    Nothing,
    Variables,
    Programs,
}

/// The parts of a session that an operation loads.
#[derive(Debug, Default, Clone)]
pub(super) struct LoadPlan {
    /// Fields of the main hash: `meta`, `worker`, `v:` variables, `p:` programs.
    near: Vec<String>,
    /// Fields of the second hash: `h:` older versions, `d:` data of programs.
    far: Vec<String>,
    /// A group of additional fields.
    all: FieldGroup,
    /// The watch lease of a watch that starts now.
    watch_lease: Option<Duration>,
}

impl LoadPlan {
    pub(super) fn session() -> Self {
        Self { near: vec!["meta".to_owned(), "worker".to_owned()], ..Self::default() }
    }

    pub(super) fn variables<'a>(identifiers: impl IntoIterator<Item = &'a str>) -> Self {
        let names = identifiers.into_iter().map(variable_name_in);
        Self { near: names.map(|name| format!("v:{name}")).collect(), ..Self::default() }
    }

    pub(super) fn all_variables() -> Self {
        Self { all: FieldGroup::Variables, ..Self::default() }
    }

    pub(super) fn version(identifier: &str, version: u32) -> Self {
        let far = vec![older_field(variable_name_in(identifier), version)];
        Self { far, ..Self::variables([identifier]) }
    }

    pub(super) fn program(name: &ProgramName) -> Self {
        Self { near: vec![format!("p:{name}")], ..Self::default() }
    }

    pub(super) fn data(name: &ProgramName) -> Self {
        Self { far: vec![format!("d:{name}")], ..Self::program(name) }
    }

    pub(super) fn all_programs() -> Self {
        Self { all: FieldGroup::Programs, ..Self::default() }
    }

    pub(super) fn with_watch_lease(self, watch_lease: Duration) -> Self {
        Self { watch_lease: Some(watch_lease), ..self }
    }
}

/// A renewed session and its loaded parts.
#[derive(Debug)]
pub(super) struct LoadedSession {
    pub(super) record: SessionRecord,
    /// The usage before the operation.
    pub(super) usage: Usage,
    /// The random revision of the last commit.
    pub(super) rev: u64,
    /// The number of the last change to a variable.
    pub(super) seq: u64,
    /// The mark of that change; 0 if it is unknown.
    pub(super) mark: u64,
    /// The total size of all sessions and global programs.
    pub(super) total: usize,
}

/// The reply of the script: revision, seq, TTL, usage, total size, programs, mark.
type Reply = (u64, u64, u64, String, usize, Vec<Vec<u8>>, u64);

impl LoadedSession {
    pub(super) async fn load(
        connection: &Connection,
        id: &SessionId,
        plan: &LoadPlan,
    ) -> Result<Self, SessionError> {
        for attempt in 0..MAX_ATTEMPTS {
            back_off(attempt).await;
            if let Some(loaded) = Self::try_load(connection, id, plan).await? {
                return Ok(loaded);
            }
        }
        Err(connection.problem("other hosts change the session continuously; try again"))
    }

    /// Returns `None` if the session changed between the commands.
    async fn try_load(
        connection: &Connection,
        id: &SessionId,
        plan: &LoadPlan,
    ) -> Result<Option<Self>, SessionError> {
        let LoadPlan { near, far, all, watch_lease } = plan;
        let watch_lease = watch_lease.map(|lease| lease.as_millis().to_string()).unwrap_or_default();
        let call = connection.call(&scripts::LOAD).arg(id.as_str()).arg(watch_lease);
        // The script lists programs, because reading the whole hash would also transfer the variables.
        let call = call.arg(if *all == FieldGroup::Programs { "p:" } else { "" });
        let whole = (*all == FieldGroup::Variables).then(|| connection.read_all_fields(id));
        let mut reads = [connection.read_fields('s', id, near), connection.read_fields('d', id, far), whole];
        let unchanged = ["born".to_owned(), "rev".to_owned()];
        let unchanged =
            reads.iter().any(Option::is_some).then(|| connection.read_fields('s', id, &unchanged)).flatten();
        let reads = reads.iter_mut().filter_map(Option::take).chain(unchanged);
        let (reply, mut values): (Option<Reply>, _) = call.run_and_read(reads).await?;
        let Some((rev, seq, ttl, usage, total, programs, mark)) = reply else {
            return Err(SessionError::NotFound { id: id.clone() });
        };
        let usage = Usage::parse(&usage)?;
        if let Some(unchanged) = values.pop() {
            let (incarnation, current_rev): (Option<String>, Option<u64>) = connection.decode(unchanged)?;
            if incarnation.as_ref() != Some(&usage.incarnation) || current_rev != Some(rev) {
                return Ok(None);
            }
        }
        let record = SessionRecord::new(SessionHeader {
            metadata: Metadata::default(),
            created_at: SystemTime::UNIX_EPOCH,
            ttl: Duration::from_millis(ttl),
            last_worker: None,
            bytes: usage.bytes,
            programs: usage.programs,
            variables: usage.variables,
        });
        let fields = EncodedFields { programs, values };
        let record = if fields.size() <= MAX_INLINE_DECODE {
            fields.decode(connection, plan, record)?
        } else {
            let (connection, plan) = (connection.clone(), plan.clone());
            decode_sized(usize::MAX, move || fields.decode(&connection, &plan, record)).await?
        };
        Ok(Some(Self { record, usage, rev, seq, mark, total }))
    }
}

/// The fields of a session as Redis returned them.
struct EncodedFields {
    programs: Vec<Vec<u8>>,
    values: Vec<Value>,
}

impl EncodedFields {
    /// The approximate size in bytes.
    fn size(&self) -> usize {
        self.programs.iter().map(Vec::len).sum::<usize>() + self.values.iter().map(size_of).sum::<usize>()
    }

    /// Decodes the fields into a record whose header is loaded.
    fn decode(
        self,
        connection: &Connection,
        plan: &LoadPlan,
        mut record: SessionRecord,
    ) -> Result<SessionRecord, SessionError> {
        for program in self.programs {
            decode_field(&mut record, "p:", program)?;
        }
        let mut values = self.values.into_iter();
        for fields in [&plan.near, &plan.far].into_iter().filter(|fields| !fields.is_empty()) {
            let found: Vec<Option<Vec<u8>>> = connection.decode(values.next().unwrap_or(Value::Nil))?;
            for (field, value) in fields.iter().zip(found) {
                value.map_or(Ok(()), |value| decode_field(&mut record, field, value))?;
            }
        }
        for whole in values {
            let whole: Vec<(String, Vec<u8>)> = connection.decode(whole)?;
            for (field, value) in whole.into_iter().filter(|(field, _)| field.starts_with("v:")) {
                decode_field(&mut record, &field, value)?;
            }
        }
        Ok(record)
    }
}

fn size_of(value: &Value) -> usize {
    match value {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(size_of).sum(),
        Value::Map(entries) => entries.iter().map(|(name, value)| size_of(name) + size_of(value)).sum(),
        _ => 0,
    }
}

/// Decodes a field into the record.
fn decode_field(record: &mut SessionRecord, field: &str, value: Vec<u8>) -> Result<(), SessionError> {
    match field.split_once(':') {
        Some(("v", _)) => {
            let variable = decode_variable(&value)?;
            record.variables.insert(variable.variable.name.clone(), Box::new(variable));
        }
        Some(("h", at)) => {
            let name = at.split_once(':').and_then(|(_, name)| VariableName::try_new(name).ok());
            if let Some(variable) = name.and_then(|name| record.variables.get_mut(&name)) {
                variable.load(decode_version(&value)?);
            }
        }
        Some(("p", _)) => {
            let info: ProgramInfo = decode(&value)?;
            record.programs.insert(info.name.clone(), ProgramRecord { info, data: Bytes::new() });
        }
        Some(("d", name)) => {
            let name = ProgramName::try_new(name)?;
            if let Some(program) = record.programs.get_mut(&name) {
                program.data = value.into();
            }
        }
        _ if field == "meta" => {
            let Meta { metadata, created_at, ttl } = decode(&value)?;
            record.header = SessionHeader { metadata, created_at, ttl, ..record.header.clone() };
        }
        _ => record.header.last_worker = Some(String::from_utf8_lossy(&value).into()),
    }
    Ok(())
}

/// Loads a variable with its newest versions: at most `limit`, or all for 0.
pub(super) async fn load_history(
    connection: &Connection,
    id: &SessionId,
    identifier: &str,
    limit: usize,
) -> Result<VariableRecord, SessionError> {
    type Reply = (Option<Vec<u8>>, Vec<Option<Vec<u8>>>);
    let call =
        connection.call(&scripts::HISTORY).arg(id.as_str()).arg(limit).arg(variable_name_in(identifier));
    let found: Option<Reply> = call.run().await?;
    let (variable, older) = found.ok_or_else(|| SessionError::NotFound { id: id.clone() })?;
    let size = [&variable].into_iter().chain(&older).flatten().map(Vec::len).sum();
    let (id, identifier) = (id.clone(), identifier.to_owned());
    decode_sized(size, move || {
        let variable = variable.map(|variable| decode_variable(&variable)).transpose()?;
        let found = variable.filter(|found| found.is(&identifier));
        let mut variable = found.ok_or_else(|| variable_not_found(&id, &identifier))?;
        for version in older.into_iter().flatten() {
            variable.load(decode_version(&version)?);
        }
        Ok(variable)
    })
    .await
}
