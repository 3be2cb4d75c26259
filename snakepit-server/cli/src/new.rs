//! `snakepit new`: creates a project with an adapter, its tests and its settings.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use snakepit_server::{Reason, choose_python};
use snakepit_worker::process::probe;

use crate::{Failure, output};

/// The files of a project, relative to its directory. `my_project` stands for the module, and `my-project` for the name.
const FILES: [(&str, &str); 6] = [
    ("my_project.py", include_str!("new/templates/adapter.py")),
    ("tests/test_my_project.py", include_str!("new/templates/test_adapter.txt")),
    ("snakepit.toml", include_str!("new/templates/snakepit.toml")),
    ("pyproject.toml", include_str!("new/templates/pyproject.toml")),
    ("README.md", include_str!("new/templates/README.md")),
    (".gitignore", include_str!("new/templates/gitignore")),
];

/// Python keywords, and names of modules that a file would hide.
const RESERVED_NAMES: &str = include_str!("new/templates/reserved_names.txt");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Create this directory. Its name becomes the name of the project and, with `_` for `-`, of the Python module.
    #[arg(value_name = "NAME")]
    path: PathBuf,
}

/// Finds the file of a module, without the modules of the working directory (`-P`). A directory without `__init__.py` counts only
/// among installed packages.
const FIND_MODULE: &str = "
import importlib.util, sys
found = importlib.util.find_spec(sys.argv[1])
if found is not None:
    places = [found.origin] if found.origin else list(found.submodule_search_locations or ())
    print(*(place for place in places if found.origin or '-packages' in place), sep='\\n', end='')
";

/// The time limit for the interpreter to find a module.
const FIND_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(Args { path }: &Args) -> Result<(), Failure> {
    output::check()?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let reject = |problem: String| {
        let text = format!("`{}` cannot be the name of a project: {problem}", path.display());
        Failure::new(Reason::Usage, text)
    };
    let module = module_of(name).map_err(reject)?;
    if let Some(place) = installed(&module).await {
        let problem = format!(
            "`{module}` is an installed module, {place}, which the project would hide; choose another, such as `my-{name}`"
        );
        return Err(reject(problem));
    }
    let mut created = Created::default();
    create(path, &module, name, &mut created)?;
    created.0.clear();
    let shown = path.display();
    output::print(&format!(
        "created {shown} with the tools in {module}.py. Next:\n\n  cd {shown}\n  pytest\n  snakepit dev\n\nand in \
         another terminal:\n\n  snakepit call greet name=Ada"
    ))
}

/// The file of the installed module with this name. `None` if it is not installed, or without an interpreter.
async fn installed(module: &str) -> Option<String> {
    let (python, _) = choose_python(None);
    let output = probe(python.as_os_str(), ["-P", "-c", FIND_MODULE, module], &[], FIND_LIMIT).await.ok()?;
    let place = String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned();
    output.status.success().then_some(place)
}

/// Files and directories in creation order. Removes them when it is dropped.
#[derive(Default)]
struct Created(Vec<PathBuf>);

impl Drop for Created {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // A directory in which another program has created a file stays.
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
    }
}

impl Created {
    /// Creates a directory and its parents, unless they exist.
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        fs::create_dir(path)?;
        self.0.push(path.to_owned());
        Ok(())
    }

    fn file(&mut self, path: &Path, content: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        self.0.push(path.to_owned());
        file.write_all(content.as_bytes())?;
        // File systems may report a full disk only now.
        file.sync_all()
    }
}

fn create(path: &Path, module: &str, name: &str, created: &mut Created) -> Result<(), Failure> {
    let cannot = |path: &Path, error: &io::Error| {
        let reason = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Reason::OutputFailed
            }
            _ => Reason::Usage,
        };
        Failure::new(reason, format!("cannot create {}: {error}", path.display()))
    };
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            let problem = format!("{} exists and is not empty; nothing was changed", path.display());
            return Err(Failure::new(Reason::Usage, problem));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            created.directory(path).map_err(|error| cannot(path, &error))?;
        }
        Err(error) => return Err(cannot(path, &error)),
    }
    let fill = |text: &str| text.replace("my_project", module).replace("my-project", name);
    for (file, content) in FILES {
        let file = path.join(fill(file));
        let parent = file.parent().unwrap_or(path);
        created.directory(parent).map_err(|error| cannot(parent, &error))?;
        created.file(&file, &fill(content)).map_err(|error| cannot(&file, &error))?;
    }
    Ok(())
}

/// The name of the Python module of a project.
///
/// # Errors
/// The problem of a name that cannot be a module.
fn module_of(name: &str) -> Result<String, String> {
    let module = name.replace('-', "_");
    let is_valid = |(index, c): (usize, char)| {
        c.is_ascii_alphabetic() || (index > 0 && (c.is_ascii_digit() || c == '_'))
    };
    if module.is_empty() || !module.char_indices().all(is_valid) {
        return Err("it takes letters, digits, `-` and `_`, and begins with a letter".to_owned());
    }
    if name.len() > 64 {
        return Err("it is longer than 64 characters".to_owned());
    }
    // File systems may ignore case.
    if RESERVED_NAMES.lines().any(|reserved| reserved.eq_ignore_ascii_case(&module)) {
        return Err(format!(
            "`{module}` is a keyword or a module of Python; choose another, such as `my-{name}`"
        ));
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_modules() {
        for (name, module) in [("shop", "shop"), ("my-shop2", "my_shop2"), ("My_Shop", "My_Shop")] {
            assert_eq!(module_of(name).as_deref(), Ok(module));
        }
        for (name, problem) in [
            ("", "begins with a letter"),
            ("2shop", "begins with a letter"),
            ("-shop", "begins with a letter"),
            ("a b", "begins with a letter"),
            ("größe", "begins with a letter"),
            ("..", "begins with a letter"),
            ("class", "keyword"),
            ("JSON", "module of Python"),
            ("snakepit-bridge", "module of Python"),
            (&"a".repeat(65), "longer than 64"),
        ] {
            let found = module_of(name).unwrap_err();
            assert!(found.contains(problem), "{name}: {found}");
        }
    }

    #[test]
    fn a_failed_creation_removes_what_it_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/shop");
        let mut created = Created::default();
        create(&path, "shop", "shop", &mut created).unwrap();
        // As if the next file could not be written.
        drop(created);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn existing_files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("notes"), "mine").unwrap();
        let failure = run(&Args { path: path.clone() }).await.unwrap_err();
        assert!(failure.message.contains("not empty"), "{}", failure.message);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        fs::write(dir.path().join("file"), "").unwrap();
        run(&Args { path: dir.path().join("file") }).await.unwrap_err();
    }
}
