//! The call that a worker reports in a request, because it runs several calls concurrently.

use http::HeaderValue;

/// The number of a call as the worker knows it. The pool finds the call. Requests of workers that run several calls carry it as an
/// extension. It has no meaning on connections of other clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReportedCall(pub(crate) u64);

impl ReportedCall {
    /// Parses the value of the header. Returns `None` for a malformed one.
    pub(super) fn parse(header: Option<&HeaderValue>) -> Option<Self> {
        header?.to_str().ok()?.parse().ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_name_a_call() {
        let parse = |text| ReportedCall::parse(Some(&HeaderValue::from_static(text)));
        assert_eq!(parse("4611686018427387911"), Some(ReportedCall((1 << 62) | 7)));
        assert_eq!([parse(""), parse("-1"), parse("x"), ReportedCall::parse(None)], [None; 4]);
    }
}
