//! Tests of host tools made from closures.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snakepit_session::Payload;

use super::*;
use crate::{Json, ReplyBody};

#[derive(Deserialize)]
struct Scale {
    values: Vec<f64>,
    #[serde(default)]
    factor: Option<f64>,
}

fn scale() -> FnTool {
    FnTool::typed("scale", |s: Scale| async move {
        let factor = s.factor.unwrap_or(2.0);
        if factor == 0.0 {
            return Err("factor is zero");
        }
        assert!(factor > 0.0, "negative factor");
        Ok(s.values.iter().map(|v| v * factor).collect::<Vec<_>>())
    })
}

async fn call(tool: &FnTool, args: Value) -> Result<Value, ToolError> {
    let mut call = ToolCall::new(tool.spec().name.as_str());
    let Value::Object(args) = args else { panic!("not an object") };
    call.arguments = args.into_iter().map(|(k, v)| (k, Payload::try_from_serde(&v).unwrap())).collect();
    match tool.call(call).await?.body {
        ReplyBody::Value(value) => Ok(value.to_serde().unwrap()),
        ReplyBody::Stream(_) => panic!("a stream"),
    }
}

#[tokio::test]
async fn arguments_and_results_are_converted_with_serde() {
    assert_eq!(call(&scale(), json!({"values": [1, 2.5]})).await.unwrap(), json!([2.0, 5.0]));
    assert_eq!(call(&scale(), json!({"values": [1], "factor": 3})).await.unwrap(), json!([3.0]));
    assert_eq!(call(&scale(), json!({"values": [1], "factor": null})).await.unwrap(), json!([2.0]));
}

#[tokio::test]
async fn errors_panics_and_invalid_arguments_are_reported_as_different_errors() {
    let failed = call(&scale(), json!({"values": [1], "factor": 0})).await.unwrap_err();
    assert!(matches!(&failed, ToolError::Failed(f) if f.message == "factor is zero"), "{failed}");
    let panicked = call(&scale(), json!({"values": [1], "factor": -1})).await.unwrap_err();
    assert!(panicked.to_string().contains("panicked: negative factor"), "{panicked}");
    let missing = call(&scale(), json!({"factor": 1})).await.unwrap_err();
    assert!(matches!(&missing, ToolError::InvalidArguments { .. }), "{missing}");
    assert!(missing.to_string().contains("`values`"), "{missing}");
    let wrong = call(&scale(), json!({"values": "x"})).await.unwrap_err();
    assert!(wrong.to_string().contains("argument `values` of tool `scale`"), "{wrong}");
}

#[derive(Serialize)]
struct Score {
    value: f64,
}

#[derive(Debug, thiserror::Error)]
#[error("the shelf is empty")]
struct OutOfStock;

#[tokio::test]
async fn tools_return_values_with_and_without_a_result() {
    let answer = async |tool: FnTool| call(&tool, json!({})).await.unwrap();
    assert_eq!(answer(FnTool::typed("t", |(): ()| async { 1 })).await, json!(1));
    assert_eq!(answer(FnTool::typed("t", |(): ()| async { "text" })).await, json!("text"));
    assert_eq!(answer(FnTool::typed("t", |(): ()| async {})).await, json!(null));
    assert_eq!(answer(FnTool::typed("t", |(): ()| async { vec![Some(1), None] })).await, json!([1, null]));
    assert_eq!(answer(FnTool::typed("t", |(): ()| async { json!({"a": 1}) })).await, json!({"a": 1}));
    let score = || Score { value: 0.5 };
    assert_eq!(
        answer(FnTool::typed("t", move |(): ()| async move { Json(score()) })).await,
        json!({"value": 0.5})
    );
    let checked = move |(): ()| async move { Ok::<_, OutOfStock>(score()) };
    assert_eq!(answer(FnTool::typed("t", checked)).await, json!({"value": 0.5}));
}

#[tokio::test]
async fn tools_return_payloads_with_their_buffer() {
    let bytes = || Payload::bytes(Bytes::from_static(&[1, 2]));
    let plain = FnTool::typed("t", move |(): ()| async move { bytes() });
    let checked = FnTool::typed("t", move |(): ()| async move { Ok::<_, OutOfStock>(bytes()) });
    for tool in [plain, checked] {
        let reply = tool.call(ToolCall::new("t")).await.unwrap();
        assert!(matches!(reply.body, ReplyBody::Value(value) if value == bytes()));
        let reply = tool.call(ToolCall::new("t").streaming()).await.unwrap();
        let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
        assert_eq!(chunks.next().await.unwrap().unwrap().into_value(), bytes());
    }
}

#[tokio::test]
async fn errors_have_the_name_of_their_type() {
    let failure_fields = async |tool: FnTool| {
        let error = call(&tool, json!({})).await.unwrap_err();
        error.failure().map(|f| (f.tool.clone(), f.error_type.clone(), f.message.clone())).unwrap()
    };
    let expected = |ty: &str, text: &str| ("t".to_owned(), ty.to_owned(), text.to_owned());
    let custom = FnTool::typed("t", |(): ()| async { Err::<Score, _>(OutOfStock) });
    assert_eq!(failure_fields(custom).await, expected("OutOfStock", "the shelf is empty"));
    // The types of these errors serialize, but an error never becomes an answer.
    let text = FnTool::typed("t", |(): ()| async { Err::<i64, _>("no".to_owned()) });
    assert_eq!(failure_fields(text).await, expected("HostToolError", "no"));
    let value = FnTool::typed("t", |(): ()| async { Err::<Payload, _>(json!("no")) });
    assert_eq!(failure_fields(value).await, expected("Value", "\"no\""));
}

#[tokio::test]
async fn binary_arguments_deserialize_into_bytes() {
    #[derive(Deserialize)]
    struct Image {
        data: Bytes,
        name: String,
    }
    let tool =
        FnTool::typed("size", |image: Image| async move { format!("{}:{}", image.name, image.data.len()) });
    let mut call = ToolCall::new("size").try_with_argument("name", "cat").unwrap();
    call.arguments.insert("data".into(), Payload::bytes(Bytes::from_static(&[0, 1, 2])));
    let ReplyBody::Value(value) = tool.call(call).await.unwrap().body else { panic!("a stream") };
    assert_eq!(value.to_serde::<String>().unwrap(), "cat:3");
}

#[tokio::test]
async fn arrays_deserialize_into_lists_of_numbers() {
    let mut call = ToolCall::new("scale");
    call.arguments.insert("values".into(), Payload::tensor(&[2], &[1.0_f32, 2.5]).unwrap());
    let ReplyBody::Value(value) = scale().call(call).await.unwrap().body else { panic!("a stream") };
    assert_eq!(value.to_serde::<Vec<f64>>().unwrap(), [2.0, 5.0]);
    let mut call = ToolCall::new("scale");
    call.arguments.insert("values".into(), Payload::tensor(&[1, 1], &[1.0]).unwrap());
    let rejected = scale().call(call).await.unwrap_err().to_string();
    assert!(rejected.contains("argument `values` of tool `scale`"), "{rejected}");
}

#[tokio::test]
async fn whole_floats_are_valid_integers_at_any_depth() {
    #[derive(Deserialize, Serialize)]
    struct Page {
        #[serde(flatten)]
        size: Size,
        first: Option<u8>,
        offsets: Vec<i64>,
        by_number: HashMap<u32, i32>,
        scale: f64,
        wide: i128,
        #[serde(default)]
        any: Value,
    }
    #[derive(Deserialize, Serialize)]
    struct Size {
        rows: u64,
        columns: i64,
    }
    #[derive(Deserialize, Serialize)]
    struct Pages {
        pages: Vec<Page>,
        count: usize,
    }
    let tool = FnTool::typed("pages", |pages: Pages| async move { Json(pages) });
    let page = |first: Value, scale: Value| {
        json!({"rows": 5.0, "columns": -7.0, "first": first, "offsets": [1, 2.0, -0.0, 9_007_199_254_740_992.0],
               "by_number": {"7": 8.0}, "scale": scale, "wide": 9.0, "any": [0.5, "5.0"]})
    };
    let arguments =
        json!({"pages": [page(json!(200.0), json!(-0.0)), page(json!(null), json!(5))], "count": 2.0});
    let pages: Pages = serde_json::from_value(call(&tool, arguments).await.unwrap()).unwrap();
    let [first, second] = &pages.pages[..] else { panic!("two pages") };
    assert_eq!((first.size.rows, first.size.columns, first.first, first.wide), (5, -7, Some(200), 9));
    assert_eq!((&first.offsets[..], first.by_number[&7]), (&[1, 2, 0, 1 << 53][..], 8));
    assert!(first.scale == 0.0 && first.scale.is_sign_negative());
    assert_eq!((second.first, second.scale, &second.any), (None, 5.0, &json!([0.5, "5.0"])));

    // Rejects fractions, floats beyond the exact integers, and values out of the type's range.
    for (argument, bad) in [
        ("count", json!(5.5)),
        ("count", json!(-1.0)),
        ("count", json!(1e300)),
        ("count", json!(9_007_199_254_740_994.0)),
        ("count", json!("NaN")),
        ("pages", json!([page(json!(256.0), json!(0))])),
        ("pages", json!([page(json!(0.5), json!(0))])),
    ] {
        let mut arguments = json!({"pages": [], "count": 1});
        arguments[argument] = bad;
        let rejected = call(&tool, arguments.clone()).await.unwrap_err();
        assert!(matches!(rejected, ToolError::InvalidArguments { .. }), "{arguments}: {rejected}");
        let prefix = format!("argument `{argument}` of tool `pages`");
        assert!(rejected.to_string().contains(&prefix), "{arguments}: {rejected}");
    }
}

#[tokio::test]
async fn arrays_of_whole_floats_deserialize_into_lists_of_integers() {
    let tool =
        FnTool::typed(
            "sum",
            |args: HashMap<String, Vec<i64>>| async move { args["items"].iter().sum::<i64>() },
        );
    let sum = async |items: &[f64]| {
        let mut call = ToolCall::new("sum");
        call.arguments.insert("items".into(), Payload::tensor(&[items.len()], items).unwrap());
        tool.call(call).await.map(|reply| match reply.body {
            ReplyBody::Value(value) => value.to_serde::<i64>().unwrap(),
            ReplyBody::Stream(_) => panic!("a stream"),
        })
    };
    assert_eq!(sum(&[5.0, -1.0]).await.unwrap(), 4);
    for bad in [5.5, f64::NAN, f64::INFINITY] {
        assert!(sum(&[bad]).await.unwrap_err().to_string().contains("argument `items` of tool `sum`"));
    }
}

#[tokio::test]
async fn an_error_ends_a_stream() {
    let tool = FnTool::new("count", |n: Value| {
        let n = n["n"].as_u64().unwrap_or_default();
        futures_util::stream::iter(0..=n).map(move |i| if i < n { Ok(i) } else { Err("enough") })
    });
    let call = ToolCall::new("count").try_with_argument("n", &2).unwrap().streaming();
    let ReplyBody::Stream(chunks) = tool.call(call).await.unwrap().body else { panic!("a value") };
    let items: Vec<_> = chunks.map(|chunk| chunk.map(|chunk| chunk.data)).collect().await;
    assert_eq!(items.len(), 3);
    assert_eq!(items[1].as_ref().unwrap(), "1");
    assert!(items[2].as_ref().unwrap_err().to_string().contains("enough"));
}

async fn value_of(tool: &FnTool, call: ToolCall) -> Result<Value, ToolError> {
    match tool.call(call).await?.body {
        ReplyBody::Value(value) => Ok(value.to_serde().unwrap()),
        ReplyBody::Stream(_) => panic!("a stream"),
    }
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Tenant(u32);

#[tokio::test]
async fn closures_take_up_to_eight_extractors_in_any_order() {
    let mut state = HostState::default();
    state.insert(5_u8);
    state.insert("shared".to_owned());
    let tool = FnTool::new(
        "t",
        |State(five): State<u8>,
         context: ToolContext,
         Args(named): Args<Named>,
         State(text): State<String>,
         tenant: Option<Extension<Tenant>>,
         again: Named,
         Extension(present): Extension<Tenant>,
         missing: Option<Extension<u64>>| async move {
            json!([
                five,
                context.tool.as_ref(),
                context.metadata["k"],
                named.name,
                text,
                tenant.unwrap().0.0,
                again.name,
                present.0,
                missing.is_none()
            ])
        },
    );
    let tool = tool.with_state(Arc::new(state));
    let mut call = ToolCall::new("t").try_with_argument("name", "cat").unwrap();
    call.metadata.insert("k".into(), "v".into());
    call.extensions.insert(Tenant(7));
    let answer = value_of(&tool, call).await.unwrap();
    assert_eq!(answer, json!([5, "t", "v", "cat", "shared", 7, "cat", 7, true]));
}

#[tokio::test]
async fn missing_state_fails_the_registration_and_a_missing_extension_the_call() {
    let takes_state = FnTool::new("t", |State(n): State<u16>| async move { n });
    let error = crate::Registry::new().register_host_tool(takes_state.clone()).unwrap_err().to_string();
    assert_eq!(
        error,
        "host tool `t` needs a `State<u16>`, which the host does not have; set a value of that type by `Builder::state`"
    );
    let unregistered = value_of(&takes_state, ToolCall::new("t")).await.unwrap_err();
    assert!(matches!(unregistered, ToolError::Internal { .. }), "{unregistered}");
    let takes_extension = FnTool::new("t", |Extension(tenant): Extension<Tenant>| async move { tenant.0 });
    let error = value_of(&takes_extension, ToolCall::new("t")).await.unwrap_err();
    assert_eq!(
        error.error_type(),
        Some("MissingExtension"),
        "the mistake is in the program, not in the host: {error}"
    );
    let error = error.to_string();
    assert!(error.contains("Tenant") && error.contains("which no layer attached to the call"), "{error}");
}

#[tokio::test]
async fn functions_and_streams_of_any_kind_are_tools() {
    async fn plain(named: Named) -> String {
        named.name
    }
    let call = || ToolCall::new("t").try_with_argument("name", "cat").unwrap();
    assert_eq!(value_of(&FnTool::new("t", plain), call()).await.unwrap(), json!("cat"));
    let boxed = |named: Named| -> Pin<Box<dyn Stream<Item = String> + Send>> {
        Box::pin(futures_util::stream::iter([named.name.clone(), named.name]))
    };
    let tool = FnTool::new("t", boxed);
    assert!(tool.spec().supports_streaming);
    let ReplyBody::Stream(chunks) = tool.call(call().streaming()).await.unwrap().body else {
        panic!("a value")
    };
    let items: Vec<_> = chunks.map(|chunk| chunk.unwrap().data).collect().await;
    assert_eq!(items, ["\"cat\"", "\"cat\""]);
    let panicking = FnTool::new("t", |named: Named| {
        assert_ne!(named.name, "cat", "no cats");
        async {}
    });
    let error = value_of(&panicking, call()).await.unwrap_err().to_string();
    assert!(error.contains("panicked") && error.contains("no cats"), "{error}");
}

#[tokio::test]
async fn an_optional_payload_is_the_payload_or_null() {
    for (present, expected) in [(true, Payload::bytes(Bytes::from_static(&[1]))), (false, Payload::null())] {
        let payload = move || present.then(|| Payload::bytes(Bytes::from_static(&[1])));
        let plain = FnTool::new("t", move || async move { payload() });
        let checked = FnTool::new("t", move || async move { Ok::<_, String>(payload()) });
        for tool in [plain, checked] {
            let ReplyBody::Value(value) = tool.call(ToolCall::new("t")).await.unwrap().body else {
                panic!("a stream")
            };
            assert_eq!(value, expected);
        }
    }
}

/// Panics when it is dropped. Does not panic during another panic, because that would abort the process.
struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "in a destructor");
    }
}

#[tokio::test]
async fn panics_of_destructors_do_not_reach_the_task_that_drops_a_call() {
    let registry = crate::Registry::new();
    let held = FnTool::new("held", || async {
        let _held = PanicsInDrop;
        std::future::pending::<()>().await;
    });
    let items = FnTool::new("items", || {
        let held = PanicsInDrop;
        futures_util::stream::repeat(1).map(move |item| item + size_of_val(&held))
    });
    let payload = FnTool::new("payload", || async { std::panic::panic_any(PanicsInDrop) as () });
    for tool in [held.clone(), items.clone(), payload.clone()] {
        registry.register_host_tool(tool).unwrap();
    }
    for (tool, name) in [(held, "handled"), (items, "handled_items"), (payload, "handled_payload")] {
        let spec = ToolSpec { name: name.to_owned(), ..tool.spec().clone() };
        registry.register_host_handler(spec, Arc::new(tool)).unwrap();
    }
    for (held, items, payload) in
        [("held", "items", "payload"), ("handled", "handled_items", "handled_payload")]
    {
        let [held, items, payload] =
            [held, items, payload].map(|name| (name, registry.resolve(name).unwrap()));
        let mut running = held.1.begin(ToolCall::new(held.0)).unwrap();
        assert!(futures_util::poll!(&mut running).is_pending());
        drop(running);
        let reply = items.1.begin(ToolCall::new(items.0).streaming()).unwrap().await.unwrap();
        let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
        assert_eq!(chunks.next().await.unwrap().unwrap().data, "1");
        drop(chunks);
        let error = payload.1.begin(ToolCall::new(payload.0)).unwrap().await.unwrap_err();
        assert!(error.failure().is_some_and(|failure| failure.error_type == "panic"), "{error}");
    }
}

#[tokio::test]
async fn an_enum_takes_the_name_of_a_variant() {
    #[derive(Debug, Deserialize, schemars::JsonSchema)]
    #[allow(dead_code, reason = "`Debug` reads the fields")]
    enum Kind {
        Plain,
        With(i64),
        Named { x: f64 },
    }
    let tool = FnTool::new("kind", |kind: Kind| async move { format!("{kind:?}") });
    for (arguments, expected) in [
        (json!({"Plain": null}), "Plain"),
        (json!({"With": 5}), "With(5)"),
        (json!({"With": 5.0}), "With(5)"),
        (json!({"Named": {"x": 1}}), "Named { x: 1.0 }"),
    ] {
        assert_eq!(call(&tool, arguments).await.unwrap(), expected);
    }
    let optional = FnTool::new("kind", |kind: Option<Kind>| async move { format!("{kind:?}") });
    assert_eq!(call(&optional, json!({"With": 5})).await.unwrap(), "Some(With(5))");
    assert_eq!(call(&optional, json!({})).await.unwrap(), "None");
    for (arguments, problem) in [
        (json!({}), "argument `arguments` of tool `kind` does not fit: the tool takes exactly one"),
        (
            json!({"With": 5, "Plain": null}),
            "the tool takes exactly one, whose name is that of a variant: Plain, With, Named",
        ),
        (json!({"With": "x"}), "argument `With` of tool `kind` does not fit: invalid type"),
        (json!({"Other": 1}), "argument `Other` of tool `kind` does not fit: unknown variant"),
    ] {
        let error = call(&tool, arguments).await.unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn nan_and_infinities_arrive_as_numbers() {
    let number = value_of(&FnTool::new("t", || async { f64::NAN }), ToolCall::new("t")).await;
    assert_eq!(number.unwrap(), "NaN", "without a request for a number, it is text");
    let tool = FnTool::new("t", || futures_util::stream::iter([f64::NAN, f64::NEG_INFINITY, 1.0]));
    let ReplyBody::Stream(chunks) = tool.call(ToolCall::new("t").streaming()).await.unwrap().body else {
        panic!("a value")
    };
    let read = |chunk: Result<Chunk, ToolError>| chunk.unwrap().into_value().to_serde::<f64>().unwrap();
    let numbers: Vec<f64> = chunks.map(read).collect().await;
    assert!(numbers[0].is_nan() && numbers[1..] == [f64::NEG_INFINITY, 1.0], "{numbers:?}");
}

#[tokio::test]
async fn an_answer_that_is_nested_too_deep_is_a_failure() {
    let nest = |levels: usize| (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    let tool = FnTool::new("t", move || async move { nest(5000) });
    let error = value_of(&tool, ToolCall::new("t")).await.unwrap_err().to_string();
    assert!(error.contains("nested deeper than 127 levels; return a flatter structure"), "{error}");
    let tool = FnTool::new("t", move || async move { nest(127) });
    assert_eq!(value_of(&tool, ToolCall::new("t")).await.unwrap(), nest(127));
}
