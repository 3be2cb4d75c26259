//! A complete server: the host behind TLS, for clients with a token, each of which may call only its own tools.
//!
//! It needs no Python. Create a certificate for `localhost`, start the server, and call it from another terminal:
//!
//! ```sh
//! openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost \
//!     -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout server.key -out server.pem
//! export SNAKEPIT_TOKEN="$(openssl rand -hex 32)"
//! cargo run -p snakepit-server --example tls_server -- serve server.pem server.key
//! cargo run -p snakepit-server --features tls --example tls_server -- call server.pem
//! ```
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{collections::HashMap, error::Error, fs, path::Path, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use snakepit_server::{Client, Denied, Operation, Principal, Snakepit};
use tokio::net::TcpListener;
use tonic::{
    Request, Status,
    service::InterceptorLayer,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

#[derive(Deserialize, JsonSchema, Serialize)]
pub(crate) struct Pair {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

/// Starts a host that permits each principal only the tools for which it has a grant.
pub(crate) async fn start() -> Result<Snakepit, Box<dyn Error + Send + Sync>> {
    let snakepit = Snakepit::builder()
        // Or `.adapter("shop:Shop")`, for tools in Python.
        .without_workers()
        .host_tool("add", |Pair { a, b }: Pair| async move { a + b })
        .host_tool("subtract", |Pair { a, b }: Pair| async move { a - b })
        .authorize(|principal, operation| match operation {
            // The client asks which tools may be repeated if its connection breaks.
            Operation::ListTools => Ok(()),
            Operation::Call { tool, .. } if principal.has_grant(tool) => Ok(()),
            _ => Err(Denied::new(format!("{principal} has no grant for this"))),
        })
        .start()
        .await?;
    Ok(snakepit)
}

/// The principals, by the value of their header `authorization`.
pub(crate) type Principals = HashMap<String, Principal>;

/// Serves until the signal. Clients prove who they are with a token, and the server with its certificate.
pub(crate) async fn serve(
    snakepit: Snakepit,
    listener: TcpListener,
    identity: Identity,
    principals: Arc<Principals>,
    signal: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let authenticate = move |mut request: Request<()>| {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let principal = header.and_then(|header| principals.get(header)).cloned();
        let principal =
            principal.ok_or_else(|| Status::unauthenticated("the token is missing or unknown"))?;
        // The host asks its `authorize` function about this principal.
        request.extensions_mut().insert(principal);
        Ok(request)
    };
    let shutdown = snakepit.shutdown_after(signal, Snakepit::DEFAULT_DRAIN);
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .layer(InterceptorLayer::new(authenticate))
        .add_routes(snakepit.routes())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), shutdown)
        .await?;
    // The host has shut down. This reports an error of its shutdown, if there was one.
    Ok(snakepit.shutdown().await?)
}

/// Connects with a token. The client trusts only this certificate, or certificates that it signed.
pub(crate) async fn connect(
    address: &str,
    trusted: &Path,
    token: &str,
) -> Result<Client, Box<dyn Error + Send + Sync>> {
    let client = Client::builder().ca_certificate(fs::read(trusted)?).bearer_token(token);
    Ok(client.connect(address).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let token = std::env::var("SNAKEPIT_TOKEN")?;
    match arguments.as_slice() {
        ["serve", certificate, key] => {
            let identity = Identity::from_pem(fs::read(certificate)?, fs::read(key)?);
            let alice = Principal::new("alice", "token").with_grants(["add"]);
            let principals = Arc::new(Principals::from([(format!("Bearer {token}"), alice)]));
            let listener = TcpListener::bind("127.0.0.1:8443").await?;
            println!("serving on https://localhost:{}", listener.local_addr()?.port());
            let signal = async { drop(tokio::signal::ctrl_c().await) };
            serve(start().await?, listener, identity, principals, signal).await
        }
        ["call", trusted] => {
            let client = connect("https://localhost:8443", trusted.as_ref(), &token).await?;
            println!("{}", client.execute::<i64>("add", Pair { a: 1, b: 2 }).await?);
            Ok(())
        }
        _ => Err("usage: tls_server serve CERTIFICATE KEY | tls_server call CERTIFICATE".into()),
    }
}
