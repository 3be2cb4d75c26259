//! The rules of the table, and the page that shows it. `UPDATE_PAGES=1 cargo test -p snakepit-reason` writes the page.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{collections::BTreeSet, fmt::Write, path::Path};

use snakepit_reason::{Code, Origin, Reason};

/// The text of the page before the table.
const INTRODUCTION: &str = "\
# Errors

Every error of a host, a client and the command line has a *reason*, such as `TOOL_NOT_FOUND`. Branch on the reason, because
several reasons share a gRPC code. The tables on this page list all reasons, with their codes in each protocol. Rust programs
get the reason of an error as `Reason` or `ErrorKind`.

- **gRPC**: the reason is in the `google.rpc.ErrorInfo` of the status details, with the domain `snakepit`. If a reason has
  several codes, the code depends on the error. `UNAVAILABLE` means that gRPC libraries may retry.
- **HTTP**: the status of a problem document (RFC 9457), whose member `reason` has the reason.
- **JSON-RPC**: the `code` of an error object, as in MCP, whose `data.reason` has the reason.
- **exit**: the exit code of the command line. With `--json`, the member `code` has the reason.
- **transient**: the same request may succeed later. A retry is safe only if `may_have_run` is false or the tool is idempotent.

In Python, each reason is a [class of exceptions](clients.md#errors), and a tool chooses the code of its error:

<!-- file: stock.py -->

```python
from snakepit_bridge import ToolError


def take(item: str, count: int = 1) -> int:
    raise ToolError(f\"no {item} left\", code=\"not_found\", data={\"left\": 0})
```

<!-- server -->

```console
$ snakepit serve stock.py
{\"grpc\":..}
```

```python
from snakepit_bridge import Client, InvalidArgumentError, NotFoundError, ToolFailed

with Client() as client:
    try:
        client.call(\"take\", item=\"tea\")
    except ToolFailed as error:
        print(error.code, error.data, error.may_have_run)  # not_found {'left': 0} True
    try:
        client.call(\"take\", item=\"tea\", count=\"two\")
    except InvalidArgumentError as error:
        print(error.violations[0][0], error.may_have_run)  # count False
    try:
        client.call(\"give\", item=\"tea\")
    except NotFoundError as error:
        print(error.is_retryable)  # False
```

```console
$ snakepit call take item=tea
snakepit: ..no tea left..
```

The [metadata](#metadata) of an error has further data. In gRPC, it is the metadata of the `ErrorInfo`.

<!-- Generated from snakepit-proto/reason/src/table.rs: UPDATE_PAGES=1 cargo test -p snakepit-reason -->

";

/// The text of the page before the codes of tools.
const CODES_OF_TOOLS: &str = "\
## Codes of tools

A failure of a tool has the reason `TOOL_FAILED`. The tool can choose its codes: `raise ToolError(\"no such item\", code=\"not_found\")`
in Python, `HostError::new(\"no such item\").code(\"not_found\")` in Rust. A code that is not in this table stands for `INTERNAL`, and
callers receive its text. The exit code is always 1.

- The gRPC code is that of the status that ends a stream. `ExecuteTool` answers with `success: false`, and with the code in `failure`.
- The tool has run, so `may_have_run` is true. With `unavailable`, gRPC libraries may repeat a stream before its first chunk.

| code of the tool | gRPC | HTTP | JSON-RPC |
| --- | --- | --- | --- |
";

/// The entries of the metadata, with their meanings. A test in `snakepit-server` checks that no entry is missing.
const METADATA: &[(&str, &str)] = &[
    (
        "delivered",
        "`true` if the call or write may have run, `false` if not. Absent if the reason alone shows it",
    ),
    ("layer", "`true` if a layer of the host's program ended the call"),
    (
        "stage",
        "`while queued` or `while running`: how far a call got before its deadline or the error of a layer",
    ),
    (
        "default_timeout_ms",
        "the default timeout of the host in milliseconds, if it was the deadline of the call",
    ),
    ("suggestion", "the most similar name of a tool"),
    ("queued", "the number of calls or requests that wait"),
    ("limit", "the limit that was reached or exceeded: a number of calls, requests, items or bytes"),
    ("size", "the size that exceeds the limit, in bytes"),
    ("used_bytes", "the number of bytes that others already use"),
    ("whose", "the calls or requests that use these bytes, as text"),
    ("connections", "the maximum number of connections, all of which are in use"),
    ("peer", "the other end of a lost connection, as text"),
    ("problem", "the error of a lost connection, or of the storage of the sessions, as text"),
    ("session", "the id of the session"),
    ("program", "the name of the program"),
    ("variable", "the name of the variable"),
    ("expected", "the version that the write expected"),
    ("actual", "the version of the variable"),
    ("version", "the version that the request asked for"),
    ("oldest", "the oldest version in the history"),
    ("newest", "the newest version in the history"),
    ("given", "the number of names in the request"),
    ("entries", "the number of metadata entries of the session"),
    ("bytes", "the size of the metadata of the session, in bytes"),
    ("max_entries", "the maximum number of metadata entries"),
    ("max_bytes", "the maximum size of the metadata, in bytes"),
];

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (origin, title) in [
        (Origin::Host, "Reasons of hosts"),
        (Origin::Client, "Reasons of clients and embedding programs"),
        (Origin::CommandLine, "Reasons of the command line"),
    ] {
        let columns = "| reason | meaning | gRPC | HTTP | JSON-RPC | exit | transient |";
        writeln!(page, "## {title}\n\n{columns}\n| --- | --- | --- | --- | --- | --- | --- |").unwrap();
        for reason in Reason::ALL.iter().filter(|reason| reason.origin() == origin) {
            let codes: Vec<String> = reason.codes().iter().map(|code| format!("`{code}`")).collect();
            writeln!(
                page,
                "| <a id=\"{}\"></a>`{reason}` | {} | {} | {} | {} | {} | {} |",
                reason.as_str().to_lowercase(),
                reason.meaning(),
                codes.join(", "),
                reason.http_status(),
                reason.json_rpc_code(),
                reason.exit_code(),
                if reason.is_transient() { "yes" } else { "" },
            )
            .unwrap();
        }
        page.push('\n');
    }
    page.push_str(CODES_OF_TOOLS);
    for code in Code::ALL {
        let name = code.name().to_lowercase();
        let json_rpc = -32020 - code.number();
        writeln!(page, "| `{name}` | `{code}` | {} | {json_rpc} |", code.http_status()).unwrap();
    }
    page.push('\n');
    page.push_str("## Metadata\n\nAll entries are optional, and all values are text.\n\n| entry | meaning |\n| --- | --- |\n");
    for (key, meaning) in METADATA {
        writeln!(page, "| `{key}` | {meaning} |").unwrap();
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

#[test]
fn the_page_shows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written,
        page(),
        "docs/errors.md is stale; run `UPDATE_PAGES=1 cargo test -p snakepit-reason`"
    );
}

#[test]
fn texts_are_unique_and_can_be_parsed() {
    let texts: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(texts.len(), Reason::ALL.len());
    for &reason in Reason::ALL {
        assert_eq!(Reason::parse(reason.as_str()), Some(reason));
    }
    assert_eq!(Reason::parse("NO_SUCH_REASON"), None);
}

/// The HTTP statuses that suit a gRPC code.
fn http_statuses(code: Code) -> &'static [u16] {
    match code {
        Code::NotFound => &[404],
        Code::InvalidArgument => &[400, 422],
        Code::AlreadyExists | Code::Aborted => &[409],
        Code::PermissionDenied => &[403],
        Code::Unimplemented => &[501],
        Code::ResourceExhausted => &[413, 429, 507],
        Code::FailedPrecondition => &[500, 502],
        Code::Internal => &[500],
        Code::DeadlineExceeded => &[408, 504],
        Code::Cancelled => &[499],
        Code::Unavailable => &[502, 503],
        code => panic!("no reason has the code {code:?} first"),
    }
}

#[test]
fn the_codes_of_a_reason_agree() {
    for &reason in Reason::ALL {
        let code = reason.code();
        assert!(http_statuses(code).contains(&reason.http_status()), "{reason}");
        let standard = [-32601, -32602, -32603];
        let own = -32020 - code.number();
        assert!(standard.contains(&reason.json_rpc_code()) || reason.json_rpc_code() == own, "{reason}");
        assert!((1..=6).contains(&reason.exit_code()), "{reason}");
        // A retry of the libraries must not contradict the table.
        if matches!(code, Code::NotFound | Code::InvalidArgument | Code::Unimplemented | Code::Internal) {
            assert!(!reason.is_transient(), "{reason}");
        }
        assert!(reason.meaning().ends_with('.'), "{reason}");
    }
}

#[test]
fn every_code_has_a_name_for_tools() {
    for (code, number) in Code::ALL.iter().zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]) {
        assert_eq!((code.number(), Code::of_failure(&code.name().to_lowercase())), (number, Some(*code)));
        assert_eq!(Code::of_failure(code.name()), None, "codes of tools are in lower case");
        assert!((400..600).contains(&code.http_status()));
    }
    assert_eq!((Code::ALL.len(), Code::of_failure("")), (16, None));
}
