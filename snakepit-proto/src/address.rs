//! Parses addresses of hosts, with errors that explain the correct form.

use std::{fmt, path::PathBuf, str::FromStr};

/// The address of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP: `host:port`, with an IPv6 address in brackets.
    Tcp(String),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// The error of an invalid address. Its text is a complete sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not a valid host address: {problem}; valid addresses are, for example, 127.0.0.1:50051, \
     http://localhost:50051 and unix:/path/to/socket",
    excerpt(address)
)]
pub struct AddressError {
    address: String,
    problem: String,
}

impl AddressError {
    /// The problem and its fix, without the address.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

/// How many characters of an invalid address its error quotes.
const MAX_EXCERPT_CHARS: usize = 100;

/// Returns the start of an address for an error, without a user and password.
fn excerpt(address: &str) -> String {
    let address = address.rsplit_once('@').map_or(address, |(_, rest)| rest);
    let mut excerpt: String = address.chars().take(MAX_EXCERPT_CHARS).flat_map(char::escape_debug).collect();
    if address.chars().nth(MAX_EXCERPT_CHARS).is_some() {
        excerpt.push_str("..");
    }
    excerpt
}

impl FromStr for Address {
    type Err = AddressError;

    /// Parses `host:port`, `http://host:port/`, `unix:PATH` or `unix:///PATH`. Ignores surrounding whitespace.
    fn from_str(address: &str) -> Result<Self, AddressError> {
        parse(address.trim()).map_err(|problem| AddressError {
            address: address.to_owned(),
            problem: problem.chars().take(2 * MAX_EXCERPT_CHARS).collect(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn parse(address: &str) -> Result<Address, String> {
    if address.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(path) = strip_scheme(address, "unix:") {
        return parse_unix(path);
    }
    let rest = match address.split_once("://") {
        None if address.starts_with(['/', '.', '~', '@']) => {
            return Err(format!(
                "the path of a socket needs the prefix `unix:`; write unix:{}",
                excerpt(address)
            ));
        }
        None => address,
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "http" => rest,
            "https" | "grpcs" | "tls" | "h2" => {
                return Err(
                    "hosts do not support TLS; use http://, and a tunnel or a proxy if the network is not trusted"
                        .to_owned(),
                );
            }
            _ => {
                return Err(format!(
                    "the scheme `{scheme}://` is not supported; remove it: {}",
                    rest.trim_start_matches('/')
                ));
            }
        },
    };
    host_and_port(rest).map(Address::Tcp)
}

/// Parses an address that begins with `https://` to `host:port`. The default port is 443. Returns `None` for other addresses.
/// Clients call this function before they parse an [`Address`], which does not support TLS.
///
/// # Errors
/// The problem, as a clause.
#[must_use]
pub fn https_authority(address: &str) -> Option<Result<String, String>> {
    strip_scheme(address.trim(), "https://").map(|rest| authority(rest, Some("443")))
}

fn strip_scheme<'a>(address: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = address.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

fn parse_unix(path: &str) -> Result<Address, String> {
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(relative) => {
            return Err(format!(
                "the path after `unix://` is not absolute; write unix:///{relative} or unix:{relative}"
            ));
        }
        None => path,
    };
    match path {
        "" => Err("the path after `unix:` is missing".to_owned()),
        path if path.contains('\0') => Err("the path contains a null byte".to_owned()),
        path => Ok(Address::Unix(path.into())),
    }
}

/// Checks a host with a port, such as `127.0.0.1:50051`, `localhost:0` or `[::1]:50051`, and returns it without a
/// trailing `/`.
///
/// # Errors
/// The problem, as a clause.
pub fn host_and_port(text: &str) -> Result<String, String> {
    authority(text, None)
}

fn authority(text: &str, default_port: Option<&str>) -> Result<String, String> {
    let authority = text.strip_suffix('/').unwrap_or(text);
    if let Some(invalid) = authority.chars().find(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err(format!("a host name cannot contain {invalid:?}"));
    }
    if authority.contains('@') {
        return Err("hosts do not accept a user or password; remove everything up to the `@`".to_owned());
    }
    if authority.starts_with("unix:") {
        return Err("it is a Unix socket, not a TCP address".to_owned());
    }
    if let Some((authority, _)) = authority.split_once(['/', '?', '#']) {
        return Err(format!("everything after the port is not supported; write {authority}"));
    }
    if authority.is_empty() {
        return Err("the host is missing".to_owned());
    }
    if authority.parse::<std::net::Ipv6Addr>().is_ok()
        || authority.matches(':').count() > 1 && !authority.starts_with('[')
    {
        return Err("an IPv6 address needs brackets, with the port after them: [::1]:50051".to_owned());
    }
    let bracketed = authority.strip_prefix('[');
    let (host, port) = match bracketed {
        Some(rest) => {
            let (ip, port) =
                rest.split_once(']').ok_or("the closing bracket of the IPv6 address is missing")?;
            if ip.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("`{ip}` is not an IPv6 address"));
            }
            (format!("[{ip}]"), port.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (authority.to_owned(), None),
        },
    };
    match port.or(default_port) {
        _ if host.is_empty() => {
            Err("the host before the port is missing; write localhost or an IP address".to_owned())
        }
        None if host.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("the host before the port is missing; write localhost:{host}"))
        }
        None | Some("") => {
            Err(format!("the port is missing; write {host}:50051, or the port that the host listens on"))
        }
        Some(port) if port.parse::<u16>().is_err() || port.starts_with('+') => {
            Err(format!("the port `{port}` is not a number from 0 to 65535"))
        }
        Some(port) => Ok(format!("{host}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_forms_parse() {
        for (text, address) in [
            ("127.0.0.1:50051", "http://127.0.0.1:50051"),
            ("localhost:50051", "http://localhost:50051"),
            ("0.0.0.0:50051", "http://0.0.0.0:50051"),
            ("my_host.internal:1", "http://my_host.internal:1"),
            ("http://10.0.0.1:80", "http://10.0.0.1:80"),
            ("HTTP://localhost:50051/", "http://localhost:50051"),
            (" localhost:50051\n", "http://localhost:50051"),
            ("[::1]:50051", "http://[::1]:50051"),
            ("unix:/run/s", "unix:/run/s"),
            ("unix:s", "unix:s"),
            ("unix:///run/s", "unix:/run/s"),
            ("UNIX:/run/a b", "unix:/run/a b"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), address);
        }
    }

    #[test]
    fn addresses_with_https_have_a_default_port() {
        for (text, authority) in [
            ("https://tools.example", "tools.example:443"),
            ("HTTPS://tools.example:8443/", "tools.example:8443"),
            ("https://[::1]", "[::1]:443"),
            (" https://10.0.0.1 ", "10.0.0.1:443"),
        ] {
            assert_eq!(https_authority(text).unwrap().as_deref(), Ok(authority));
        }
        for (text, needle) in [
            ("https://", "host is missing"),
            ("https://:443", "host before the port"),
            ("https://host:", "port is missing"),
            ("https://host/api", "after the port"),
            ("https://user@host", "a user or password"),
        ] {
            let problem = https_authority(text).unwrap().unwrap_err();
            assert!(problem.contains(needle), "{text}: {problem}");
        }
        for text in ["localhost:1", "http://localhost:1", "unix:/s", "https", "https:/host"] {
            assert_eq!(https_authority(text), None);
        }
    }

    #[test]
    fn errors_show_the_problem_and_the_correct_form() {
        for (text, needles) in [
            ("", &["empty"][..]),
            ("localhost", &["port is missing", "localhost:50051"]),
            ("localhost:", &["port is missing"]),
            ("http://localhost", &["port is missing", "localhost:50051"]),
            ("http://", &["host is missing"]),
            ("[::1]", &["port is missing", "[::1]:50051"]),
            (":50051", &["host before the port"]),
            ("50051", &["host before the port", "localhost:50051"]),
            ("localhost:http", &["`http`", "65535"]),
            ("localhost:65536", &["65536"]),
            ("localhost:-1", &["-1"]),
            ("localhost:+1", &["+1"]),
            ("::1", &["brackets"]),
            ("::1:50051", &["brackets"]),
            ("fe80::1%eth0:50051", &["brackets"]),
            ("[::1:50051", &["closing bracket"]),
            ("[localhost]:50051", &["not an IPv6"]),
            ("https://localhost:50051", &["not support TLS", "http://"]),
            ("grpcs://localhost:50051", &["not support TLS"]),
            ("grpc://localhost:50051", &["`grpc://`", "remove it: localhost:50051"]),
            ("tcp://localhost:50051", &["remove it"]),
            ("ftp://localhost", &["remove it"]),
            ("dns:///localhost:50051", &["`dns://`"]),
            ("http://localhost:50051/api", &["after the port", "write localhost:50051"]),
            ("localhost:50051?x=1", &["after the port"]),
            ("user:secret@localhost:50051", &["a user or password"]),
            ("local host:50051", &["' '"]),
            ("höst:50051", &["'ö'"]),
            ("/run/s", &["unix:/run/s"]),
            ("./s", &["unix:./s"]),
            ("unix:", &["path after `unix:` is missing"]),
            ("unix://run/s", &["unix:///run/s", "unix:run/s"]),
            ("unix://", &["absolute"]),
            ("unix:a\0b", &["null byte"]),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            for needle in needles.iter().chain(&["unix:/path/to/socket"]) {
                assert!(error.contains(needle), "{text:?}: no {needle:?} in {error}");
            }
            assert!(!error.contains('\0') && !error.contains("secret"), "{error:?}");
        }
        assert!("x".repeat(1 << 20).parse::<Address>().unwrap_err().to_string().len() < 600);
    }
}
