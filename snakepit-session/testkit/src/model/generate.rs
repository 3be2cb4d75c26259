//! Generates operations. They use few names and small values, so that they interact.

use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value as Json, json};
use snakepit_session::{Batch, Note, ProgramName, SessionId, SessionLimits, Source, ValueType};

use super::{
    operation::{Action, Metadata, Operation, ProgramView, Write},
    value::Value,
};

/// Types and constraints, each with valid values. Integers are frequent, so that most writes succeed.
fn types() -> Vec<(ValueType, &'static str, Vec<Json>)> {
    use ValueType::*;
    let integer = || (Integer, "", vec![json!(1), json!(-70000), json!(5.0)]);
    vec![
        integer(),
        integer(),
        integer(),
        integer(),
        (Integer, r#"{"max":5}"#, vec![json!(5)]),
        (Float, "", vec![json!(0.5), json!(2), json!("NaN"), json!("-Infinity")]),
        (Float, r#"{"max":10,"min":0}"#, vec![json!(0), json!(10.0)]),
        (String, "", vec![json!(""), json!("a"), json!("grüße \"an\" alle")]),
        (String, r#"{"min_length":2,"max_length":4}"#, vec![json!("äöüß"), json!("ab")]),
        (String, r#"{"pattern":"^a"}"#, vec![json!("a"), json!("ab")]),
        (String, r#"{"enum":["a","b"]}"#, vec![json!("b")]),
        (Boolean, "", vec![json!(true), json!(false)]),
        (Choice, r#"{"choices":["a","b"]}"#, vec![json!("a")]),
        (Module, r#"{"allowed_modules":["m"]}"#, vec![json!("m")]),
        (Embedding, "", vec![json!([]), json!([1, 2.5])]),
        (Embedding, r#"{"dimensions":2}"#, vec![json!([1, 2])]),
        (Tensor, "", vec![json!([[1, 2], [3, 4]]), json!({"data": [1, 2], "shape": [2, 1]})]),
        (
            Tensor,
            r#"{"shape":[2,2]}"#,
            vec![json!([[1, 2], [3, 4]]), json!({"data": [1, 2, 3, 4], "shape": [2, 2]})],
        ),
        (Map, "", vec![json!({}), json!({"a": [null]})]),
        (List, "", vec![json!([]), json!(["a", 1])]),
    ]
}

/// Values of every type, and invalid ones.
fn value() -> impl Strategy<Value = Value> {
    let mut all: Vec<_> = types().into_iter().flat_map(|(.., values)| values).collect();
    all.extend([json!(null), json!(1.5), json!([[1], [2, 3]]), json!({"shape": [3], "data": [1]})]);
    let number = prop_oneof![0..20_i64, Just(1_000_000_000_000)].prop_map(Json::from);
    let json = prop_oneof![3 => number, 2 => select(all)];
    prop_oneof![9 => declared(json), 1 => buffer()]
}

/// Generates values that declare their natural type, or sometimes another one.
fn declared(json: impl Strategy<Value = Json>) -> impl Strategy<Value = Value> {
    use ValueType::*;
    let kinds = vec![Float, Integer, String, Boolean, Choice, Module, Embedding, Tensor, Map, List, Null];
    (json, prop_oneof![3 => Just(None), 1 => select(kinds).prop_map(Some)]).prop_map(|(json, kind)| {
        let natural_type = match &json {
            Json::Null => Null,
            Json::Bool(_) => Boolean,
            Json::Number(number) if number.is_f64() => Float,
            Json::Number(_) => Integer,
            Json::String(_) => String,
            Json::Array(_) => List,
            Json::Object(_) => Map,
        };
        Value { ty: kind.unwrap_or(natural_type), json, buffer: None }
    })
}

/// An array as a buffer, possibly of the wrong length.
fn buffer() -> impl Strategy<Value = Value> {
    let shape = select(vec![json!([2]), json!([2, 2]), json!([0])]);
    (shape, select(vec![0_usize, 8, 16])).prop_map(|(shape, bytes)| Value {
        ty: ValueType::Tensor,
        json: json!({ "dtype": "float32", "shape": shape }),
        buffer: Some(vec![7; bytes]),
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let entry = (select(vec!["k", "l", "m"]), select(vec!["", "v", "a longer one"]));
    let entries = vec(entry.prop_map(|(key, value)| (key.to_owned(), value.to_owned())), 1..3);
    prop_oneof![3 => Just(Metadata::new()), 1 => entries.prop_map(Metadata::from_iter)]
}

fn note() -> impl Strategy<Value = Note> {
    let by = prop_oneof![3 => Just(None), 1 => Just(Some(Arc::from("w-1")))];
    (any::<bool>(), by, metadata()).prop_map(|(python, changed_by, metadata)| Note {
        source: if python { Source::Python } else { Source::Host },
        changed_by,
        metadata: metadata.into(),
    })
}

fn program() -> impl Strategy<Value = ProgramView> {
    let ttl = option::weighted(0.2, Just(Duration::from_secs(1000)));
    (vec(any::<u8>(), 0..40), select(vec!["t", "a/b"]), metadata(), ttl).prop_map(
        |(data, content_type, metadata, ttl)| ProgramView {
            data,
            content_type: content_type.to_owned(),
            metadata,
            ttl,
        },
    )
}

/// The id or name of a variable that may exist. The first names are more frequent.
fn identifier(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(names).prop_map(str::to_owned),
        1 => (0_usize..8).prop_map(|n| format!("#{n}")),
    ]
}

/// Generates writes. Expected versions are small, so that they often exist.
fn write(names: &'static [&'static str]) -> impl Strategy<Value = Write> {
    let expected = option::weighted(0.3, 0_u32..5);
    (identifier(names), value(), note(), expected).prop_map(|(identifier, value, note, expected)| Write {
        identifier,
        value,
        note,
        expected,
    })
}

const NAMES: [&str; 6] = ["a", "a", "a", "b", "ab", "x y"];

/// A registration under one of a few names.
pub(super) fn register() -> impl Strategy<Value = Action> {
    let name = select(&["a", "b", "ab", "x y"][..]).prop_map(str::to_owned);
    let typed_value = select(types()).prop_flat_map(|(ty, constraints, values)| {
        let value = prop_oneof![8 => declared(select(values)), 1 => value()];
        (Just(ty), Just(constraints), value)
    });
    (name, typed_value, note()).prop_map(|(name, (ty, constraints, value), note)| Action::Register {
        name,
        ty,
        constraints: constraints.to_owned(),
        value,
        note,
    })
}

/// Any operation.
pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let identifier = || identifier(&NAMES);
    let program_name = || select(program_names().to_vec());
    let pattern = select(vec!["", "*", "a*", "*b", "a", "*y", "* *", "a*a", "ab*b"]).prop_map(str::to_owned);
    let is_global = || any::<bool>();
    let set_many = (vec(write(&NAMES), 0..4), any::<bool>()).prop_map(|(writes, atomic)| {
        Action::SetMany(writes, if atomic { Batch::Atomic } else { Batch::Each })
    });
    let programs = prop_oneof![
        3 => (is_global(), program_name(), program())
            .prop_map(|(is_global, name, program)| Action::PutProgram { is_global, name, program }),
        1 => (is_global(), program_name()).prop_map(|(is_global, name)| Action::Program { is_global, name }),
        1 => is_global().prop_map(|is_global| Action::Programs { is_global }),
        1 => (is_global(), program_name()).prop_map(|(is_global, name)| Action::DeleteProgram { is_global, name }),
    ];
    let action = prop_oneof![
        6 => metadata().prop_map(Action::Create),
        2 => Just(Action::Get),
        1 => Just(Action::Delete),
        1 => select(vec!["w-1", "w-2"]).prop_map(|worker| Action::SetLastWorker(worker.to_owned())),
        1 => Just(Action::Sessions),
        1 => Just(Action::Stats),
        4 => programs,
        10 => register(),
        2 => identifier().prop_map(Action::Variable),
        2 => vec(identifier(), 0..4).prop_map(Action::Variables),
        20 => write(&NAMES).prop_map(Action::Set),
        12 => set_many,
        2 => pattern.prop_map(Action::List),
        2 => identifier().prop_map(Action::DeleteVariable),
        3 => (identifier(), 0_usize..4).prop_map(|(identifier, limit)| Action::History { identifier, limit }),
        8 => (identifier(), 0_u32..4, note())
            .prop_map(|(identifier, version, note)| Action::Rollback { identifier, version, note }),
        4 => (vec(identifier(), 0..3), any::<bool>())
            .prop_map(|(identifiers, initial)| Action::Watch { identifiers, initial }),
    ];
    let session = prop_oneof![9 => Just(session()), 1 => select(sessions())];
    (session, action).prop_map(|(session, action)| Operation { session, action })
}

/// The ids of the sessions.
pub(super) fn sessions() -> Vec<SessionId> {
    ["s", "t", "u v"].map(|id| SessionId::try_new(id).expect("it is an id")).into()
}

/// The session of most operations.
pub(super) fn session() -> SessionId {
    sessions().swap_remove(0)
}

/// The names of programs.
pub(super) fn program_names() -> [ProgramName; 3] {
    ["p", "q", "r"].map(|name| ProgramName::try_new(name).expect("it is a name"))
}

/// The names of the variables that concurrent clients share.
pub(super) const SHARED_NAMES: [&str; 2] = ["a", "b"];

/// Generates actions for concurrent clients on one session.
pub(super) fn shared_action() -> impl Strategy<Value = Action> {
    let write = |identifier: BoxedStrategy<String>| {
        (identifier, 0_u32..1000, option::weighted(0.4, 0_u32..4)).prop_map(
            |(identifier, value, expected)| Write {
                identifier,
                value: integer(value),
                note: Note::default(),
                expected,
            },
        )
    };
    let any = || identifier(&SHARED_NAMES).boxed();
    let exactly = |name: &str| Just(name.to_owned()).boxed();
    prop_oneof![
        4 => (select(&SHARED_NAMES[..]), 0_u32..1000).prop_map(|(name, value)| register_shared(name, value)),
        16 => write(any()).prop_map(Action::Set),
        8 => any().prop_map(Action::Variable),
        2 => any().prop_map(Action::DeleteVariable),
        6 => [write(exactly("a")), write(exactly("b"))].prop_map(|both| Action::SetMany(both.into(), Batch::Atomic)),
        6 => [write(exactly("b")), write(exactly("a"))].prop_map(|both| Action::SetMany(both.into(), Batch::Atomic)),
        2 => [write(any()), write(any())].prop_map(|both| Action::SetMany(both.into(), Batch::Atomic)),
        4 => [write(any()), write(any())].prop_map(|both| Action::SetMany(both.into(), Batch::Each)),
        8 => Just(Action::Variables(SHARED_NAMES.map(str::to_owned).into())),
        6 => (any(), 0_u32..3).prop_map(|(identifier, version)| Action::Rollback {
            identifier,
            version,
            note: Note::default(),
        }),
        2 => Just(Action::List("*".to_owned())),
        2 => any().prop_map(|identifier| Action::History { identifier, limit: 0 }),
        1 => Just(Action::Delete),
        1 => Just(Action::Create(Metadata::new())),
    ]
}

/// Creates the registration of a variable that concurrent clients share.
pub(super) fn register_shared(name: &str, value: u32) -> Action {
    Action::Register {
        name: name.to_owned(),
        ty: ValueType::Integer,
        constraints: String::new(),
        value: integer(value),
        note: Note::default(),
    }
}

fn integer(value: u32) -> Value {
    Value { ty: ValueType::Integer, json: value.into(), buffer: None }
}

/// Generates limits, some of them low enough to cause rejections.
pub(super) fn limits() -> impl Strategy<Value = SessionLimits> {
    let low = |default: usize, low: &'static [usize]| prop_oneof![7 => Just(default), 1 => select(low)];
    let defaults = SessionLimits::default();
    let of_sessions = (
        low(defaults.max_sessions, &[1, 2]),
        prop_oneof![Just(defaults.max_session_bytes), 40..240_usize],
        low(defaults.max_metadata_entries, &[0, 1, 2]),
        low(defaults.max_metadata_bytes, &[3, 16]),
        low(defaults.max_program_bytes, &[0, 20]),
        low(defaults.max_programs, &[1, 2]),
    );
    let of_variables = (
        low(defaults.max_variables, &[0, 1, 2]),
        low(defaults.max_value_bytes, &[1, 4, 20]),
        low(defaults.max_history, &[0, 1, 2]),
        low(defaults.max_history_bytes, &[0, 2, 30]),
        low(defaults.max_watches, &[0, 1, 1, 2]),
        low(defaults.max_watch_backlog, &[0, 1, 3]),
        low(defaults.max_watch_backlog_bytes, &[0, 5, 20]),
    );
    (of_sessions, of_variables).prop_map(|(sessions, variables)| {
        let (max_sessions, max_session_bytes, max_metadata_entries, max_metadata_bytes, ..) = sessions;
        let (.., max_program_bytes, max_programs) = sessions;
        let (max_variables, max_value_bytes, max_history, max_history_bytes, ..) = variables;
        let (.., max_watches, max_watch_backlog, max_watch_backlog_bytes) = variables;
        SessionLimits::default()
            // The tests do not depend on time.
            .default_ttl(Duration::from_secs(24 * 3600))
            .max_sessions(max_sessions)
            .max_session_bytes(max_session_bytes)
            .max_metadata_entries(max_metadata_entries)
            .max_metadata_bytes(max_metadata_bytes)
            .max_program_bytes(max_program_bytes)
            .max_programs(max_programs)
            .max_variables(max_variables)
            .max_value_bytes(max_value_bytes)
            .max_history(max_history)
            .max_history_bytes(max_history_bytes)
            .max_watches(max_watches)
            .max_watch_backlog(max_watch_backlog)
            .max_watch_backlog_bytes(max_watch_backlog_bytes)
    })
}
