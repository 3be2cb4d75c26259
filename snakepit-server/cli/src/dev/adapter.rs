//! Finds the adapter and the directories of its code.

use std::{
    fs,
    path::{Path, PathBuf},
};

use snakepit_server::Reason;

use super::watcher;
use crate::{Failure, serve};

/// File names that projects often use for the adapter, in order of precedence.
const NAMES: [&str; 4] = ["adapter.py", "app.py", "tools.py", "main.py"];

/// A directory that the user named.
#[derive(Debug)]
pub(crate) enum NamedDirectory {
    /// The directory of a project. It is the working directory now.
    Directory,
    /// A package. Its parent is the working directory now.
    Package(String),
}

impl NamedDirectory {
    /// Enters the directory that the user named, so that its settings apply and its modules can be imported. Returns `None` if
    /// `path` does not name a directory.
    ///
    /// # Errors
    /// The directory cannot be entered.
    pub(crate) fn enter(path: &str) -> Result<Option<Self>, Failure> {
        let dir = Path::new(path);
        if !dir.is_dir() {
            return Ok(None);
        }
        let cannot =
            |error| Failure::new(Reason::Usage, format!("cannot enter the directory {path}: {error}"));
        let dir = fs::canonicalize(dir).map_err(cannot)?;
        let package =
            dir.file_name().filter(|_| is_package(&dir)).map(|name| name.to_string_lossy().into_owned());
        let target = if package.is_some() { dir.parent().unwrap_or(&dir) } else { &dir };
        std::env::set_current_dir(target).map_err(cannot)?;
        Ok(Some(package.map_or(Self::Directory, Self::Package)))
    }
}

fn is_package(dir: &Path) -> bool {
    dir.join("__init__.py").is_file()
}

/// Sets the adapter of the daemon, unless it has one.
///
/// # Errors
/// The directory has no candidate, or several.
pub(super) fn choose(serve: &mut serve::Args, directory: Option<NamedDirectory>) -> Result<(), Failure> {
    match directory {
        Some(NamedDirectory::Package(name)) => serve.set_adapter(format!("{name}:")),
        Some(NamedDirectory::Directory) => serve.clear_served(),
        None => {}
    }
    if serve.adapter().is_none() && !serve.has_worker_command() {
        let dir = std::env::current_dir().unwrap_or_default();
        let found = find(&dir).map_err(|problem| {
            let advice = "name one, such as `snakepit dev app.py`, or create one with `snakepit new NAME`";
            Failure::new(Reason::Usage, format!("{problem} in {}; {advice}", dir.display()))
        })?;
        serve.set_adapter(found);
    }
    Ok(())
}

/// Finds the adapter of a directory.
fn find(dir: &Path) -> Result<String, String> {
    if let Some(name) = NAMES.iter().find(|name| dir.join(name).is_file()) {
        return Ok((*name).to_owned());
    }
    let entries =
        fs::read_dir(dir).map_err(|error| format!("the files cannot be listed: {error}"))?.flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_code = |name: &&String| {
        !["setup.py", "conftest.py"].contains(&name.as_str())
            && !name.starts_with(['.', '_'])
            && !name.starts_with("test")
    };
    let mut files: Vec<&String> = names.iter().filter(is_code).filter(|name| name.ends_with(".py")).collect();
    let mut packages: Vec<&String> =
        names.iter().filter(is_code).filter(|name| is_package(&dir.join(name))).collect();
    files.sort();
    packages.sort();
    match (&*files, &*packages) {
        ([file], _) => Ok((*file).clone()),
        ([], [package]) => Ok(format!("{package}:")),
        ([], []) => Err("there is no Python file".to_owned()),
        ([], several) | (several, _) => {
            let names: Vec<String> = several.iter().map(|name| format!("`{name}`")).collect();
            Err(format!("there are several candidates, {},", names.join(", ")))
        }
    }
}

/// The file of the adapter, if its path names one.
pub(super) fn file(serve: &serve::Args) -> Option<PathBuf> {
    let name = serve.adapter()?;
    let name = name.split(':').next().unwrap_or(name);
    let path = match Path::new(name).extension() {
        Some(end) if end == "py" => PathBuf::from(name),
        _ => PathBuf::from(format!("{}.py", name.replace('.', "/"))),
    };
    fs::canonicalize(path).ok()
}

/// The directories whose Python files belong to the adapter: the working directory, and the directory of the adapter's file if
/// the watcher would not find it there.
pub(super) fn directories(serve: &serve::Args) -> Vec<PathBuf> {
    let dir = std::env::current_dir().and_then(fs::canonicalize).unwrap_or_else(|_| PathBuf::from("."));
    let parent = file(serve).and_then(|file| Some(file.parent()?.to_owned()));
    let outside = parent.filter(|parent| match parent.strip_prefix(&dir) {
        Ok(below) => below.iter().any(|name| watcher::is_skipped(&name.to_string_lossy())),
        Err(_) => true,
    });
    std::iter::once(dir).chain(outside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adapter_is_the_usual_file_or_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let found = || find(dir.path());
        let create = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert!(found().unwrap_err().contains("no Python file"));
        for name in ["tests/__init__.py", "setup.py", "test_a.py", "conftest.py", "notes.txt", ".hidden.py"] {
            create(name);
        }
        assert!(found().unwrap_err().contains("no Python file"));
        create("shop/__init__.py");
        assert_eq!(found().as_deref(), Ok("shop:"));
        create("store/__init__.py");
        assert!(found().unwrap_err().contains("several candidates, `shop`, `store`"));
        create("one.py");
        assert_eq!(found().as_deref(), Ok("one.py"));
        create("two.py");
        assert!(found().unwrap_err().contains("`one.py`, `two.py`"));
        create("main.py");
        create("app.py");
        assert_eq!(found().as_deref(), Ok("app.py"));
    }
}
