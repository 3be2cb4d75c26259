//! Checks of the Python interpreter, the package and the adapter.

use std::{ffi::OsStr, path::Path, time::Duration};

use serde::Deserialize;
use snakepit_proto::launch::{PROTOCOL, VERSION, check_version};
use snakepit_server::choose_python;
use snakepit_worker::process::probe;

use super::Check;
use crate::serve;

/// The time limit for the interpreter to report its version and its package.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for loading the adapter.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// The oldest supported minor version of Python 3.
const OLDEST_MINOR: u32 = 11;

/// Describes the interpreter and the package as one line of JSON.
const SCRIPT: &str = "
import json, sys
info = {'version': '.'.join(map(str, sys.version_info[:3])), 'executable': sys.executable}
try:
    import snakepit_bridge
    from snakepit_bridge import _native
    info['bridge'] = {'version': snakepit_bridge.__version__, 'protocol': getattr(_native, 'PROTOCOL', 1),
                       'path': snakepit_bridge.__file__}
except ModuleNotFoundError as error:
    info['error'], info['is_missing'] = str(error), error.name == 'snakepit_bridge'
except BaseException as error:
    info['error'] = type(error).__name__ + ': ' + str(error)
print(json.dumps(info))
";

#[derive(Deserialize)]
struct InterpreterInfo {
    version: String,
    executable: String,
    bridge: Option<Bridge>,
    error: Option<String>,
    #[serde(default)]
    is_missing: bool,
}

#[derive(Deserialize)]
struct Bridge {
    version: String,
    protocol: u32,
    path: String,
}

/// Examines the interpreter, the package and the adapter. Each of them needs the previous one.
pub(super) async fn checks(settings: &serve::Args) -> Vec<Check> {
    if settings.has_worker_command() {
        let reason = "the workers run --worker-command, which may not be Python";
        return ["python", "package", "adapter"].map(|name| Check::skipped(name, reason)).into();
    }
    let (python, origin) = choose_python(settings.python().map(Path::to_owned));
    let shown = format!("{}, chosen {origin}", python.display());
    let choose = "choose another with --python, $SNAKEPIT_PYTHON or a .venv";
    let info = match describe(&python).await {
        Ok(info) => info,
        Err(problem) => {
            let check = Check::failed("python", format!("{shown}: {problem}"), choose);
            let skipped = ["package", "adapter"].map(|name| Check::skipped(name, "it needs the interpreter"));
            return std::iter::once(check).chain(skipped).collect();
        }
    };
    let mut checks = vec![interpreter(&info, &shown, choose)];
    let package = package(&info, &python);
    let is_usable = package.status == super::Status::Ok;
    checks.push(package);
    checks.push(match settings.adapter() {
        None => {
            let advice = "pass one, such as `snakepit doctor app.py`, or set `adapter` in snakepit.toml";
            Check::skipped("adapter", format!("none is set; {advice}"))
        }
        Some(_) if !is_usable => Check::skipped("adapter", "it needs the package"),
        Some(adapter) => load(adapter, &python, settings).await,
    });
    checks
}

async fn describe(python: &Path) -> Result<InterpreterInfo, String> {
    let output =
        probe(python.as_os_str(), ["-c", SCRIPT], &[], PROBE_LIMIT).await.map_err(|e| e.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("it printed nothing");
        format!("it is not a Python interpreter ({}): {last}", output.status)
    })
}

fn interpreter(info: &InterpreterInfo, shown: &str, choose: &str) -> Check {
    let evidence = format!("Python {} in {shown}", info.version);
    let mut parts = info.version.split('.').map(str::parse::<u32>);
    let version = parts.next().and_then(Result::ok).zip(parts.next().and_then(Result::ok));
    match version {
        Some(version) if version >= (3, OLDEST_MINOR) => Check::ok("python", evidence),
        _ => {
            Check::failed("python", evidence, format!("it needs Python 3.{OLDEST_MINOR} or later; {choose}"))
        }
    }
}

fn package(info: &InterpreterInfo, python: &Path) -> Check {
    let install =
        |what: &str| format!("{what} with `{} -m pip install snakepit-bridge=={VERSION}`", python.display());
    let Some(bridge) = &info.bridge else {
        let error = info.error.as_deref().unwrap_or("it cannot be imported");
        let evidence = format!("snakepit_bridge in {}: {error}", info.executable);
        return Check::failed(
            "package",
            evidence,
            install(if info.is_missing { "install it" } else { "reinstall it" }),
        );
    };
    let Bridge { version, protocol, path } = bridge;
    let evidence = format!(
        "snakepit_bridge {version} (protocol {protocol}) in {path}; this program is {VERSION} (protocol {PROTOCOL})"
    );
    match check_version(version, *protocol) {
        Ok(()) => Check::ok("package", evidence),
        Err(_) => Check::failed("package", evidence, install("install the same version")),
    }
}

/// Loads the adapter with its arguments as a worker does, without starting it.
async fn load(adapter: &str, python: &Path, settings: &serve::Args) -> Check {
    let args = ["-m", "snakepit_bridge.worker", "--adapter", adapter, "--health-check"].map(OsStr::new);
    let output = match probe(python.as_os_str(), args, &settings.worker_environment(), LOAD_LIMIT).await {
        Ok(output) => output,
        Err(error) => {
            let fix = "move slow work from the module to `process_init`, or raise --start-timeout";
            return Check::failed("adapter", format!("loading `{adapter}`: {error}"), fix);
        }
    };
    if output.status.success() {
        return Check::ok("adapter", format!("`{adapter}` can be loaded and has tools"));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (evidence, fix) = problem_of_load(stderr.trim_end());
    Check::failed("adapter", evidence, fix)
}

/// The evidence and the fix for the output of a worker that cannot load its adapter: a traceback, if code of the adapter raised an
/// exception, and then the error.
fn problem_of_load(stderr: &str) -> (String, &'static str) {
    let (before, last) = stderr.rsplit_once('\n').unwrap_or(("", stderr));
    let Some(error) = last.strip_prefix("error: ") else {
        return (stderr.to_owned(), "`snakepit dev` shows the log of the worker");
    };
    match before.find("Traceback (most recent call last)").or_else(|| before.find("  File \"")) {
        Some(start) => (
            format!("{error}\n{}", before[start..].trim_end()),
            "correct the code; `snakepit dev` loads it again after each change",
        ),
        None => (
            error.to_owned(),
            "correct the adapter, or name another: `snakepit doctor ADAPTER`, --adapter or `adapter` in snakepit.toml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn info(version: &str, bridge: Option<(&str, u32)>) -> InterpreterInfo {
        let bridge =
            bridge.map(|(version, protocol)| Bridge { version: version.into(), protocol, path: "/p".into() });
        InterpreterInfo {
            version: version.into(),
            executable: "/py".into(),
            bridge,
            error: None,
            is_missing: false,
        }
    }

    #[test]
    fn old_interpreters_and_other_versions_of_the_package_fail() {
        for (version, status) in [("3.11.2", Status::Ok), ("3.14.0", Status::Ok), ("3.9.7", Status::Failed)] {
            assert_eq!(interpreter(&info(version, None), "x", "choose").status, status, "{version}");
        }
        let package =
            |version, protocol| package(&info("3.12.0", Some((version, protocol))), Path::new("/py"));
        assert_eq!(package(VERSION, PROTOCOL).status, Status::Ok);
        for (version, protocol) in [(VERSION, PROTOCOL - 1), ("99.0.0", PROTOCOL)] {
            let check = package(version, protocol);
            assert_eq!(check.status, Status::Failed);
            assert!(
                check.fix.contains(&format!("/py -m pip install snakepit-bridge=={VERSION}")),
                "{check:?}"
            );
        }
    }
    #[test]
    fn only_errors_of_code_have_a_traceback() {
        let traceback = "Traceback (most recent call last):\n  File \"app.py\", line 1\nKeyError: 1";
        let (evidence, fix) = problem_of_load(&format!("printed\n{traceback}\nerror: it cannot be imported"));
        assert_eq!(
            (evidence, &fix[..16]),
            (format!("it cannot be imported\n{traceback}"), "correct the code")
        );
        let (evidence, _) = problem_of_load("error: it cannot be imported: re.error: bad escape");
        assert_eq!(evidence, "it cannot be imported: re.error: bad escape");
        let (evidence, fix) = problem_of_load("error: there is no file `app.py`");
        assert_eq!((&*evidence, &fix[..19]), ("there is no file `app.py`", "correct the adapter"));
    }
}
