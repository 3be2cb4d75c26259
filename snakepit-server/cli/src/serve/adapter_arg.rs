//! [`AdapterArg`]: one argument of the adapter.

use serde_json::Value;

/// An argument of the adapter, from `NAME=TEXT` or `NAME:=JSON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterArg {
    pub(crate) name: String,
    pub(crate) value: Value,
}

impl AdapterArg {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("it takes the form NAME=TEXT or NAME:=JSON")?;
        let (name, value) = match name.strip_suffix(':') {
            Some(name) => {
                let value =
                    serde_json::from_str(value).map_err(|error| format!("`{name}` is not JSON: {error}"))?;
                (name, value)
            }
            None => (name, Value::from(value)),
        };
        if name.is_empty() {
            return Err("it has no name; it takes the form NAME=TEXT or NAME:=JSON".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }

    /// The text from which [`parse`](Self::parse) creates this argument.
    pub(crate) fn to_text(&self) -> String {
        format!("{}:={}", self.name, self.value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_texts_or_json() {
        for (text, name, value) in [
            ("path=/m", "path", json!("/m")),
            ("size=3", "size", json!("3")),
            ("size:=3", "size", json!(3)),
            ("url=http://x?a=b", "url", json!("http://x?a=b")),
            ("empty=", "empty", json!("")),
            (r#"names:=["a", "b"]"#, "names", json!(["a", "b"])),
        ] {
            let parsed = AdapterArg::parse(text).unwrap();
            assert_eq!(parsed, AdapterArg { name: name.to_owned(), value });
            assert_eq!(AdapterArg::parse(&parsed.to_text()).unwrap(), parsed);
        }
        for (text, problem) in [
            ("path", "NAME=TEXT"),
            ("=x", "has no name"),
            (":=1", "has no name"),
            ("a:=b", "`a` is not JSON"),
        ] {
            let error = AdapterArg::parse(text).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
