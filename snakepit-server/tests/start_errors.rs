//! Errors of programs that embed a host: their kind, their sources, and the names of settings in their messages.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{error::Error as _, io, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use snakepit_server::{
    Builder, FnTool, MemoryBackend, NewSession, NewVariable, Note, Payload, PoolConfig, Program, ProgramName,
    ProgramOwner, SessionBackend, SessionError, SessionId, SessionLimits, Snakepit, StartError,
    StartErrorKind, ValueType, VariableName, VariableType, error_chain, settings, testing::InProcessWorkers,
};

/// Returns the message with its sources. Flags belong to the daemon, so no message of the library may contain one.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error_chain(error).to_string();
    assert!(!text.contains("--") && !text.contains("snakepit.toml"), "{text}");
    text
}

async fn failed(builder: Builder, kind: StartErrorKind, needles: &[&str]) -> StartError {
    let error = builder.start().await.unwrap_err();
    let text = shown(&error);
    assert_eq!(error.kind(), kind, "{text}");
    for needle in needles {
        assert!(text.contains(needle), "no {needle:?} in {text}");
    }
    // `main` prints each part once, too.
    let printed = format!("{error:?}");
    let root = std::iter::successors(error.source(), |&cause| cause.source()).last();
    if let Some(root) = root.map(ToString::to_string) {
        assert_eq!(printed.matches(&root).count(), 1, "{printed}");
        assert!(text.ends_with(&root), "{text}");
    }
    error
}

#[tokio::test]
async fn start_errors_have_kinds_and_name_methods() {
    use StartErrorKind as Kind;
    let dir = tempfile::tempdir().unwrap();
    let workers = || Arc::new(InProcessWorkers::new());
    let python = || Snakepit::builder().adapter("shop:Shop").run_dir(dir.path());
    let host = || Snakepit::builder().launcher(workers()).workers(1).run_dir(dir.path());

    failed(Snakepit::builder(), Kind::Configuration, &["`Builder::adapter`", "`Builder::worker_command`"])
        .await;
    failed(host().adapter("a:A"), Kind::Configuration, &["`Builder::launcher` excludes `Builder::adapter`"])
        .await;
    failed(python().threads(257), Kind::Configuration, &["`Builder::threads` is 257", "from 0 to 256"]).await;
    failed(host().concurrency(0), Kind::Configuration, &["pool setting `concurrency` is 0"]).await;
    failed(
        host().connection_bytes(0),
        Kind::Configuration,
        &["`Builder::connection_bytes`", "`queue_bytes`"],
    )
    .await;
    failed(host().workers(0), Kind::Configuration, &["pool setting `workers` is 0"]).await;
    failed(host().name("a b"), Kind::Configuration, &["pool setting `name`"]).await;
    failed(host().cancel_grace(Duration::MAX), Kind::Configuration, &["pool setting `cancel_grace`"]).await;
    let zero = PoolConfig::default().default_timeout(Duration::ZERO);
    failed(host().pool(zero), Kind::Configuration, &["pool setting `default_timeout`"]).await;
    let remote = host().listen_on("0.0.0.0:0");
    failed(remote, Kind::Configuration, &["set `Builder::allow_remote`"]).await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = host().listen(taken.local_addr().unwrap());
    let busy = failed(busy, Kind::Listen, &["cannot listen on 127.0.0.1:", "; choose another address"]).await;
    let source = busy.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below_a_file = host().run_dir(file.join("runs"));
    let unusable = failed(below_a_file, Kind::RunDirectory, &["/file/runs`: it cannot be created: "]).await;
    assert!(unusable.source().unwrap().is::<io::Error>(), "{unusable:?}");
    let long = host().run_dir(dir.path().join("x".repeat(100)));
    failed(long, Kind::RunDirectory, &["choose a shorter one with `Builder::run_dir`"]).await;
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    failed(host().run_dir(&shared), Kind::RunDirectory, &["another one with `Builder::run_dir`"]).await;

    let missing = failed(
        python().python("/no/such/python").workers(1),
        Kind::Interpreter,
        &["cannot start worker program `/no/such/python`; check the path, or choose another with `Builder::python`"],
    )
    .await;
    let source = missing.worker_error().unwrap().source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::NotFound);

    let launcher = workers();
    launcher.fail_launches(1, "no memory");
    let chain = "worker `default-0-1` did not start: worker cannot start: no memory";
    failed(host_of(&launcher, dir.path()), Kind::Adapter, &[chain]).await;
    let launcher = workers();
    launcher.delay_launches(1, Duration::from_secs(3600));
    let late = host_of(&launcher, dir.path()).start_timeout(Duration::from_millis(50));
    failed(late, Kind::Timeout, &["not ready within 50ms", "raise `Builder::start_timeout`"]).await;
    let tool = || FnTool::typed("add", |(): ()| async { 1 });
    let twice = host_of(&Arc::new(InProcessWorkers::new().fn_tool(tool())), dir.path()).fn_tool(tool());
    let rejected = "the host rejected the tools of worker `default-0-1`: tool name `add` is taken by host";
    failed(twice, Kind::Tools, &[rejected]).await;

    let cancelled = host().start_unless(std::future::ready(())).await.unwrap_err();
    assert_eq!(cancelled.kind(), Kind::Cancelled);
}

fn host_of(launcher: &Arc<InProcessWorkers>, run_dir: &std::path::Path) -> Builder {
    Snakepit::builder().launcher(Arc::<InProcessWorkers>::clone(launcher)).workers(1).run_dir(run_dir)
}

#[tokio::test]
async fn the_limits_of_sessions_name_their_fields() {
    let limits = SessionLimits::default()
        .max_sessions(1)
        .max_program_bytes(3)
        .max_programs(1)
        .max_value_bytes(4)
        .max_total_bytes(60);
    let backend = MemoryBackend::new(limits);
    let (alice, name) = (SessionId::try_new("alice").unwrap(), |name| ProgramName::try_new(name).unwrap());
    backend.create(&alice, NewSession::default()).await.unwrap();
    backend.put_program(&ProgramOwner::Global, &name("p"), Program::new("x", "t")).await.unwrap();
    let another = SessionId::try_new("bob").unwrap();
    let program = |data: &'static str| Program::new(data, "t");
    let value = |text: &str| NewVariable {
        ty: VariableType::new(ValueType::String).unwrap(),
        value: Payload::try_from_serde(text).unwrap(),
        note: Note::default(),
    };
    let variable = VariableName::try_new("v").unwrap();
    let long_type = Program::new("x", "t".repeat(100));
    for (error, field) in [
        (backend.create(&another, NewSession::default()).await.map(drop).unwrap_err(), "max_sessions"),
        (
            backend.put_program(&ProgramOwner::Global, &name("q"), program("x")).await.map(drop).unwrap_err(),
            "max_programs",
        ),
        (
            backend
                .put_program(&ProgramOwner::Global, &name("p"), program("long"))
                .await
                .map(drop)
                .unwrap_err(),
            "max_program_bytes",
        ),
        (
            backend
                .put_program(&ProgramOwner::Session(alice.clone()), &name("p"), long_type)
                .await
                .map(drop)
                .unwrap_err(),
            "max_total_bytes",
        ),
        (
            backend.register_variable(&alice, &variable, value("too long")).await.map(drop).unwrap_err(),
            "max_value_bytes",
        ),
    ] {
        let text = shown(&error);
        assert!(text.contains(&format!("raise `SessionLimits::{field}`")), "no {field} in {text}");
        assert!(!matches!(error, SessionError::Backend { .. }), "{text}");
    }
}

#[test]
fn every_setting_has_the_name_of_a_method_or_field() {
    for setting in settings::all() {
        assert_eq!(setting.to_string(), format!("`{}`", setting.method()));
        assert!(setting.flag().is_none_or(|flag| !setting.to_string().contains(&format!("--{flag}"))));
    }
    // The methods of the builder that the table names.
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = std::fs::read_dir(src.join("builder")).unwrap().map(|entry| entry.unwrap().path());
    let source: Vec<_> = modules
        .chain([src.join("builder.rs")])
        .filter(|path| path.is_file())
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for setting in settings::all().filter(|setting| !setting.method().starts_with("SessionLimits::")) {
        let name = setting.method().trim_start_matches("Builder::");
        let is_method = source.iter().any(|text| {
            text.contains(&format!("pub fn {name}("))
                || text.contains(&format!("pub fn {name}<"))
                || text.contains(&format!("pub const fn {name}("))
        });
        assert!(is_method, "the builder has no method `{name}`");
    }
}
