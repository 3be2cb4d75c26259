//! Tests of derived parameters.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_session::Payload;

use crate::{Args, Arguments, FnTool, Registry, ReplyBody, ToolCall, ToolContext, ToolError, ToolSpec};

#[derive(Deserialize, JsonSchema)]
#[allow(dead_code, reason = "the tests read the schema")]
struct Order {
    /// The name on the label.
    #[serde(alias = "product", alias = "article")]
    item: String,
    count: u32,
    #[serde(default = "one")]
    rate: f64,
    note: Option<String>,
    tags: Vec<String>,
    #[serde(default)]
    size: BTreeMap<String, f32>,
    express: bool,
    image: Bytes,
    any: Value,
    #[serde(rename = "from")]
    origin: Origin,
    #[serde(skip)]
    internal: u8,
    parts: Option<Box<Part>>,
}

#[derive(Deserialize, JsonSchema)]
#[allow(dead_code, reason = "the tests read the schema")]
struct Part {
    name: String,
    part: Option<Box<Part>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Origin {
    Near,
    Far,
}

fn one() -> f64 {
    1.0
}

fn spec_of<M>(tool: impl crate::ToolFn<M>) -> ToolSpec {
    FnTool::new("t", tool).spec().clone()
}

#[test]
fn a_struct_describes_its_parameters_in_their_order() {
    let spec = spec_of(|_: Order| async {});
    let described: Vec<_> =
        spec.parameters.iter().map(|p| (p.name.as_str(), p.type_name.as_str(), p.required)).collect();
    assert_eq!(
        described,
        [
            ("item", "string", true),
            ("count", "integer", true),
            ("rate", "float", false),
            ("note", "string", false),
            ("tags", "list", true),
            ("size", "map", false),
            ("express", "boolean", true),
            ("image", "any", true),
            ("any", "any", true),
            ("from", "string", true),
            ("parts", "map", false),
        ]
    );
    assert!(spec.closed);
    let of_item = |alias: &str| (alias.to_owned(), vec!["item".to_owned()]);
    assert_eq!(spec.aliases(), [of_item("article"), of_item("product")].into());
    let parameter = |name: &str| spec.parameters.iter().find(|p| p.name == name).unwrap();
    assert_eq!(parameter("item").description, "The name on the label.");
    assert_eq!(parameter("rate").default, Some(Payload::try_from_serde(&1.0).unwrap()));
    assert_eq!(parameter("note").default, Some(Payload::null()));
    let origin: Value = serde_json::from_str(&parameter("from").validation_json).unwrap();
    assert_eq!(origin["enum"], json!(["near", "far"]));
    let parts: Value = serde_json::from_str(&parameter("parts").validation_json).unwrap();
    assert!(parts["$defs"]["Part"].is_object(), "the schema of a recursive type stands alone: {parts}");
}

#[derive(Deserialize, JsonSchema)]
#[allow(dead_code, reason = "the tests read the schema")]
struct Flat {
    count: u32,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

#[derive(Deserialize, JsonSchema)]
struct Nothing;

#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
#[allow(dead_code, reason = "the tests read the schema")]
struct Wrapped(Flag);

#[derive(Deserialize, JsonSchema)]
#[allow(dead_code, reason = "the tests read the schema")]
struct Flag {
    flag: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(tag = "kind")]
#[allow(dead_code, reason = "the tests read the schema")]
enum Tagged {
    One { one: u8 },
    Two { two: u8 },
}

#[test]
fn types_that_accept_any_names_stay_open() {
    let names = |spec: &ToolSpec| spec.parameters.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let flat = spec_of(|_: Flat| async {});
    assert_eq!((names(&flat), flat.closed), (vec!["count".to_owned()], false));
    for open in [
        spec_of(|_: HashMap<String, i64>| async {}),
        spec_of(|_: Value| async {}),
        spec_of(|_: Tagged| async {}),
        spec_of(|_: Arguments| async {}),
        spec_of(|_: Arguments, _: Flag| async {}),
    ] {
        assert!(!open.closed, "{open:?}");
    }
    for closed in [
        spec_of(|| async {}),
        spec_of(|(): ()| async {}),
        spec_of(|_: Nothing| async {}),
        spec_of(|_: ToolContext| async {}),
    ] {
        assert!(closed.closed && closed.parameters.is_empty(), "{closed:?}");
    }
    for flag in [spec_of(|_: Wrapped| async {}), spec_of(|_: ToolContext, _: Args<Flag>| async {})] {
        assert_eq!((names(&flag), flag.closed), (vec!["flag".to_owned()], true));
    }
    let optional = spec_of(|_: Option<Flag>| async {});
    assert_eq!((optional.parameters[0].required, optional.closed), (false, true));
    let both = spec_of(|_: Args<Flag>, _: Order| async {});
    assert_eq!((both.parameters.len(), both.closed), (12, true));
}

#[test]
fn a_type_without_names_is_rejected_with_its_name() {
    let problem = |tool: FnTool| Registry::new().register_host_tool(tool).unwrap_err().to_string();
    assert_eq!(
        problem(FnTool::new("greet", |name: String| async move { name })),
        "host tool `greet` takes `alloc::string::String`, which is a string; arguments have names, so take a struct or a map"
    );
    for (tool, kind) in [
        (FnTool::new("t", |n: i64| async move { n }), "`i64`, which is an integer"),
        (FnTool::new("t", |n: Option<f64>| async move { n }), "which is a number"),
        (FnTool::new("t", |n: bool| async move { n }), "which is a boolean"),
        (FnTool::new("t", |n: Vec<u8>| async move { n }), "which is an array"),
        (FnTool::new("t", |_: Origin| async {}), "which is a string"),
    ] {
        let problem = problem(tool);
        assert!(problem.contains(kind), "{problem}");
    }
}

#[derive(Deserialize, JsonSchema)]
struct Sum {
    #[serde(alias = "first")]
    a: i64,
    b: i64,
    #[serde(default)]
    c: Option<i64>,
}

#[tokio::test]
async fn a_registry_checks_calls_before_the_closure_runs() {
    let registry = Registry::new();
    let sum = |sum: Sum| async move { sum.a + sum.b + sum.c.unwrap_or_default() };
    registry.register_host_tool(FnTool::new("sum", sum)).unwrap();
    let call = async |arguments: Value| {
        let mut call = ToolCall::new("sum");
        let Value::Object(arguments) = arguments else { panic!("not an object") };
        let payload = |value: Value| Payload::try_from_serde(&value).unwrap();
        call.arguments = arguments.into_iter().map(|(name, value)| (name, payload(value))).collect();
        registry.call_host_tool(call).await.map(|reply| match reply.body {
            ReplyBody::Value(value) => value.to_serde::<i64>().unwrap(),
            ReplyBody::Stream(_) => panic!("a stream"),
        })
    };
    assert_eq!(call(json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_eq!(
        call(json!({"first": 1, "b": 2.0, "c": null})).await.unwrap(),
        3,
        "an alias, a whole float, a null"
    );
    for (arguments, problem) in [
        (
            json!({"x": 1}),
            "argument `a` of tool `sum` is missing, `b` is missing, and `x` is unknown; the tool takes a (integer), b (integer), \
             c (integer, optional)",
        ),
        (
            json!({"first": 1}),
            "argument `b` of tool `sum` is missing; the tool takes a (integer), b (integer), c (integer, optional)",
        ),
        (json!({"a": "1", "b": 2}), "argument `a` of tool `sum` is a string, expected integer"),
        (json!({"a": 1, "b": 2, "c": "3"}), "argument `c` of tool `sum` is a string, expected integer"),
    ] {
        let error = call(arguments).await.unwrap_err();
        assert!(
            matches!(error, ToolError::InvalidArguments { .. }) && error.to_string() == problem,
            "{error}"
        );
    }
    let status = &registry.host_tool_status()[0];
    assert_eq!((status.calls, status.failures), (2, 0), "the other calls did not begin");
}

#[derive(Deserialize, JsonSchema)]
#[allow(dead_code, reason = "only its names are read")]
struct Named {
    #[serde(alias = "first", alias = "a_number")]
    a: i64,
    #[serde(alias = "after")]
    z: i64,
    #[serde(alias = "between", alias = "zz")]
    b: i64,
}

#[test]
fn an_alias_stands_for_its_field_and_at_most_one_other() {
    let tool = FnTool::new("named", |_: Named| async {});
    let aliases = tool.spec().aliases();
    let fields = |alias: &str| aliases[alias].iter().map(String::as_str).collect::<Vec<_>>();
    for (alias, field) in [("first", "a"), ("a_number", "a"), ("after", "z"), ("between", "b"), ("zz", "b")] {
        assert!(fields(alias).contains(&field) && fields(alias).len() <= 2, "{alias}: {aliases:?}");
    }
    assert_eq!((fields("zz"), fields("between")), (vec!["b"], vec!["b"]));
}

#[test]
fn a_panic_of_the_argument_type_is_an_error_of_the_registration() {
    #[derive(JsonSchema)]
    #[allow(dead_code, reason = "only its schema is read")]
    struct Panics {
        a: i64,
    }
    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("on purpose")
        }
    }
    let problem = FnTool::new("panics", |_: Panics| async {}).check().unwrap_err();
    assert!(
        problem.contains("Panics`, whose `Deserialize` or `JsonSchema` panicked: on purpose"),
        "{problem}"
    );
}
