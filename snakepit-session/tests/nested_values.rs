//! Values with bytes and arrays inside them: round trips of generated values, and values that a hostile peer sends.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use snakepit_session::{Payload, PayloadError, ValueType, error_chain};
use tokio::time::Instant;

/// A value with parts of all kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Part {
    Nothing,
    Flag(bool),
    Number(i64),
    Large(u64),
    Float(f64),
    Text(String),
    Buffer(Bytes),
    Array(Vec<f32>),
    List(Vec<Part>),
    Map(BTreeMap<String, Part>),
    Pair { left: Box<Part>, right: Option<Box<Part>> },
}

fn texts() -> impl Strategy<Value = String> {
    // Texts that look like parts of an envelope, and those whose letters JSON escapes.
    prop_oneof![
        any::<String>(),
        prop::sample::select(vec![
            "__snakepit__",
            "offset",
            "length",
            "data",
            "bytes",
            "NaN",
            "Infinity",
            "\\u005f_snakepit__",
            "\"__snakepit__\"",
            "\\",
            "{",
            "}]\"",
        ])
        .prop_map(str::to_owned)
    ]
}

/// Keys other than that of an envelope. A map of a program with that key is an envelope.
fn keys() -> impl Strategy<Value = String> {
    texts().prop_filter("the key of an envelope", |key| key != "__snakepit__")
}

fn parts() -> impl Strategy<Value = Part> {
    let leaf = prop_oneof![
        Just(Part::Nothing),
        any::<bool>().prop_map(Part::Flag),
        any::<i64>().prop_map(Part::Number),
        any::<u64>().prop_map(Part::Large),
        any::<f64>().prop_filter("not equal to itself", |number| !number.is_nan()).prop_map(Part::Float),
        texts().prop_map(Part::Text),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Part::Buffer(bytes.into())),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Part::List),
            prop::collection::btree_map(keys(), inner.clone(), 0..4).prop_map(Part::Map),
            (inner.clone(), prop::option::of(inner))
                .prop_map(|(left, right)| Part::Pair { left: Box::new(left), right: right.map(Box::new) }),
        ]
    })
}

/// The same value with each letter of its keys escaped, as another client may write it.
fn with_escaped_keys(json: &str) -> String {
    let escape =
        |text: &str| text.chars().map(|letter| format!("\\u{:04x}", u32::from(letter))).collect::<String>();
    ["__snakepit__", "offset", "length"].into_iter().fold(json.to_owned(), |json, key| {
        json.replace(&format!("\"{key}\":"), &format!("\"{}\":", escape(key)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_arrive_as_they_were_sent(value in parts()) {
        let payload = Payload::try_from_serde(&value).unwrap();
        prop_assert_eq!(&payload.to_serde::<Part>().unwrap(), &value);
        let (json, buffers) = payload.clone().into_chunk_parts();
        Payload::check_buffers(&json, buffers.as_ref()).unwrap();
        prop_assert_eq!(&Payload::of_chunk(json, buffers).to_serde::<Part>().unwrap(), &value);
        // The form for other readers has base64.
        let plain = serde_json::to_string(&payload).unwrap();
        let plain: Payload = serde_json::from_str(&plain).unwrap();
        prop_assert_eq!(&plain.to_serde::<Part>().unwrap(), &value);
    }

    #[test]
    fn parts_keep_their_buffers_when_they_move(values in prop::collection::vec(parts(), 1..5), before in parts()) {
        let payloads: Vec<Payload> = values.iter().map(|value| Payload::try_from_serde(value).unwrap()).collect();
        let whole = Payload::try_from_serde(&(&before, Bytes::from_static(b"first"), &payloads)).unwrap();
        let (first, bytes, extracted): (Payload, Bytes, Vec<Payload>) = whole.to_serde().unwrap();
        prop_assert_eq!(&first.to_serde::<Part>().unwrap(), &before);
        prop_assert_eq!(bytes, "first");
        for (part, value) in extracted.iter().zip(&values) {
            prop_assert_eq!(&part.to_serde::<Part>().unwrap(), value);
        }
        // A part has only its own buffers.
        let sizes = |parts: &[Payload]| parts.iter().filter_map(Payload::binary).map(Bytes::len).sum::<usize>();
        prop_assert_eq!(sizes(&extracted), sizes(&payloads));
        let again = Payload::try_from_serde(&extracted).unwrap();
        prop_assert_eq!(&again.to_serde::<Vec<Part>>().unwrap(), &values);
    }

    #[test]
    fn keys_may_be_escaped(value in parts(), before in prop::collection::vec(any::<u8>(), 1..9)) {
        let payload = Payload::try_from_serde(&vec![value.clone()]).unwrap();
        let Some(json) = payload.nested_json() else { return Ok(()) };
        let escaped = with_escaped_keys(std::str::from_utf8(json).unwrap());
        let escaped = Payload::nested(escaped.as_bytes(), payload.binary().unwrap().clone());
        prop_assert_eq!(&escaped.to_serde::<Vec<Part>>().unwrap(), std::slice::from_ref(&value));
        // Inside of another value, its offsets differ.
        let outer = Payload::try_from_serde(&(Bytes::from(before.clone()), &escaped)).unwrap();
        let (first, [inner]): (Bytes, [Part; 1]) = outer.to_serde().unwrap();
        prop_assert_eq!(&first[..], &before[..]);
        prop_assert_eq!(inner, value);
    }

    #[test]
    fn any_text_is_rejected_or_read(json in hostile_json(), buffers in prop::collection::vec(any::<u8>(), 0..12)) {
        let item = format!(r#"{{"binary_format":"nested","value":{json}}}"#);
        let buffers = Bytes::from(buffers);
        let ty = if json.starts_with('{') { ValueType::Map } else { ValueType::List };
        if let Ok(payload) = Payload::declared_buffer(ty, item.into(), buffers.clone()) {
            let value: serde_json::Value = payload.to_serde().unwrap_or_default();
            // No byte is there twice.
            prop_assert!(value.to_string().len() <= json.len() + buffers.len() * 4 + 64);
            if let Ok(outer) = Payload::try_from_serde(&(Bytes::from_static(b"secret"), &payload)) {
                let (_, inner): (Bytes, Payload) = outer.to_serde().unwrap();
                prop_assert_eq!(inner.to_serde::<serde_json::Value>().unwrap_or_default(), value);
            }
        }
    }
}

/// Lists of maps that resemble envelopes.
fn hostile_json() -> impl Strategy<Value = String> {
    let number = prop::sample::select(vec![
        "0",
        "1",
        "3",
        "4",
        "9",
        "-1",
        "1.0",
        "1e0",
        "\"1\"",
        "null",
        "[]",
        "18446744073709551615",
        "18446744073709551616",
        "true",
    ]);
    let entry = prop_oneof![
        prop::sample::select(vec![
            r#""bytes""#,
            r#""tensor""#,
            r#""map""#,
            r#""other""#,
            "1",
            r#""byte\u0073""#
        ])
        .prop_map(|kind| format!(r#""__snakepit__":{kind}"#)),
        number.clone().prop_map(|number| format!(r#""offset":{number}"#)),
        number.clone().prop_map(|number| format!(r#""off\u0073et":{number}"#)),
        number.prop_map(|number| format!(r#""length":{number}"#)),
        Just(r#""data":"AAAA""#.to_owned()),
        Just(r#""shape":[1]"#.to_owned()),
        Just(r#""dtype":"int8""#.to_owned()),
        Just(r#""items":[["__snakepit__",1]]"#.to_owned()),
        Just(r#""inner":{"__snakepit__":"bytes","offset":0,"length":1}"#.to_owned()),
    ];
    let map = prop::collection::vec(entry, 0..5).prop_map(|entries| format!("{{{}}}", entries.join(",")));
    prop::collection::vec(map, 0..4).prop_map(|maps| format!("[{}]", maps.join(",")))
}

fn problem(json: &str, buffers: &'static [u8]) -> String {
    let item = format!(r#"{{"binary_format":"nested","value":{json}}}"#);
    let declared = Payload::declared_buffer(ValueType::List, item.into(), Bytes::from_static(buffers));
    match declared {
        Err(PayloadError::Nested { problem, .. }) => problem,
        other => panic!("{json} is {other:?}"),
    }
}

#[test]
fn invalid_references_are_rejected_where_a_value_arrives() {
    let bytes = |fields: &str| format!(r#"[{{"__snakepit__":"bytes",{fields}}}]"#);
    for (fields, expected) in [
        (r#""offset":1,"length":8"#, "refers to bytes 1 to 9 of its buffers, which have 8 bytes"),
        (r#""offset":8,"length":1"#, "refers to bytes 8 to 9"),
        (r#""offset":1,"length":18446744073709551615"#, "beyond the size of any buffer"),
        (
            r#""offset":1,"length":18446744073709551616"#,
            "`length` is 18446744073709551616, expected a number of bytes",
        ),
        (r#""offset":-1,"length":1"#, "`offset` is -1, expected a number of bytes"),
        (r#""offset":"1","length":1"#, "`offset` is \"1\", expected a number of bytes"),
        (r#""offset":1.0,"length":1"#, "`offset` is 1.0"),
        (r#""offset":[1],"length":1"#, "`offset` is , expected"),
        (r#""offset":0,"offset":1,"length":1"#, "contains bytes with a key that is there twice"),
        (r#""offset":0,"\u006fffset":1,"length":1"#, "with a key that is there twice"),
        (r#""__snakepit__":"bytes","offset":1,"length":1"#, "with a key that is there twice"),
        (r#""offset":0"#, "needs either `data` as base64 text, or `offset` and `length`"),
        (r#""offset":0,"length":1,"data":"AA==""#, "needs either `data`"),
        (r#""a":1"#, "needs either `data`"),
        (
            r#""offset":0,"length":1,"a":{"__snakepit__":"bytes","data":""}"#,
            "with another envelope inside of it",
        ),
    ] {
        let found = problem(&bytes(fields), b"12345678");
        assert!(found.contains(expected), "{fields}: {found}");
    }
    let two = |first: &str, second: &str| {
        format!(
            r#"[{{"__snakepit__":"bytes",{first}}},{{"__snakepit__":"tensor","shape":[1],"dtype":"int8",{second}}}]"#
        )
    };
    for (first, second) in [
        (r#""offset":0,"length":5"#, r#""offset":4,"length":1"#),
        (r#""offset":4,"length":1"#, r#""offset":0,"length":5"#),
        (r#""offset":2,"length":1"#, r#""offset":2,"length":1"#),
    ] {
        let found = problem(&two(first, second), b"12345678");
        assert!(found.contains("refers to the same bytes of its buffers twice"), "{found}");
    }
    // In any order, with gaps, and with empty parts anywhere.
    let json = two(r#""offset":6,"length":1"#, r#""offset":1,"length":1"#);
    let empty = r#",{"__snakepit__":"bytes","offset":6,"length":0}]"#;
    let item = format!(r#"{{"binary_format":"nested","value":{}{empty}}}"#, json.trim_end_matches(']'));
    Payload::declared_buffer(ValueType::List, item.into(), Bytes::from_static(b"12345678")).unwrap();
    let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
    assert!(
        problem(&format!(r#"[{{"__snakepit__":"other"}},{deep}]"#), b"").contains("deeper than 127 levels")
    );
    let long = format!(r#""offset":0,"length":1,"class":"{}""#, "x".repeat(5000));
    assert!(problem(&bytes(&long), b"1").contains("bytes, the limit is 4096"));
}

#[test]
fn an_envelope_inside_of_another_value_does_not_reach_its_buffers() {
    // Values of a peer without buffers.
    let json = r#"{"__snakepit__":"bytes","offset":0,"length":6}"#;
    let declared = Payload::declared(ValueType::Map, json.into()).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(json).unwrap();
    let secret = Bytes::from_static(b"secret");
    for result in [
        Payload::try_from_serde(&(&secret, &declared)),
        Payload::try_from_serde(&(&declared, &secret)),
        Payload::try_from_serde(&(&secret, &parsed)),
        Payload::try_from_serde(&(&parsed, &secret)),
    ] {
        let error = error_chain(&result.unwrap_err()).to_string();
        assert!(error.contains("of its buffers"), "{error}");
    }
    assert!(serde_json::from_str::<Payload>(json).is_err());
}

#[test]
fn a_million_envelopes_take_bounded_time() {
    let count = 1_000_000;
    let envelope = |at: usize| format!(r#"{{"__snakepit__":"bytes","offset":{at},"length":1}}"#);
    let buffers = Bytes::from(vec![7; count]);
    // In reverse, so that they are sorted.
    let json = format!("[{}]", (0..count).rev().map(envelope).collect::<Vec<_>>().join(","));
    let item = format!(r#"{{"binary_format":"nested","value":{json}}}"#);
    let begin = Instant::now();
    let payload = Payload::declared_buffer(ValueType::List, item.into(), buffers.clone()).unwrap();
    let parts: Vec<Payload> = payload.to_serde().unwrap();
    assert!(parts.len() == count && parts[0].binary().unwrap() == "\x07");
    // Tens of times what an unoptimized build needs on a busy machine.
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());

    let twice = format!("[{},{}]", envelope(0), (0..count).map(envelope).collect::<Vec<_>>().join(","));
    let item = format!(r#"{{"binary_format":"nested","value":{twice}}}"#);
    assert!(Payload::declared_buffer(ValueType::List, item.into(), buffers).is_err());
}

#[test]
fn parts_are_read_from_their_text() {
    #[derive(Deserialize)]
    struct Fields<'a> {
        image: Bytes,
        numbers: Payload,
        not_a_number: Payload,
        text: Payload,
        #[serde(borrow)]
        raw: &'a RawValue,
        signed: i128,
        unsigned: u128,
    }
    let json = r#"{"numbers":[123456789012345678901234567890,1e2,1.50],"image":{"__snakepit__":"bytes","offset":0,"length":3},"not_a_number":"\u004eaN","text":"NaN","raw": [1e2],"signed":-170141183460469231731687303715884105728,"unsigned":340282366920938463463374607431768211455}"#;
    let value = Payload::nested(json.as_bytes(), Bytes::from_static(b"PNG"));
    let fields: Fields<'_> = value.read(std::marker::PhantomData).unwrap();
    assert_eq!((&fields.image[..], fields.raw.get()), (&b"PNG"[..], "[1e2]"));
    assert_eq!(&fields.numbers.json()[..], b"[123456789012345678901234567890,1e2,1.50]");
    assert_eq!((fields.not_a_number.ty(), fields.text.ty()), (ValueType::Float, ValueType::String));
    assert!(fields.not_a_number.to_float().unwrap().is_nan());
    assert_eq!((fields.signed, fields.unsigned), (i128::MIN, u128::MAX));
    // Large base64 of a client without buffers is bytes, too.
    let data = "AAAA".repeat(4000);
    let [large] =
        serde_json::from_str::<[Payload; 1]>(&format!(r#"[{{"__snakepit__":"bytes","data":"{data}"}}]"#))
            .unwrap();
    assert_eq!((large.ty(), large.binary().map(Bytes::len)), (ValueType::Bytes, Some(12_000)));
}

#[test]
fn a_map_with_the_key_of_envelopes_is_a_map() {
    let json = r#"[{"__snakepit__":"map","items":[["__snakepit__","bytes"],["a",{"__snakepit__":"bytes","offset":0,"length":1}]]}]"#;
    let value = Payload::nested(json.as_bytes(), Bytes::from_static(b"x"));
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "__snakepit__")]
        kind: String,
        a: Bytes,
    }
    let [entry] = value.to_serde::<[Entry; 1]>().unwrap();
    assert_eq!((&*entry.kind, &entry.a[..]), ("bytes", &b"x"[..]));
    let [part] = value.to_serde::<[Payload; 1]>().unwrap();
    assert_eq!(part.to_serde::<Entry>().unwrap().a, "x");
    let plain = r#"[{"__snakepit__":"map","items":[["__snakepit__",1]]}]"#;
    let maps: Vec<BTreeMap<String, u8>> = Payload::of_json(plain.into()).to_serde().unwrap();
    assert_eq!(maps, [BTreeMap::from([("__snakepit__".to_owned(), 1)])]);
}

#[test]
fn malformed_json_around_an_envelope_is_an_error() {
    let bytes = r#"{"__snakepit__":"bytes","offset":0,"length":1}"#;
    for json in [
        "[B,]",
        "[B B]",
        "[B",
        "B]",
        "[,B]",
        r#"{"a":B,}"#,
        r#"{"a" B}"#,
        r#"{1:B}"#,
        "[B,01]",
        "[B,+1]",
        "[B,1.]",
        "[B,nul]",
        "[B,\"\x01\"]",
        "[B,\"\\x\"]",
        "[B]]",
        "[B]1",
        "[B,\"]",
        "[B,-]",
        "[B,1e999]",
        "[B,\"\\ud800\"]",
        "[B}",
        "[[B}]",
    ] {
        let json = json.replace('B', bytes);
        let value = Payload::nested(json.as_bytes(), Bytes::from_static(b"x"));
        assert!(value.to_serde::<serde_json::Value>().is_err(), "{json}");
    }
    let deep = format!("{}{bytes}{}", "[".repeat(127), "]".repeat(127));
    let value = Payload::nested(deep.as_bytes(), Bytes::from_static(b"x"));
    assert!(value.to_serde::<serde_json::Value>().is_err());
}
