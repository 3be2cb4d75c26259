//! Arrays between Rust and numpy in real workers: every dtype, memory layout and form of a payload.

use std::{fmt, sync::Arc};

use ndarray::{Array, Array2, ArrayD, Ix2, IxDyn, array};
use serde_json::{Value, json};
use snakepit_server::{
    Caller, Client, Dtype, Element, Error, HostHandle, LocalHost, Payload, PayloadError, Snakepit, ToolCall,
    ToolError, ToolHandler, ToolReply, ToolSpec,
};
use snakepit_tests::{python, root};

/// A host tool that doubles an array.
#[derive(Debug)]
struct Double;

#[async_trait::async_trait]
impl ToolHandler for Double {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let image = call.arguments.get("image").unwrap();
        let doubled = image.to_ndarray::<f32, Ix2>().unwrap().mapv(|value| 2.0 * value);
        Ok(ToolReply::value(doubled.into()))
    }
}

async fn start(run_dir: &tempfile::TempDir) -> Snakepit {
    Snakepit::builder()
        .adapter("arrays:Arrays")
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(run_dir.path())
        .workers(1)
        .tool(ToolSpec::new("double").parameter("image", "tensor", "An array"), Arc::new(Double))
        .listen(([127, 0, 0, 1], 0).into())
        .start()
        .await
        .unwrap()
}

async fn echo<H: HostHandle>(caller: &Caller<H>, value: Payload) -> Payload {
    caller.call("echo").payload("value", value).payload_reply().await.unwrap().value
}

async fn make(caller: &Caller<LocalHost>, dtype: &str, layout: &str) -> Payload {
    caller.call("make").arg("dtype", dtype).arg("layout", layout).payload_reply().await.unwrap().value
}

/// Sends an array to Python and back, and compares the description that Python gives of it.
async fn round_trip<T, H>(caller: &Caller<H>, items: Array2<T>, texts: &[&str])
where
    T: Element + PartialEq + fmt::Debug,
    H: HostHandle,
{
    let value = Payload::from_ndarray(&items);
    let described = caller.call("describe").payload("value", value.clone()).unary::<Value>().await.unwrap();
    assert_eq!(described.value, json!([T::DTYPE.as_str(), items.shape(), texts]));
    let back = echo(caller, value).await;
    assert_eq!((back.dtype(), back.shape()), (Some(T::DTYPE), Some(items.shape().to_vec())));
    assert_eq!(back.to_ndarray::<T, Ix2>().unwrap(), items);
    assert_eq!(*back.items::<T>().unwrap(), *items.as_slice().unwrap());
}

async fn every_dtype_round_trips(caller: &Caller<impl HostHandle>) {
    use half::f16;
    use num_complex::Complex;

    round_trip(caller, array![[true, false]], &["True", "False"]).await;
    round_trip(caller, array![[i8::MIN, 1]], &["-128", "1"]).await;
    round_trip(caller, array![[i16::MIN, 1]], &["-32768", "1"]).await;
    round_trip(caller, array![[i32::MIN, 1]], &["-2147483648", "1"]).await;
    round_trip(caller, array![[i64::MIN, 1]], &["-9223372036854775808", "1"]).await;
    round_trip(caller, array![[u8::MAX, 1]], &["255", "1"]).await;
    round_trip(caller, array![[u16::MAX, 1]], &["65535", "1"]).await;
    round_trip(caller, array![[u32::MAX, 1]], &["4294967295", "1"]).await;
    round_trip(caller, array![[u64::MAX, 1]], &["18446744073709551615", "1"]).await;
    round_trip(caller, array![[f16::from_f32(0.5), f16::from_f32(-2.0)]], &["0.5", "-2.0"]).await;
    round_trip(caller, array![[0.5_f32, f32::INFINITY]], &["0.5", "inf"]).await;
    round_trip(caller, array![[0.1_f64, f64::NEG_INFINITY]], &["0.1", "-inf"]).await;
    round_trip(caller, array![[Complex::new(1.0_f32, -2.0)]], &["(1-2j)"]).await;
    round_trip(caller, array![[Complex::new(0.5_f64, 2.0)]], &["(0.5+2j)"]).await;
}

#[tokio::test]
async fn arrays_of_every_dtype_reach_numpy_and_return() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    every_dtype_round_trips(&snakepit).await;
    let client = Client::connect(&snakepit.address().unwrap().to_string()).await.unwrap();
    every_dtype_round_trips(&client).await;
    snakepit.shutdown().await.unwrap();
}

/// The example of docs/embedding/calls.md.
async fn brighten(snakepit: &Snakepit) -> Result<f32, Error> {
    let image = Array2::<f32>::from_elem((480, 640), 0.5);
    let reply = snakepit.call("brighten").payload("image", Payload::from(image)).payload_reply().await?;
    let brighter = reply.value.to_ndarray::<f32, Ix2>()?;
    Ok(brighter.mean().unwrap())
}

#[tokio::test]
async fn arrays_pass_between_python_and_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let call = snakepit.call("through_host").payload("image", Payload::from(array![[1.0_f32, -2.0]]));
    let tripled = call.payload_reply().await.unwrap().value;
    assert_eq!(tripled.to_ndarray::<f32, Ix2>().unwrap(), array![[3.0, -6.0]]);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_example_of_the_page_runs() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    assert_eq!(brighten(&snakepit).await.unwrap(), 1.0);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn arrays_of_every_memory_layout_arrive_in_row_major_order() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    let rows = Array::from_shape_vec((2, 3), (0..6).map(f64::from).collect()).unwrap();
    for layout in ["c", "fortran", "big", "strided"] {
        let value = make(&snakepit, "float64", layout).await;
        assert_eq!(value.to_ndarray::<f64, Ix2>().unwrap(), rows, "{layout}");
    }
    let scalar = make(&snakepit, "int16", "scalar").await;
    assert_eq!((scalar.shape(), &*scalar.items::<i16>().unwrap()), (Some(vec![]), &[5_i16][..]));
    let empty = make(&snakepit, "uint8", "empty").await;
    assert_eq!((empty.shape(), empty.dtype()), (Some(vec![0, 3]), Some(Dtype::Uint8)));
    assert!(matches!(empty.items::<f32>(), Err(PayloadError::Dtype { .. })));

    // Rust sends views without regard to their layout, too.
    let transposed = Payload::from_ndarray(&rows.t());
    let back = echo(&snakepit, transposed).await;
    assert_eq!(back.to_ndarray::<f64, Ix2>().unwrap(), rows.t());
    for shape in [vec![], vec![0], vec![2, 0, 3], vec![1; 8]] {
        let zeros = ArrayD::<f32>::zeros(shape.clone());
        let back = echo(&snakepit, Payload::from(zeros.clone())).await;
        assert_eq!(back.to_ndarray::<f32, IxDyn>().unwrap(), zeros, "{shape:?}");
    }
    snakepit.shutdown().await.unwrap();
}
