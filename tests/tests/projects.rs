//! `snakepit new` and `snakepit doctor`.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, path::Path, process::Output};

use serde_json::Value;
use snakepit_server::Snakepit;
use snakepit_tests::{SHOWCASE, Sandbox, daemon_binary, python};
use tokio::process::Command;

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(daemon_binary());
    command.args(args).current_dir(dir).kill_on_drop(true);
    for variable in ["SNAKEPIT_SERVER", "SNAKEPIT_LISTEN", "SNAKEPIT_ADAPTER", "VIRTUAL_ENV"] {
        command.env_remove(variable);
    }
    command.env("SNAKEPIT_PYTHON", python()).env("SNAKEPIT_RUN_DIR", dir.join("run"));
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn a_new_project_passes_its_tests_and_serves_its_tools() {
    let dir = tempfile::tempdir().unwrap();
    let created = command(dir.path(), &["new", "my-shop"]).output().await.unwrap();
    assert!(created.status.success() && stdout(&created).contains("my_shop.py"), "{created:?}");
    let project = dir.path().join("my-shop");

    let mut tests = Command::new(python());
    tests.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).current_dir(&project);
    let tests = tests.env("SNAKEPIT_BINARY", daemon_binary()).output().await.unwrap();
    assert!(tests.status.success() && stdout(&tests).contains("5 passed"), "{}", stdout(&tests));

    let examined = command(&project, &["doctor", "--json"])
        .env("SNAKEPIT_LISTEN", "127.0.0.1:0")
        .output()
        .await
        .unwrap();
    assert!(examined.status.success(), "{}", stdout(&examined));
    let adapter = checks(&examined).remove("adapter").unwrap();
    assert!(adapter["evidence"].as_str().unwrap().contains("`my_shop.py` can be loaded"), "{adapter}");

    let sandbox = Sandbox::adapter("my_shop.py", 1).working_dir(&project).start().await;
    assert_eq!(
        sandbox.cli_ok(&["call", "greet", "name=Ada", "times=2"]).await,
        "\"Hello, Ada! Hello, Ada!\"\n"
    );
    assert_eq!(sandbox.cli_ok(&["call", "visit", "--session", "alice"]).await, "1\n");
    assert_eq!(sandbox.cli_ok(&["stream", "countdown", "start=2"]).await, "2\n1\n");
    assert_eq!(sandbox.stop().await, Some(0));

    let again = command(dir.path(), &["new", "my-shop"]).output().await.unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing was changed"), "{again:?}");
    let invalid = command(dir.path(), &["new", "json"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&invalid.stderr).contains("module of Python"), "{invalid:?}");
    assert!(!dir.path().join("json").exists());
    let installed = command(dir.path(), &["new", "numpy"]).output().await.unwrap();
    assert_eq!(installed.status.code(), Some(2), "{installed:?}");
    let stderr = String::from_utf8_lossy(&installed.stderr);
    assert!(stderr.contains("`numpy` is an installed module, ") && stderr.contains("`my-numpy`"), "{stderr}");
    // A directory of the working directory is not installed.
    std::fs::create_dir(dir.path().join("store")).unwrap();
    assert!(command(dir.path(), &["new", "store"]).output().await.unwrap().status.success());
}

#[tokio::test]
async fn a_project_that_cannot_be_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // The largest size of a file stands for a full disk.
    let line = format!("trap '' XFSZ; ulimit -f 1; exec {} new deep/shop", daemon_binary().display());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &line]).current_dir(dir.path()).env("SNAKEPIT_PYTHON", python());
    let output = shell.output().await.unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot create deep/shop/"), "{output:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The checks of `snakepit doctor --json` by name.
fn checks(output: &Output) -> BTreeMap<String, Value> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(report["ok"].as_bool(), Some(output.status.success()), "{report}");
    let checks = report["checks"].as_array().unwrap().iter();
    checks.map(|check| (check["name"].as_str().unwrap().to_owned(), check.clone())).collect()
}

/// Asserts that one check failed, and that its evidence and its fix contain these strings.
async fn assert_fails(mut command: Command, name: &str, evidence: &str, fix: &str) {
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
    let checks = checks(&output);
    let check = &checks[name];
    assert_eq!(check["status"], "failed", "{check}");
    assert!(check["evidence"].as_str().unwrap().contains(evidence), "{check}");
    assert!(check["fix"].as_str().unwrap().contains(fix), "{check}");
}

#[tokio::test]
async fn the_doctor_explains_broken_environments() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let doctor = || {
        let mut doctor = command(dir, &["doctor", "--json"]);
        doctor.env("SNAKEPIT_LISTEN", "127.0.0.1:0");
        doctor
    };
    let script = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let healthy = doctor().output().await.unwrap();
    assert!(healthy.status.success(), "{}", stdout(&healthy));
    assert!(checks(&healthy).len() >= 10, "{}", stdout(&healthy));

    let mut broken = doctor();
    broken.env("SNAKEPIT_PYTHON", "/nowhere/python");
    assert_fails(broken, "python", "/nowhere/python, chosen by $SNAKEPIT_PYTHON: No such file", "--python")
        .await;
    let mut broken = doctor();
    broken.env("SNAKEPIT_PYTHON", script("false", "#!/bin/sh\necho broken >&2\nexit 1\n"));
    assert_fails(broken, "python", "it is not a Python interpreter (exit status: 1): broken", "--python")
        .await;
    // Without its site-packages, the interpreter has no package.
    let bare = format!("#!/bin/sh\nexec {} -S -E \"$@\"\n", python().display());
    let bare = script("bare", &bare);
    let mut broken = doctor();
    broken.env("SNAKEPIT_PYTHON", bare);
    assert_fails(broken, "package", "No module named 'snakepit_bridge'", "-m pip install snakepit-bridge==")
        .await;

    std::fs::write(dir.join("broken.py"), "import missing_module\n").unwrap();
    let mut broken = doctor();
    broken.arg("broken.py");
    assert_fails(broken, "adapter", "No module named 'missing_module'", "snakepit dev").await;
    let mut broken = doctor();
    broken.arg("broken.py");
    assert_fails(broken, "adapter", "broken.py\", line 1, in <module>", "correct the code").await;
    std::fs::write(dir.join("malformed.py"), "def f(:\n").unwrap();
    let mut broken = doctor();
    broken.arg("malformed.py");
    assert_fails(broken, "adapter", "malformed.py\", line 1\n", "correct the code").await;
    let mut broken = doctor();
    broken.arg("missing.py");
    assert_fails(broken, "adapter", "there is no file", "correct the adapter, or name another").await;
    std::fs::write(dir.join("taking.py"), "def process_init(size: int):\n    pass\n\ndef f():\n    pass\n")
        .unwrap();
    for (value, evidence) in [("path=x", "`path` is unknown"), ("size=x", "`size` of `process_init`")] {
        let mut broken = doctor();
        broken.args(["--adapter", "taking.py", "--adapter-arg", value]);
        assert_fails(broken, "adapter", evidence, "--adapter").await;
    }
    let mut options = doctor();
    options.args(["taking.py", "--adapter-arg", "size=3", "--workers", "1", "--listen", "127.0.0.1:0"]);
    let options = options.output().await.unwrap();
    assert!(options.status.success(), "{}", stdout(&options));
    assert!(
        checks(&options)["settings"]["evidence"].as_str().unwrap().contains("; 1 workers"),
        "{options:?}"
    );
    assert_eq!(command(dir, &["doctor", "--worker", "1"]).output().await.unwrap().status.code(), Some(2));
    let mut broken = doctor();
    broken.env("SNAKEPIT_WORKERS", "many");
    assert_fails(broken, "settings", "SNAKEPIT_WORKERS", "correct the file or the variable").await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    let mut broken = doctor();
    broken.env("SNAKEPIT_LISTEN", &taken.1);
    assert_fails(broken, "port", &format!("another program uses {}", taken.1), "--listen").await;
    let mut broken = doctor();
    broken.args(["--server", "127.0.0.1:1"]);
    assert_fails(broken, "server", "cannot reach a server at http://127.0.0.1:1", "--server").await;

    let file = script("file", "");
    let mut broken = doctor();
    broken.env("SNAKEPIT_RUN_DIR", file);
    assert_fails(broken, "run directory", "file", "--run-dir").await;
    let mut broken = doctor();
    broken.env("SNAKEPIT_RUN_DIR", dir.join("x".repeat(120)));
    assert_fails(broken, "run directory", "socket", "short path").await;

    let mut broken = Command::new("/bin/sh");
    let binary = daemon_binary();
    broken.args(["-c", &format!("ulimit -n 40 && exec {} doctor --json", binary.display())]);
    broken.current_dir(dir).env("SNAKEPIT_PYTHON", python()).env("SNAKEPIT_LISTEN", "127.0.0.1:0");
    assert_fails(broken, "open files", "at most 40 open files", "ulimit -Hn").await;

    std::fs::write(dir.join("snakepit.toml"), "wokers = 2\n").unwrap();
    assert_fails(doctor(), "settings", "is it `workers`?", "correct the file").await;
}

#[tokio::test]
async fn the_doctor_examines_a_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let listen = sandbox.url().trim_start_matches("http://").to_owned();
    let mut doctor = command(dir.path(), &["doctor"]);
    let output =
        doctor.env("SNAKEPIT_SERVER", sandbox.url()).env("SNAKEPIT_LISTEN", &listen).output().await.unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{text}");
    let version = env!("CARGO_PKG_VERSION");
    for needle in [
        format!("a running snakepit server uses {listen}"),
        format!("snakepit {version} answers at {}, with 2 of 2 workers up", sandbox.url()),
        "0 failed".to_owned(),
    ] {
        assert!(text.contains(&needle), "no {needle:?} in {text}");
    }
    // A server for host tools only has no workers.
    let snakepit = Snakepit::builder()
        .without_workers()
        .run_dir(dir.path().join("host"))
        .listen(([127, 0, 0, 1], 0).into())
        .start()
        .await
        .unwrap();
    let mut doctor = command(dir.path(), &["doctor", "--listen", "127.0.0.1:0"]);
    doctor.env("SNAKEPIT_SERVER", snakepit.address().unwrap().to_string());
    let output = doctor.output().await.unwrap();
    assert!(output.status.success() && stdout(&output).contains("with 0 of 0 workers up"), "{output:?}");
    snakepit.shutdown().await.unwrap();
    // The server is found even if --server does not name its address.
    let output = command(dir.path(), &["doctor", "--listen", &listen]).output().await.unwrap();
    let text = stdout(&output);
    assert!(text.contains(&format!("a running snakepit server uses {listen}")), "{text}");
}
