//! A web service that embeds a host: typed calls behind JSON routes, server-sent events from a streaming tool, and the gRPC
//! services of the host on the same port.
//!
//! Run it with `cargo run -p snakepit-server --example axum_service` after `cargo xtask setup`, and then:
//!
//! ```sh
//! curl -d '{"a": 1, "b": 2}' -H 'content-type: application/json' http://127.0.0.1:8080/add
//! curl -N http://127.0.0.1:8080/count/3
//! snakepit call --server 127.0.0.1:8080 add --args '{"a": 1, "b": 2}'
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snakepit_server::{Error, Snakepit};
use tokio::net::TcpListener;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Pair {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

/// A call of a Python tool. If the client disconnects, axum drops the handler, which cancels the call.
async fn add(State(snakepit): State<Snakepit>, Json(pair): Json<Pair>) -> Result<Json<i64>, Failure> {
    Ok(Json(snakepit.execute("add", pair).await?))
}

/// Each chunk of a streaming tool becomes one event. An error of the tool, or a shutdown, is the last event.
async fn count(
    State(snakepit): State<Snakepit>,
    Path(n): Path<u64>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Failure> {
    let items = snakepit.execute_stream::<Value>("count", json!({"n": n})).await?;
    let events = items.map(|item| match item {
        Ok(item) => Event::default().json_data(item),
        Err(error) => Ok(Event::default().event("error").data(error.to_string())),
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// The response to a request whose call failed.
struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        // This service documents that its tools raise `ValueError` for invalid requests.
        let status = match error.error_type() {
            Some("ValueError") => 400,
            _ => error.http_status(),
        };
        let message = error.failure().map_or_else(|| error.to_string(), |failure| failure.message.clone());
        let body = json!({"error": message, "type": error.error_type(), "retryable": error.is_retryable()});
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body)).into_response();
        if let Some(delay) = error.retry_after() {
            // The header takes whole seconds, so this rounds up.
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(delay.as_secs() + 1));
        }
        response
    }
}

/// Serves until the signal. The host and its calls, events and streams then end before the server does.
pub(crate) async fn serve(
    snakepit: Snakepit,
    listener: TcpListener,
    signal: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error>> {
    let app = Router::new()
        .route("/add", post(add))
        .route("/count/{n}", get(count))
        .with_state(snakepit.clone())
        // gRPC clients use the same port.
        .merge(snakepit.routes().into_axum_router());
    // The host bounds each gRPC client by the address of its connection.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let shutdown = snakepit.shutdown_after(signal, Snakepit::DEFAULT_DRAIN);
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await?;
    // The host has shut down. This reports an error of its shutdown, if there was one.
    Ok(snakepit.shutdown().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .start()
        .await?;
    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("serving on http://{}", listener.local_addr()?);
    serve(snakepit, listener, async { drop(tokio::signal::ctrl_c().await) }).await
}
