//! The client over TLS, against hosts behind a tonic server, with certificates that the tests create.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests may panic and detach tasks")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::Engine;
use futures_util::{TryStreamExt, stream};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use serde_json::{Value, json};
use snakepit_server::{
    Client, ClientBuilder, Error, ErrorKind, FnTool, Principal, Snakepit, VariableType,
    testing::InProcessWorkers,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming};

#[allow(dead_code, unreachable_pub, reason = "the test calls only one function of the example")]
#[path = "../examples/tls_client.rs"]
mod example;

#[allow(dead_code, unreachable_pub, reason = "the test calls the parts of the example")]
#[path = "../examples/tls_server.rs"]
mod server_example;

const TEST_TIMEOUT: Duration = Duration::from_secs(8);

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A certificate and its key, in the PEM format.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(&self, name: &str, configure: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        configure(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = pem("CERTIFICATE", params.signed_by(&key, &self.issuer).unwrap().der());
        Pair { certificate, key: pem("PRIVATE KEY", &key.serialize_der()) }
    }

    fn server(&self, name: &str) -> Pair {
        self.sign(name, |_| {})
    }

    fn client(&self) -> Pair {
        self.sign("alice", |params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth))
    }
}

/// A host behind the program's own server.
struct Fixture {
    snakepit: Snakepit,
    port: u16,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    _run_dir: tempfile::TempDir,
}

impl Fixture {
    /// Starts a host whose tool `name` returns this name. Without a configuration, its server has no TLS.
    async fn start(name: &'static str, tls: Option<ServerTlsConfig>) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let count = FnTool::new("count", |arguments: BTreeMap<String, u64>| stream::iter(0..arguments["n"]));
        let workers = InProcessWorkers::new()
            .fn_tool(FnTool::typed("name", move |_: BTreeMap<String, Value>| async move { name }))
            .fn_tool(FnTool::typed("add", |arguments: BTreeMap<String, i64>| async move {
                arguments.values().sum::<i64>()
            }))
            .fn_tool(count);
        let builder = Snakepit::builder().launcher(Arc::new(workers)).workers(2).run_dir(run_dir.path());
        let snakepit = builder.start().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let server = server.add_routes(snakepit.routes());
        let (stop, stopped) = oneshot::channel::<()>();
        let signal = snakepit.shutdown_after(async { drop(stopped.await) }, Snakepit::DEFAULT_DRAIN);
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), signal));
        Self { snakepit, port, stop, serving, _run_dir: run_dir }
    }

    async fn with_certificate(name: &'static str, pair: &Pair) -> Self {
        Self::start(name, Some(server_config(pair))).await
    }

    fn address(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    async fn stop(self) {
        drop(self.stop);
        tokio::time::timeout(TEST_TIMEOUT, self.serving).await.expect("the server ends").unwrap().unwrap();
    }
}

fn server_config(pair: &Pair) -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(&pair.certificate, &pair.key))
}

async fn name_from(client: &Client) -> Result<String, Error> {
    tokio::time::timeout(TEST_TIMEOUT, client.execute::<String>("name", ())).await.expect("the call ends")
}

/// Checks the error of a client that cannot connect, and that it does not suggest to start a server.
async fn assert_rejected(builder: ClientBuilder, address: &str, needles: &[&str]) {
    let error = tokio::time::timeout(TEST_TIMEOUT, builder.connect(address)).await.unwrap().unwrap_err();
    let text = error.to_string();
    for needle in needles.iter().chain(&[address]) {
        assert!(text.contains(needle), "no {needle:?} in {text}");
    }
    assert!(!text.contains("snakepit serve"), "{text}");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error:?}");
}

#[tokio::test]
async fn calls_streams_and_sessions_use_tls() {
    let ca = Ca::new("right");
    let host = Fixture::with_certificate("a", &ca.server("localhost")).await;
    let client = Client::builder()
        .ca_certificate(&ca.certificate)
        .bearer_token("t")
        .connect(&host.address())
        .await
        .unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "a");
    let large = "x".repeat(8 << 20);
    assert_eq!(client.call("name").arg("large", large).unary::<String>().await.unwrap().value, "a");
    let chunks = client.execute_stream::<u64>("count", json!({"n": 5000})).await.unwrap();
    let chunks: Vec<u64> = tokio::time::timeout(TEST_TIMEOUT, chunks.try_collect()).await.unwrap().unwrap();
    assert!(chunks.into_iter().eq(0..5000));
    let session = client.session("s").await.unwrap();
    session.register("x", VariableType::integer(), 1).await.unwrap();
    let mut watch = session.watch_all().await.unwrap();
    session.set("x", 2).await.unwrap();
    assert!(tokio::time::timeout(TEST_TIMEOUT, watch.next()).await.unwrap().unwrap().is_ok());
    assert_eq!(session.get::<i64>("x").await.unwrap(), 2);
    drop((watch, session, client));
    host.stop().await;
}

#[tokio::test]
async fn an_unknown_ca_is_named() {
    let (right, wrong) = (Ca::new("right"), Ca::new("wrong"));
    let host = Fixture::with_certificate("a", &right.server("localhost")).await;
    // A CA with the same name but another key is unknown too.
    for unknown in [&wrong, &Ca::new("right")] {
        let builder = Client::builder().ca_certificate(&unknown.certificate);
        assert_rejected(builder, &host.address(), &["not signed by a CA of `ClientBuilder::ca_certificate`"])
            .await;
    }
    // The system's CAs, if it has any.
    let error = Client::connect(&host.address()).await.unwrap_err().to_string();
    assert!(error.contains("to `ClientBuilder::ca_certificate`"), "{error}");
    let both = Client::builder().ca_certificate(&wrong.certificate).ca_certificate(&right.certificate);
    both.connect(&host.address()).await.unwrap();
    let bundle = format!("{}{}", wrong.certificate, right.certificate);
    Client::builder().ca_certificate(bundle).connect(&host.address()).await.unwrap();
    host.stop().await;
}

#[tokio::test]
async fn a_wrong_name_is_named_and_can_be_set() {
    let ca = Ca::new("right");
    let host = Fixture::with_certificate("a", &ca.server("tools.example")).await;
    let builder = || Client::builder().ca_certificate(&ca.certificate);
    let needles = ["not for the name `localhost` but for `tools.example`", "`ClientBuilder::server_name`"];
    assert_rejected(builder(), &host.address(), &needles).await;
    let by_ip = format!("https://127.0.0.1:{}", host.port);
    assert_rejected(builder(), &by_ip, &["the name `127.0.0.1`"]).await;
    let client = builder().server_name("tools.example").connect(&by_ip).await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "a");
    drop(client);
    host.stop().await;
    let host = Fixture::with_certificate("b", &ca.server("127.0.0.1")).await;
    let by_ip = format!("https://127.0.0.1:{}", host.port);
    assert_eq!(name_from(&builder().connect(&by_ip).await.unwrap()).await.unwrap(), "b");
    host.stop().await;
}

#[tokio::test]
async fn certificates_outside_of_their_time_are_named() {
    let ca = Ca::new("right");
    let expired = ca.sign("localhost", |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    });
    let early = ca.sign("localhost", |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2098, 1, 1), date_time_ymd(2099, 1, 1));
    });
    for (pair, needle) in [(expired, "has expired; renew it"), (early, "is not valid yet")] {
        let host = Fixture::with_certificate("a", &pair).await;
        let builder = Client::builder().ca_certificate(&ca.certificate);
        assert_rejected(builder, &host.address(), &[needle, "the clock"]).await;
        host.stop().await;
    }
}

#[tokio::test]
async fn a_client_certificate_is_required_presented_and_rejected() {
    let (ca, other) = (Ca::new("right"), Ca::new("other"));
    let config =
        server_config(&ca.server("localhost")).client_ca_root(Certificate::from_pem(&ca.certificate));
    let host = Fixture::start("a", Some(config)).await;
    let builder = || Client::builder().ca_certificate(&ca.certificate);
    // The server reports the missing certificate after the handshake, while the client sends. The error must be the same in
    // either order.
    for _ in 0..20 {
        let needles = ["requires a client certificate", "`ClientBuilder::client_certificate`"];
        assert_rejected(builder(), &host.address(), &needles).await;
        let lazy = builder().connect_lazily(&host.address()).unwrap();
        for error in [name_from(&lazy).await.unwrap_err(), lazy.ping().await.unwrap_err()] {
            assert!(error.to_string().contains(needles[0]), "{error:?}");
        }
    }
    let foreign = other.client();
    let rejected = builder().client_certificate(foreign.certificate, foreign.key);
    assert_rejected(
        rejected,
        &host.address(),
        &["rejected the certificate of `ClientBuilder::client_certificate`"],
    )
    .await;
    let Pair { certificate, key } = ca.client();
    let client = builder().client_certificate(&certificate, &key).connect(&host.address()).await.unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "a");
    drop(client);

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let paths = [file("ca.pem", &ca.certificate), file("client.pem", &certificate), file("client.key", &key)];
    let sum = example::add(&host.address(), &paths[0], &paths[1], &paths[2]).await.unwrap();
    assert_eq!(sum, 3);
    host.stop().await;
}

#[tokio::test]
async fn servers_with_and_without_tls_are_distinguished() {
    let ca = Ca::new("right");
    let builder = || Client::builder().ca_certificate(&ca.certificate);
    let plain = Fixture::start("plain", None).await;
    assert_rejected(builder(), &plain.address(), &["speak TLS; write `http://` instead of `https://`"]).await;
    plain.stop().await;

    // The listener of a host.
    let run_dir = tempfile::tempdir().unwrap();
    let workers = InProcessWorkers::new();
    let builder_of_host = Snakepit::builder().launcher(Arc::new(workers)).workers(1).run_dir(run_dir.path());
    let host = builder_of_host.listen(([127, 0, 0, 1], 0).into()).start().await.unwrap();
    let address = format!("https://{}", host.address().unwrap());
    assert_rejected(builder(), &address, &["write `http://` instead of `https://`"]).await;
    host.shutdown().await.unwrap();

    let secure = Fixture::with_certificate("secure", &ca.server("localhost")).await;
    let address = format!("http://localhost:{}", secure.port);
    assert_rejected(Client::builder(), &address, &["it speaks TLS; write `https://` before the address"])
        .await;
    // Without a scheme, the client must not send the token over an unencrypted connection.
    let address = format!("localhost:{}", secure.port);
    let error = builder().connect(&address).await.unwrap_err();
    let expected = format!(
        "client option `ca_certificate` needs TLS; write the address as https://{address}, not {address}"
    );
    assert_eq!(error.to_string(), expected);
    secure.stop().await;
    let refused = Client::builder().connect("https://127.0.0.1:1").await.unwrap_err().to_string();
    assert!(refused.contains("refused") && refused.contains("snakepit serve"), "{refused}");
}

#[tokio::test]
async fn the_client_moves_between_addresses_with_tls() {
    let (ca, other) = (Ca::new("right"), Ca::new("other"));
    let foreign = Fixture::with_certificate("foreign", &other.server("localhost")).await;
    let first = Fixture::with_certificate("first", &ca.server("localhost")).await;
    let second = Fixture::with_certificate("second", &ca.server("localhost")).await;
    let socket = format!("unix:{}", second.snakepit.socket().display());
    let client = Client::builder()
        .ca_certificate(&ca.certificate)
        .fallback(first.address())
        .fallback(second.address())
        .fallback(socket)
        .connect(&foreign.address())
        .await
        .unwrap();
    assert_eq!(name_from(&client).await.unwrap(), "first");
    first.stop().await;
    assert_eq!(name_from(&client).await.unwrap(), "second");
    client.session("s").await.unwrap();
    second.stop().await;
    let error = name_from(&client).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("not signed by a CA"), "{error:?}");
    foreign.stop().await;
}

#[tokio::test]
async fn invalid_options_are_named_and_keys_are_not_printed() {
    let ca = Ca::new("right");
    let (one, two) = (ca.client(), ca.client());
    for (builder, needle) in [
        (
            Client::builder().ca_certificate("ca.pem"),
            "`ca_certificate` contains no certificate in the PEM format",
        ),
        (
            Client::builder().ca_certificate(pem("CERTIFICATE", b"x")),
            "`ca_certificate` contains an invalid certificate",
        ),
        (Client::builder().client_certificate("", &one.key), "`client_certificate` contains no certificate"),
        (
            Client::builder().client_certificate(&one.certificate, ""),
            "`client_certificate` contains no private key",
        ),
        (
            Client::builder().client_certificate(&one.certificate, &two.key),
            "`client_certificate` has a key of another",
        ),
        (Client::builder().server_name("a b"), "`server_name` is not a DNS name"),
    ] {
        let error = builder.connect("https://localhost:1").await.unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let builder = Client::builder().client_certificate(&one.certificate, &one.key).server_name("a.example");
    let shown = format!("{builder:?}");
    assert!(shown.contains("has_client_certificate: true") && shown.contains("a.example"), "{shown}");
    let secret = one.key.lines().nth(1).unwrap();
    assert!(!shown.contains(secret) && !shown.contains("key"), "{shown}");
    let service = snakepit_server::transport::tower::service_fn(
        |_: http::Request<snakepit_server::transport::Body>| async {
            Err::<http::Response<snakepit_server::transport::Body>, _>(tonic::Status::unavailable("unused"))
        },
    );
    let error = builder.connect_over(service).await.unwrap_err().to_string();
    assert!(error.starts_with("client option `client_certificate` has no effect on a service"), "{error}");
}

#[tokio::test]
async fn the_complete_server_requires_tls_and_a_token_and_permits_granted_tools() {
    use server_example::{Pair as Numbers, connect, serve, start};

    let (ca, other) = (Ca::new("right"), Ca::new("other"));
    let pair = ca.server("localhost");
    let dir = tempfile::tempdir().unwrap();
    let (trusted, distrusted) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
    std::fs::write(&trusted, &ca.certificate).unwrap();
    std::fs::write(&distrusted, &other.certificate).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let alice = Principal::new("alice", "token").with_grants(["add"]);
    let principals = Arc::new([("Bearer of-alice".to_owned(), alice)].into());
    let (stop, stopped) = oneshot::channel::<()>();
    let identity = Identity::from_pem(&pair.certificate, &pair.key);
    let signal = async { drop(stopped.await) };
    let serving = tokio::spawn(serve(start().await.unwrap(), listener, identity, principals, signal));

    let client = connect(&address, &trusted, "of-alice").await.unwrap();
    assert_eq!(client.execute::<i64>("add", Numbers { a: 1, b: 2 }).await.unwrap(), 3);
    let denied = client.execute::<i64>("subtract", Numbers { a: 1, b: 2 }).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied, "{denied:?}");
    assert!(denied.to_string().contains("alice has no grant for this"), "{denied}");

    let error = connect(&address, &trusted, "of-bob").await.unwrap_err().to_string();
    assert!(error.contains("the token is missing or unknown"), "{error}");
    let error = connect(&address, &distrusted, "of-alice").await.unwrap_err().to_string();
    assert!(error.contains("not signed by a CA"), "{error}");
    let plain = address.replace("https://", "http://");
    assert!(Client::builder().bearer_token("of-alice").connect(&plain).await.is_err());

    drop((client, stop));
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the server ends").unwrap().unwrap();
}
