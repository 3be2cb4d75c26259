//! The arguments of a tool on the command line: `NAME=TEXT`, `NAME:=JSON`, `NAME=@FILE`, `NAME:=@FILE` and `--args`.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
};

use bytes::Bytes;
use serde_json::value::RawValue;
use snakepit_proto::{
    mux::MAX_ITEM_BYTES,
    value::{self, TypedValue},
};
use snakepit_server::{Reason, ToolSpec};

use super::{literal, npy, parameter::AcceptedTypes};
use crate::{
    Failure,
    entries::{self, Entries},
};

/// The form of an argument, for error messages.
const FORM: &str = "NAME=TEXT, NAME:=JSON, NAME=@FILE or NAME:=@FILE";

/// The longest argument that an error message repeats, in bytes.
const MAX_EXAMPLE: usize = 40;

/// One argument on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    name: String,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Text(String),
    Json(String),
    File(FileOrStdin),
    JsonFile(FileOrStdin),
}

/// The file from which a value is read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FileOrStdin {
    Stdin,
    Path(PathBuf),
}

impl FileOrStdin {
    fn parse(text: &str) -> Self {
        if text == "-" { Self::Stdin } else { Self::Path(text.into()) }
    }
}

impl fmt::Display for FileOrStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Argument {
    /// Parses a word of the command line.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let (name, value) = word.split_once('=').ok_or_else(|| {
            let example = if word.len() <= MAX_EXAMPLE { word } else { "TEXT" };
            format!("it has no name; write NAME={example} with a name that `snakepit tools TOOL` shows; the forms are {FORM}")
        })?;
        let (name, is_json) = name.strip_suffix(':').map_or((name, false), |name| (name, true));
        if name.is_empty() {
            return Err(format!("it has no name; it takes the form {FORM}"));
        }
        let source = match (is_json, value.strip_prefix('@')) {
            (_, Some("")) => return Err(format!("`{name}` names no file after `@`; `@-` is standard input")),
            (true, Some(path)) => Source::JsonFile(FileOrStdin::parse(path)),
            (true, None) => Source::Json(value.to_owned()),
            (false, Some(path)) => Source::File(FileOrStdin::parse(path)),
            (false, None) => Source::Text(value.to_owned()),
        };
        Ok(Self { name: name.to_owned(), source })
    }

    fn file(&self) -> Option<&FileOrStdin> {
        match &self.source {
            Source::File(file) | Source::JsonFile(file) => Some(file),
            Source::Text(_) | Source::Json(_) => None,
        }
    }
}

/// The arguments of one call, before the tool is known.
#[derive(Debug)]
pub(super) struct Arguments(BTreeMap<String, RawArgument>);

/// The value of an argument before the types of the tool are known.
#[derive(Debug)]
enum RawArgument {
    Json(Box<RawValue>),
    Text(String),
    Content { content: Vec<u8>, from: FileOrStdin },
}

impl Arguments {
    /// Reads all arguments, including their files. `whole` is the text of `--args`.
    ///
    /// # Errors
    /// A failure that names the argument.
    pub(super) fn read(whole: &str, single: &[Argument]) -> Result<Self, Failure> {
        let whole_file = match whole {
            "-" => Some(FileOrStdin::Stdin),
            _ => whole.strip_prefix('@').map(FileOrStdin::parse),
        };
        let files = whole_file.iter().chain(single.iter().filter_map(Argument::file));
        if files.filter(|file| **file == FileOrStdin::Stdin).count() > 1 {
            return Err(usage("standard input can be read only once; use `-` in one argument".to_owned()));
        }
        let mut remaining = MAX_ITEM_BYTES;
        let whole = match &whole_file {
            None => whole.to_owned(),
            Some(file) => text("--args", file, read("--args", file, &mut remaining)?)?,
        };
        let mut values: BTreeMap<String, RawArgument> = parse_whole(&whole)?;
        for Argument { name, source } in single {
            if values.contains_key(name) {
                return Err(usage(format!("the argument `{name}` has two values; pass one of them")));
            }
            let label = format!("the argument `{name}`");
            let argument = match source {
                Source::Text(text) => RawArgument::Text(text.clone()),
                Source::Json(json) => RawArgument::Json(parse_json(&label, json)?),
                Source::JsonFile(file) => {
                    let content = read(&label, file, &mut remaining)?;
                    RawArgument::Json(parse_json(&label, &text(&label, file, content)?)?)
                }
                Source::File(file) => {
                    let content = read(&label, file, &mut remaining)?;
                    RawArgument::Content { content, from: file.clone() }
                }
            };
            values.insert(name.clone(), argument);
        }
        Ok(Self(values))
    }

    /// Whether the values depend on the types of the parameters.
    pub(super) fn require_spec(&self) -> bool {
        self.0.values().any(|argument| !matches!(argument, RawArgument::Json(_)))
    }

    /// Converts the arguments to the types that the tool accepts. Without a spec, all values stay strings.
    ///
    /// # Errors
    /// A failure that names the argument whose text or file does not fit.
    pub(super) fn into_values(
        self,
        spec: Option<&ToolSpec>,
    ) -> Result<BTreeMap<String, TypedValue>, Failure> {
        let schema = spec.map(ToolSpec::input_schema).unwrap_or_default();
        let values = self.0.into_iter().map(|(name, argument)| {
            let accepted = AcceptedTypes::of_parameter(&schema, &name);
            let reject = |problem: String| usage(format!("the argument `{name}` {problem}"));
            let value = match argument {
                RawArgument::Json(json) => of_json(&json),
                RawArgument::Text(text) => literal::convert(&text, &accepted)
                    .map_err(|problem| reject(format!("{problem}; to pass JSON, write `{name}:=JSON`")))?,
                RawArgument::Content { content, from } => {
                    of_content(content, &from, &accepted).map_err(reject)?
                }
            };
            Ok((name, value))
        });
        values.collect()
    }
}

fn usage(problem: String) -> Failure {
    Failure::new(Reason::Usage, problem)
}

/// Parses the value of `--args`.
fn parse_whole(json: &str) -> Result<BTreeMap<String, RawArgument>, Failure> {
    let Entries(entries) = serde_json::from_str(json).map_err(|error| {
        let problem = super::problem_of_arguments(json, &error);
        usage(format!("--args is not a JSON object: {problem}; it looks like '{{\"a\": 1, \"b\": 2}}'"))
    })?;
    if let Some(key) = entries::duplicate_key(&entries) {
        return Err(usage(format!("--args has two values for the key {key}; pass one of them")));
    }
    Ok(entries.into_iter().map(|(name, json)| (name, RawArgument::Json(json.to_owned()))).collect())
}

fn parse_json(label: &str, json: &str) -> Result<Box<RawValue>, Failure> {
    let parsed: &RawValue = serde_json::from_str(json).map_err(|error| {
        let problem = match json.trim().is_empty() {
            true => "it is empty".to_owned(),
            false => error.to_string(),
        };
        usage(format!("{label} is not JSON: {problem}; a string is `NAME=TEXT`, without the colon"))
    })?;
    if let Some(key) = duplicate_key(parsed) {
        return Err(usage(format!("{label} has two values for the key {key}; pass one of them")));
    }
    Ok(parsed.to_owned())
}

/// The path of a key that occurs twice in the same object of the value.
fn duplicate_key(json: &RawValue) -> Option<String> {
    entries::duplicate_key(&[(String::new(), json)]).map(|path| path.trim_start_matches("``.").to_owned())
}

/// Reads a file or standard input, at most `remaining` bytes, and subtracts its size.
fn read(label: &str, file: &FileOrStdin, remaining: &mut usize) -> Result<Vec<u8>, Failure> {
    let cannot = |error: &dyn fmt::Display| usage(format!("{label} cannot be read from {file}: {error}"));
    let too_large = |size: &str| {
        usage(format!(
            "{label} is too large: {file} has {size} bytes, and the arguments of a call may have \
             {MAX_ITEM_BYTES} bytes together; pass the path of the file as text"
        ))
    };
    let limit = *remaining as u64;
    let mut content = Vec::new();
    let read = match file {
        FileOrStdin::Stdin => io::stdin().lock().take(limit + 1).read_to_end(&mut content),
        FileOrStdin::Path(path) => {
            let metadata = fs::metadata(path).map_err(|error| cannot(&error))?;
            if metadata.is_dir() {
                return Err(cannot(&"it is a directory"));
            }
            if metadata.len() > limit {
                return Err(too_large(&metadata.len().to_string()));
            }
            let file = File::open(path).map_err(|error| cannot(&error))?;
            file.take(limit + 1).read_to_end(&mut content)
        }
    };
    read.map_err(|error| cannot(&error))?;
    // A pipe or a device has no size.
    *remaining =
        remaining.checked_sub(content.len()).ok_or_else(|| too_large(&format!("more than {limit}")))?;
    Ok(content)
}

fn text(label: &str, file: &FileOrStdin, content: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(content).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        usage(format!("{label} is not text: {file} is not UTF-8 at byte {at}"))
    })
}

fn of_json(json: &RawValue) -> TypedValue {
    let text = json.get();
    let type_name = value::infer_type(text.as_bytes()).unwrap_or("null").into();
    TypedValue { type_name, json: text.to_owned().into(), binary: None }
}

/// Converts the content of a file to the type that the parameter accepts.
fn of_content(content: Vec<u8>, from: &FileOrStdin, accepted: &AcceptedTypes) -> Result<TypedValue, String> {
    let is_npy = matches!(from, FileOrStdin::Path(path) if path.extension().is_some_and(|end| end == "npy"));
    if is_npy && (accepted.array || accepted.any) {
        return npy::read(&content).map_err(|problem| format!("cannot be read from {from}: {problem}"));
    }
    if accepted.bytes {
        return Ok(value::bytes_value(Bytes::from(content)));
    }
    let text = match String::from_utf8(content) {
        Ok(text) => text,
        Err(error) if accepted.any => return Ok(value::bytes_value(Bytes::from(error.into_bytes()))),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            return Err(format!("takes {accepted}, and {from} is not UTF-8 at byte {at}"));
        }
    };
    if accepted.text || accepted.any {
        return Ok(literal::string(&text));
    }
    if accepted.array || accepted.object {
        let advice = "put `:=` in place of `=` if the file contains JSON";
        return Err(format!("takes {accepted}, and {from} is not a .npy file; {advice}"));
    }
    // Files usually end with a newline.
    literal::convert(text.trim(), accepted)
        .map_err(|problem| format!("cannot be read from {from}: it {problem}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> ToolSpec {
        ToolSpec::new("t")
            .parameter("n", "integer", "")
            .parameter("x", "float", "")
            .parameter("on", "boolean", "")
            .parameter("s", "string", "")
            .parameter("data", "bytes", "")
            .parameter("items", "list", "")
            .parameter("a", "any", "")
    }

    fn values(whole: &str, words: &[&str]) -> Result<BTreeMap<String, TypedValue>, String> {
        let single: Vec<Argument> = words.iter().map(|word| Argument::parse(word).unwrap()).collect();
        let arguments = Arguments::read(whole, &single).map_err(|failure| failure.message)?;
        arguments.into_values(Some(&spec())).map_err(|failure| failure.message)
    }

    fn one(word: &str) -> (String, String) {
        let (_, value) = values("{}", &[word]).unwrap().pop_first().unwrap();
        let content = value.binary.as_ref().unwrap_or(&value.json);
        (value.type_name.into_owned(), String::from_utf8(content.to_vec()).unwrap())
    }

    #[test]
    fn texts_become_values_of_the_types_of_their_parameters() {
        for (word, type_name, content) in [
            ("n=5", "integer", "5"),
            ("n=18446744073709551616", "integer", "18446744073709551616"),
            ("x=5", "integer", "5"),
            ("x=-1.5e3", "float", "-1.5e3"),
            ("x=nan", "float", r#""NaN""#),
            ("x=-inf", "float", r#""-Infinity""#),
            ("on=true", "boolean", "true"),
            ("s=5", "string", r#""5""#),
            ("s=", "string", r#""""#),
            ("s=a=b:=c", "string", r#""a=b:=c""#),
            ("a=5", "string", r#""5""#),
            ("unknown=5", "string", r#""5""#),
            ("data=text", "bytes", "text"),
            ("a:=5", "integer", "5"),
            ("items:=[1, 2]", "list", "[1, 2]"),
            (r#"s:="@x""#, "string", r#""@x""#),
        ] {
            assert_eq!(one(word), (type_name.to_owned(), content.to_owned()), "{word}");
        }
    }

    #[test]
    fn the_content_of_files_has_the_types_of_its_parameters() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let (number, raw) = (path("number", b"7\n"), path("raw", b"\xff\x00"));
        assert_eq!(one(&format!("n=@{number}")), ("integer".to_owned(), "7".to_owned()));
        assert_eq!(one(&format!("s=@{number}")), ("string".to_owned(), r#""7\n""#.to_owned()));
        assert_eq!(one(&format!("data=@{number}")), ("bytes".to_owned(), "7\n".to_owned()));
        assert_eq!(one(&format!("items:=@{number}")), ("integer".to_owned(), "7\n".trim().to_owned()));
        let any = values("{}", &[&format!("a=@{raw}")]).unwrap();
        assert_eq!((&*any["a"].type_name, any["a"].binary.as_deref()), ("bytes", Some(&b"\xff\x00"[..])));
        let problem = values("{}", &[&format!("s=@{raw}")]).unwrap_err();
        assert!(
            problem.contains("`s` takes a string, and") && problem.contains("not UTF-8 at byte 0"),
            "{problem}"
        );
        let problem = values("{}", &[&format!("items=@{number}")]).unwrap_err();
        assert!(problem.contains("`items` takes a list") && problem.contains("`:=`"), "{problem}");
        let whole = path("whole.json", br#"{"n": 1, "s": "x"}"#);
        assert_eq!(values(&format!("@{whole}"), &["on=false"]).unwrap().len(), 3);
    }

    #[test]
    fn errors_name_the_argument() {
        let dir = tempfile::tempdir().unwrap();
        let huge = dir.path().join("huge");
        File::create(&huge).unwrap().set_len(MAX_ITEM_BYTES as u64 + 1).unwrap();
        let (dir, huge) = (dir.path().display().to_string(), huge.display().to_string());
        for (whole, words, expected) in [
            ("{}", vec!["n=five"], "the argument `n` takes an integer, not `five`"),
            ("{}", vec!["on=yes"], "the argument `on` takes true or false, not `yes`"),
            ("{}", vec!["items=a"], "the argument `items` takes a list"),
            ("{}", vec!["a:=five"], "the argument `a` is not JSON: "),
            ("{}", vec!["a:="], "the argument `a` is not JSON: it is empty"),
            (
                "{}",
                vec![r#"a:={"b": {"c": 1, "c": 2}}"#],
                "the argument `a` has two values for the key `b`.`c`",
            ),
            ("{}", vec!["n=1", "n=2"], "the argument `n` has two values"),
            (r#"{"n": 1}"#, vec!["n=2"], "the argument `n` has two values"),
            ("-", vec!["s=@-"], "standard input can be read only once"),
            ("{}", vec!["data=@-", "s:=@-"], "standard input can be read only once"),
            (
                "{}",
                vec!["data=@/nowhere/x"],
                "the argument `data` cannot be read from /nowhere/x: No such file",
            ),
            ("@/nowhere/x", vec![], "--args cannot be read from /nowhere/x: No such file"),
            (
                "{}",
                vec![&format!("data=@{dir}")],
                &format!("`data` cannot be read from {dir}: it is a directory"),
            ),
            ("{}", vec![&format!("data=@{huge}")], "the argument `data` is too large: "),
            ("{}", vec!["data=@/dev/zero"], "the argument `data` is too large: "),
        ] {
            let problem = values(whole, &words).unwrap_err();
            assert!(problem.contains(expected), "{words:?}: {problem}");
        }
        for (word, expected) in
            [("5", "NAME=TEXT"), ("=5", "has no name"), (":=5", "has no name"), ("a=@", "names no file")]
        {
            let problem = Argument::parse(word).unwrap_err();
            assert!(problem.contains(expected), "{word}: {problem}");
        }
    }

    #[test]
    fn unions_accept_a_text_or_a_null() {
        let mut spec = ToolSpec::new("t").parameter("n", "any", "").parameter("u", "any", "");
        spec.parameters[0].validation_json =
            json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}).to_string();
        spec.parameters[1].validation_json = json!({"type": ["integer", "string"]}).to_string();
        let convert = |word: &str| {
            let arguments = Arguments::read("{}", &[Argument::parse(word).unwrap()]).unwrap();
            let value = arguments.into_values(Some(&spec)).unwrap().pop_first().unwrap().1;
            String::from_utf8(value.json.to_vec()).unwrap()
        };
        assert_eq!([convert("n=5"), convert("n=null"), convert("u=5")], ["5", "null", r#""5""#]);
    }
}
