//! Identifies servers of other protocols at the address of a host, for errors that would otherwise show HTTP/2 details.

use std::{fmt::Write as _, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::address::Address;

/// The timeout for the first bytes of a server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of the excerpt of an unknown protocol, in bytes.
const MAX_EXCERPT_BYTES: usize = 40;
/// The start of an HTTP/2 connection: the preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Describes the server at an address. Returns `None` if it cannot be reached or speaks HTTP/2. `tls_advice` states how this
/// client can reach a server with TLS, as a clause. Takes at most 4 seconds. Cancel safe.
pub async fn identify(address: &Address, tls_advice: &str) -> Option<String> {
    let description = async {
        match address {
            Address::Tcp(authority) => {
                describe_server(TcpStream::connect(authority).await.ok()?, tls_advice).await
            }
            Address::Unix(path) => describe_server(UnixStream::connect(path).await.ok()?, tls_advice).await,
        }
    };
    // Twice the timeout, because connecting also takes time.
    timeout(2 * ANSWER_TIMEOUT, description).await.ok().flatten()
}

async fn describe_server(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    tls_advice: &str,
) -> Option<String> {
    // A server that has closed the connection may have sent a reason before.
    let _ = stream.write_all(PREFACE).await;
    let mut bytes = [0; 512];
    match timeout(ANSWER_TIMEOUT, stream.read(&mut bytes)).await {
        Err(_) => Some(
            "it accepts connections but sends nothing; it may be suspended, or expect another protocol"
                .to_owned(),
        ),
        Ok(Ok(0) | Err(_)) => Some(format!(
            "it closes connections without an answer; it may be a proxy without a host behind it, or require TLS ({tls_advice})"
        )),
        Ok(Ok(length)) => describe_answer(bytes.get(..length)?, tls_advice),
    }
}

/// Describes a server by its first bytes. Returns `None` if it speaks HTTP/2.
fn describe_answer(bytes: &[u8], tls_advice: &str) -> Option<String> {
    let first_line = || {
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let mut excerpt = String::new();
        for byte in line.iter().take(MAX_EXCERPT_BYTES) {
            let _ = write!(excerpt, "{}", byte.escape_ascii());
        }
        excerpt
    };
    let contains = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    match bytes {
        // A frame of HTTP/2 on stream 0: SETTINGS or GOAWAY.
        [_, _, _, 4 | 7, _, 0, 0, 0, 0, ..] => None,
        [0x15 | 0x16, 3, ..] => Some(format!("it speaks TLS; {tls_advice}")),
        bytes if bytes.starts_with(b"HTTP/") && contains("HTTPS port") => {
            Some(format!("it is a web server's TLS port; {tls_advice}"))
        }
        bytes if bytes.starts_with(b"HTTP/") => Some(format!(
            "it is a server of HTTP/1 (`{}`), and hosts speak HTTP/2; is this the port for gRPC?",
            first_line()
        )),
        [b'-', ..] if contains("PRI") || contains("NOAUTH") || contains("HTTP") || contains("command") => {
            Some(format!(
                "it is a Redis server (`{}`), not a host; connect to the host that stores its sessions there",
                first_line()
            ))
        }
        _ => Some(format!("it speaks another protocol than HTTP/2; it began with `{}`", first_line())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The description of a server that answers with these bytes.
    async fn description_of(response: &'static [u8]) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).await.unwrap();
            stream.write_all(response).await.unwrap();
        };
        tokio::join!(identify(&address, "use TLS"), serve).0
    }

    #[tokio::test]
    async fn servers_of_other_protocols_are_identified() {
        for (response, needle) in [
            (&b"\x15\x03\x01\x00\x02\x02\x46"[..], "TLS"),
            (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "HTTP/1 (`HTTP/1.1 400 Bad Request`)"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\nThe plain HTTP request was sent to HTTPS port", "TLS port"),
            (b"-ERR unknown command 'PRI', with args beginning with: '*'\r\n", "Redis"),
            (b"-NOAUTH Authentication required.\r\n", "Redis"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "`SSH-2.0-OpenSSH_9.6`"),
            (b"\x00\xff\x1b[2J", "`\\x00\\xff\\x1b[2J`"),
            (b"", "without an answer"),
        ] {
            let description = description_of(response).await.unwrap();
            assert!(description.contains(needle), "{description}");
        }
        assert_eq!(
            description_of(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64").await,
            None
        );
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(identify(&Address::Tcp(closed.to_string()), "use TLS").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_described_after_the_timeout() {
        let (ours, _theirs) = tokio::io::duplex(1024);
        assert!(describe_server(ours, "use TLS").await.unwrap().contains("sends nothing"));
    }
}
