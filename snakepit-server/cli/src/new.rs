//! `snakepit new`: creates a project with an adapter, its tests and its settings.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use snakepit_server::Reason;

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

/// Keywords of Python, and names of modules that a file would hide.
const RESERVED_NAMES: &str = include_str!("new/templates/reserved_names.txt");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Create this directory. Its name becomes the name of the project and, with `_` for `-`, of the Python module.
    #[arg(value_name = "NAME")]
    path: PathBuf,
}

pub(crate) fn run(Args { path }: &Args) -> Result<(), Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let module = module_of(name).map_err(|problem| {
        Failure::new(
            Reason::Usage,
            format!("`{}` cannot be the name of a project: {problem}", path.display()),
        )
    })?;
    let cannot = |path: &Path, error: &std::io::Error| {
        Failure::new(Reason::Usage, format!("cannot create {}: {error}", path.display()))
    };
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            let problem = format!("{} exists and is not empty; nothing was changed", path.display());
            return Err(Failure::new(Reason::Usage, problem));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(|error| cannot(path, &error))?;
        }
        Err(error) => return Err(cannot(path, &error)),
    }
    let fill = |text: &str| text.replace("my_project", &module).replace("my-project", name);
    for (file, content) in FILES {
        let file = path.join(fill(file));
        let parent = file.parent().unwrap_or(path);
        fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&file)
            .and_then(|mut created| created.write_all(fill(content).as_bytes()));
        written.map_err(|error| cannot(&file, &error))?;
    }
    let shown = path.display();
    output::print(&format!(
        "created {shown} with the tools in {module}.py. Next:\n\n  cd {shown}\n  pytest\n  snakepit dev\n\nand in \
         another terminal:\n\n  snakepit call greet name=Ada"
    ))
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
        return Err(format!("`{module}` is a keyword or a module of Python"));
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
    fn existing_files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("notes"), "mine").unwrap();
        let failure = run(&Args { path: path.clone() }).unwrap_err();
        assert!(failure.message.contains("not empty"), "{}", failure.message);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        fs::write(dir.path().join("file"), "").unwrap();
        run(&Args { path: dir.path().join("file") }).unwrap_err();
    }
}
