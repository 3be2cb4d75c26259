//! Finding the Python to run workers with.

use std::path::{Path, PathBuf};

/// The interpreter of the nearest virtual environment: `$VIRTUAL_ENV`, else `.venv` in this directory or one above
/// it, else plain `python3` from `PATH`.
#[must_use]
pub fn find_python() -> PathBuf {
    let active = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    let here = std::env::current_dir().unwrap_or_default();
    find_in(active.as_deref(), &here).unwrap_or_else(|| "python3".into())
}

fn find_in(active: Option<&Path>, here: &Path) -> Option<PathBuf> {
    let nearby = here.ancestors().map(|dir| dir.join(".venv"));
    active
        .map(Path::to_owned)
        .into_iter()
        .chain(nearby)
        .map(|venv| venv.join("bin/python"))
        .find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_environment_wins_over_the_nearest_one() {
        let dir = tempfile::tempdir().unwrap();
        let (active, project) = (dir.path().join("active"), dir.path().join("project"));
        for venv in [&active, &project.join(".venv")] {
            std::fs::create_dir_all(venv.join("bin")).unwrap();
            std::fs::write(venv.join("bin/python"), "").unwrap();
        }
        let deep = project.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(find_in(Some(&active), &deep), Some(active.join("bin/python")));
        assert_eq!(find_in(None, &deep), Some(project.join(".venv/bin/python")));
        assert_eq!(find_in(Some(&dir.path().join("gone")), &deep), Some(project.join(".venv/bin/python")));
        assert_eq!(find_in(None, dir.path()), None);
    }
}
