//! Finds the Python interpreters with which to try a wheel.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    setup,
    shell::{output, program, try_output},
};

/// The supported minor versions of CPython 3.
const MINORS: std::ops::RangeInclusive<u32> = 11..=14;

/// Returns one interpreter for each supported version of CPython that is installed, and prints the versions that are not.
pub(super) fn installed() -> Result<Vec<PathBuf>> {
    let first = setup::find_python()?;
    let mut found = Vec::new();
    for minor in MINORS {
        let name = format!("python3.{minor}");
        let candidates = [first.clone(), PathBuf::from(&name)].into_iter().chain(pyenv_interpreters(minor));
        match candidates.into_iter().find(|candidate| probe_minor_version(candidate) == Some(minor)) {
            Some(python) => found.push(python),
            None => println!("    not tried with {name}, which is neither on PATH nor installed by pyenv"),
        }
    }
    Ok(found)
}

/// Whether a Python uses musl as its C library.
pub(super) fn uses_musl(python: &Path) -> Result<bool> {
    let code = "import sysconfig; print(sysconfig.get_config_var('HOST_GNU_TYPE'))";
    Ok(output(program(python).args(["-c", code]))?.contains("musl"))
}

/// The interpreters of a version that pyenv installed. Those on `PATH` are shims, which run only the selected versions.
fn pyenv_interpreters(minor: u32) -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let Some(entries) = root.and_then(|root| std::fs::read_dir(root.join("versions")).ok()) else {
        return Vec::new();
    };
    let prefix = format!("3.{minor}.");
    let versions = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    versions.map(|entry| entry.path().join("bin/python3")).collect()
}

/// The minor version of an interpreter that runs and is not free-threaded.
fn probe_minor_version(python: &Path) -> Option<u32> {
    let code = "import sys, sysconfig\n\
                if sys.version_info[0] == 3 and not sysconfig.get_config_var('Py_GIL_DISABLED'): print(sys.version_info[1])";
    let run = try_output(program(python).args(["-c", code])).ok()?;
    String::from_utf8(run.stdout).ok()?.trim().parse().ok()
}
