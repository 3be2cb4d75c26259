//! The size limit of statuses. HTTP/2 peers limit headers, including trailers: grpcio to 8 KiB, h2 to 16 KiB. Larger
//! trailers lose the status, and with some peers the connection. This module cuts all statuses to a size that every peer
//! accepts, with a marker at each cut.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::{Any, Bytes, Cow, FAILURE_URL, Message, RpcStatus, Status, ToolFailure};

/// The maximum size of header lists between host and workers, in bytes. It is high because the statuses of foreign workers have
/// no limit, and must not break the connection.
pub const HEADER_LIST_BYTES: u32 = 1024 * 1024;

/// The maximum total size of a status's trailers, in bytes as HTTP/2 counts them.
const TRAILER_BYTES: usize = 6 * 1024;
/// The size of the other trailers, and the overhead that HTTP/2 counts per trailer.
const OVERHEAD_BYTES: usize = 512;
/// The maximum size of the percent-encoded `grpc-message`, in bytes. It fits about 1 KiB of text.
const ENCODED_MESSAGE_BYTES: usize = 1536;
/// The maximum length of a name in a failure (tool, type, worker, session, code), in bytes.
const NAME_BYTES: usize = 256;

/// The maximum size of a string in a message of a failure, outside of trailers, in bytes.
const IN_BAND_TEXT_BYTES: usize = 384 * 1024;
/// The maximum total size of the output lines of such a failure, in bytes.
const IN_BAND_OUTPUT_BYTES: usize = 256 * 1024;
/// The maximum size of the JSON details of such a failure, in bytes. Parts that do not fit are removed, because truncated JSON is
/// invalid.
const IN_BAND_DETAILS_BYTES: usize = 256 * 1024;

/// Cuts a status to the size limit.
///
/// The message keeps its start. A [`ToolFailure`] in the details keeps the start of its message, the end of its
/// traceback and its last output lines. Other details that do not fit are removed, from the last one on.
#[must_use]
pub fn fit(status: Status) -> Status {
    let message = head(status.message(), ENCODED_MESSAGE_BYTES, encoded_len);
    let is_message_cut = matches!(message, Cow::Owned(_));
    // Base64 encodes three bytes as four.
    let max_details_bytes =
        (TRAILER_BYTES - OVERHEAD_BYTES - message.chars().map(encoded_len).sum::<usize>()) / 4 * 3;
    if !is_message_cut && status.details().len() <= max_details_bytes {
        return status;
    }
    let message = message.into_owned();
    let details = fit_details(status.details(), &message, max_details_bytes);
    Status::with_details_and_metadata(status.code(), message, details, status.metadata().clone())
}

/// Cuts a string to about half a KiB, for the message or the details of a status.
#[must_use]
pub fn brief(text: &str) -> String {
    head(text, ENCODED_MESSAGE_BYTES / 2, encoded_len).into_owned()
}

/// Cuts a string to the limit for messages outside of trailers.
#[must_use]
pub fn bounded_text(mut text: String) -> String {
    keep_head(&mut text, IN_BAND_TEXT_BYTES);
    text
}

/// Cuts a failure in a message to about 1 MiB, to bound its memory.
#[must_use]
pub fn bounded(mut failure: ToolFailure) -> ToolFailure {
    cut_names(&mut failure, 4 * NAME_BYTES);
    keep_head(&mut failure.message, IN_BAND_TEXT_BYTES);
    keep_tail(&mut failure.traceback, IN_BAND_TEXT_BYTES);
    keep_last_lines(&mut failure.output_lines, IN_BAND_OUTPUT_BYTES);
    fit_parts(&mut failure.details_json, IN_BAND_DETAILS_BYTES);
    failure
}

/// Cuts the JSON details of a failure to at most `limit` bytes. Keeps the fields that fit, beginning with the most useful one, and
/// lists the omitted parts under the key `omitted`. Malformed details are removed.
fn fit_parts(details: &mut Bytes, limit: usize) {
    /// From the most useful part to the least useful one.
    const PARTS: [&str; 8] =
        ["python_type", "data", "attributes", "args", "notes", "exceptions", "cause", "context"];
    /// The size of `"omitted":[..],` with all fields and the braces.
    const OVERHEAD: usize = 96;
    if details.len() <= limit {
        return;
    }
    let mut parts: BTreeMap<&str, &RawValue> = serde_json::from_slice(details).unwrap_or_default();
    let mut omitted: Vec<String> =
        parts.remove("omitted").and_then(|names| serde_json::from_str(names.get()).ok()).unwrap_or_default();
    let mut remaining = limit.saturating_sub(OVERHEAD);
    let mut kept = BTreeMap::new();
    for name in PARTS {
        let Some(value) = parts.remove(name) else { continue };
        let size = name.len() + value.get().len() + 4;
        if size <= remaining {
            remaining -= size;
            kept.insert(name, value);
        } else if name != "python_type" {
            omitted.push(name.to_owned());
        }
    }
    omitted.retain(|name| PARTS.contains(&name.as_str()));
    omitted.sort_unstable();
    omitted.dedup();
    let names = serde_json::value::to_raw_value(&omitted).ok();
    kept.extend(names.as_deref().filter(|_| !omitted.is_empty()).map(|names| ("omitted", names)));
    let json = serde_json::to_vec(&kept).unwrap_or_default();
    *details = if json.len() <= limit && !kept.is_empty() { json.into() } else { Bytes::new() };
}

/// Cuts details to at most `limit` bytes, and replaces their message.
fn fit_details(details: &[u8], message: &str, limit: usize) -> Bytes {
    // Malformed details cannot be cut.
    let Ok(mut details) = RpcStatus::decode(details) else { return Bytes::new() };
    message.clone_into(&mut details.message);
    let all = std::mem::take(&mut details.details);
    let (failures, others): (Vec<Any>, Vec<Any>) =
        all.into_iter().partition(|detail| detail.type_url == FAILURE_URL);
    for detail in others {
        details.details.push(detail);
        if details.encoded_len() > limit {
            details.details.pop();
            break;
        }
    }
    for mut detail in failures.into_iter().take(1) {
        let Ok(failure) = ToolFailure::decode(detail.value.clone()) else { continue };
        // Includes the tags and lengths of the enclosing `Any`.
        let remaining = limit.saturating_sub(details.encoded_len() + detail.type_url.len() + 16);
        if let Some(failure) = fit_failure(failure, remaining) {
            detail.value = failure.encode_to_vec().into();
            details.details.push(detail);
        }
    }
    Bytes::from(details.encode_to_vec())
}

/// Cuts a failure to at most `limit` encoded bytes. Returns `None` if its names alone exceed the limit.
fn fit_failure(mut failure: ToolFailure, limit: usize) -> Option<ToolFailure> {
    if failure.encoded_len() <= limit {
        return Some(failure);
    }
    cut_names(&mut failure, NAME_BYTES);
    let message = std::mem::take(&mut failure.message);
    let traceback = std::mem::take(&mut failure.traceback);
    let output = std::mem::take(&mut failure.output_lines);
    // Reserves half of the limit for the strings.
    let names = failure.encoded_len() - failure.details_json.len();
    fit_parts(&mut failure.details_json, (limit / 2).saturating_sub(names));
    // 16 bytes for the tags and lengths of message and traceback. `line_cost` includes those of lines.
    let remaining = limit.checked_sub(failure.encoded_len() + 16)?;
    let [message_share, traceback_share, output_share] =
        share(remaining, [message.len(), traceback.len(), output.iter().map(|line| line_cost(line)).sum()]);
    failure.message = message;
    failure.traceback = traceback;
    failure.output_lines = output;
    keep_head(&mut failure.message, message_share);
    keep_tail(&mut failure.traceback, traceback_share);
    keep_last_lines(&mut failure.output_lines, output_share);
    Some(failure)
}

/// Divides a size with max-min fairness. No share exceeds its demand, and the rest is divided equally.
fn share<const N: usize>(mut limit: usize, demands: [usize; N]) -> [usize; N] {
    let mut order: [usize; N] = std::array::from_fn(|index| index);
    order.sort_by_key(|index| demands[*index]);
    let mut shares = [0; N];
    for (served, index) in order.into_iter().enumerate() {
        shares[index] = demands[index].min(limit / (N - served));
        limit -= shares[index];
    }
    shares
}

fn cut_names(failure: &mut ToolFailure, limit: usize) {
    let ToolFailure { r#type, tool_name, worker_id, session_id, code, .. } = failure;
    for name in [r#type, tool_name, worker_id, session_id, code] {
        keep_head(name, limit);
    }
}

fn keep_head(text: &mut String, limit: usize) {
    if let Cow::Owned(cut) = head(text, limit, char::len_utf8) {
        *text = cut;
    }
}

/// The start of a string within a cost limit, with a marker if it was cut.
fn head(text: &str, limit: usize, cost: fn(char) -> usize) -> Cow<'_, str> {
    let end_within = |limit: usize| {
        let mut total_cost = 0;
        text.char_indices().find_map(|(index, c)| {
            total_cost += cost(c);
            (total_cost > limit).then_some(index)
        })
    };
    if end_within(limit).is_none() {
        return Cow::Borrowed(text);
    }
    let marker = |end: usize| format!("... [{} bytes cut]", text.len() - end);
    let text_limit = limit.checked_sub(marker(0).chars().map(cost).sum());
    // The result is empty if the marker alone exceeds the limit.
    let end = text_limit.and_then(end_within);
    Cow::Owned(end.map_or_else(String::new, |end| format!("{}{}", &text[..end], marker(end))))
}

/// Keeps the end of a string within a limit in bytes, with a marker if it was cut.
fn keep_tail(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let marker = |start: usize| format!("[{start} bytes cut] ...");
    let Some(text_limit) = limit.checked_sub(marker(text.len()).len()) else {
        text.clear();
        return;
    };
    let start = text.len() - text_limit;
    let start = (start..=text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(text.len());
    *text = format!("{}{}", marker(start), &text[start..]);
}

/// Keeps the last lines within a limit in bytes, with a marker for the lines that were cut.
fn keep_last_lines(lines: &mut Vec<String>, limit: usize) {
    if lines.iter().map(|line| line_cost(line)).sum::<usize>() <= limit {
        return;
    }
    let marker = |cut: usize| format!("[{cut} lines cut]");
    let Some(mut remaining) = limit.checked_sub(line_cost(&marker(lines.len()))) else {
        lines.clear();
        return;
    };
    let mut last_lines = Vec::new();
    while let Some(mut line) = lines.pop() {
        if line_cost(&line) > remaining {
            // Keeps the end of the last line if the whole line exceeds the limit.
            if last_lines.is_empty() {
                keep_tail(&mut line, remaining.saturating_sub(line_cost("")));
                last_lines.push(line);
            } else {
                lines.push(line);
            }
            break;
        }
        remaining -= line_cost(&line);
        last_lines.push(line);
    }
    if !lines.is_empty() {
        last_lines.push(marker(lines.len()));
    }
    last_lines.reverse();
    *lines = last_lines;
}

/// The encoded size of a line in a failure, with its tag and length.
const fn line_cost(line: &str) -> usize {
    line.len() + 4
}

/// The percent-encoded size of a character of `grpc-message`.
const fn encoded_len(c: char) -> usize {
    match c {
        ' ' | '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}' => 3,
        '!'..='~' => 1,
        c => c.len_utf8() * 3,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::{super::*, *};

    /// The size of a status's trailers, as HTTP/2 counts it.
    fn trailer_bytes(status: Status) -> usize {
        let headers = status.into_http::<()>().into_parts().0.headers;
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    fn failure(message: &str, traceback: &str, lines: usize) -> ToolFailure {
        ToolFailure {
            r#type: "ValueError".into(),
            message: message.into(),
            traceback: traceback.into(),
            tool_name: "train".into(),
            worker_id: "default-1-1".into(),
            output_lines: (0..lines).map(|line| format!("line {line}")).collect(),
            ..ToolFailure::default()
        }
    }

    #[test]
    fn a_status_within_the_limit_is_unchanged() {
        let short = failure("no", "Traceback: ...", 20);
        let status = failure_status(Code::Internal, "tool `train` failed: no", &short);
        assert_eq!(status.message(), "tool `train` failed: no");
        assert_eq!(details_of(&status).failure, Some(short.clone()));
        assert_eq!(bounded(short.clone()), short);
    }

    #[test]
    fn a_huge_failure_keeps_its_most_useful_parts() {
        let message = format!("bad value {}", "x".repeat(200_000));
        let traceback = format!("Traceback: {} ValueError: the end", "frame ".repeat(50_000));
        let status = failure_status(
            Code::Internal,
            format!("failed: {message}"),
            &failure(&message, &traceback, 9_000),
        );
        assert!(status.message().starts_with("failed: bad value xxx"), "{}", status.message());
        assert!(status.message().ends_with(" bytes cut]"), "{}", status.message());
        let Details { reason, failure, .. } = details_of(&status);
        let failure = failure.unwrap();
        assert_eq!((reason.as_deref(), failure.r#type.as_str()), (Some(TOOL_FAILED), "ValueError"));
        assert!(failure.message.starts_with("bad value xxx") && failure.message.ends_with(" bytes cut]"));
        assert!(failure.traceback.contains(" bytes cut] ...") && failure.traceback.ends_with("the end"));
        assert!(failure.output_lines[0].ends_with(" lines cut]"), "{:?}", failure.output_lines);
        assert_eq!(failure.output_lines.last().unwrap(), "line 8999");
        assert!(trailer_bytes(status) < TRAILER_BYTES);
    }

    #[test]
    fn a_very_long_line_keeps_its_end() {
        let mut lines = vec!["first".to_owned(), format!("{}the end", "x".repeat(10_000))];
        keep_last_lines(&mut lines, 200);
        assert_eq!(lines[0], "[1 lines cut]");
        assert!(lines[1].ends_with("the end") && lines[1].len() < 200, "{lines:?}");
    }

    #[test]
    fn a_long_status_still_names_its_field() {
        let status =
            field_error_status("x".repeat(50_000), &"name".repeat(10_000), &"is wrong ".repeat(10_000));
        let violation = details_of(&status).violations.remove(0);
        assert!(violation.field.starts_with("namename") && violation.description.starts_with("is wrong"));
        assert!(trailer_bytes(status) < TRAILER_BYTES);
    }

    #[test]
    fn a_failure_in_a_message_is_cut_only_for_memory() {
        let long = failure(&"m".repeat(200_000), &"t".repeat(200_000), 100);
        assert_eq!(bounded(long.clone()), long);
        let mut endless = failure(&"m".repeat(2_000_000), &"t".repeat(2_000_000), 100_000);
        endless.details_json = "d".repeat(IN_BAND_DETAILS_BYTES + 1).into();
        assert!(bounded(endless).encoded_len() < 3 * IN_BAND_TEXT_BYTES);
    }

    #[test]
    fn parts_of_json_details_are_kept_whole_or_removed() {
        for (args, kept_details) in [(1400, None), (4000, Some(r#"{"data":{"left":3},"omitted":["args"]}"#))]
        {
            let mut long = failure(&"m".repeat(20_000), &"t".repeat(20_000), 1000);
            let details = format!(r#"{{"args":["{}"],"data":{{"left":3}}}}"#, "d".repeat(args));
            long.details_json = details.clone().into();
            let status = failure_status(Code::Internal, "failed", &long);
            let kept = details_of(&status).failure.unwrap();
            assert_eq!(kept.details_json, kept_details.unwrap_or(&details));
            assert!(kept.message.ends_with(" bytes cut]") && !kept.traceback.is_empty());
            assert!(trailer_bytes(status) < TRAILER_BYTES);
        }
    }

    proptest! {
        #[test]
        fn no_status_exceeds_the_limit(
            message in ".{0,3000}", text in ".{0,3000}", traceback in ".{0,9000}", name in ".{0,600}",
            lines in prop::collection::vec(".{0,200}", 0..60), code in 1..17_i32, details in 0..6000_usize,
        ) {
            let failure = ToolFailure {
                r#type: name.clone(), message: text, traceback, tool_name: name.clone(), worker_id: name.clone(),
                session_id: name.clone(), output_lines: lines, code: name, details_json: vec![b'x'; details].into(),
            };
            let status = failure_status(code.into(), message, &failure);
            prop_assert!(details_of(&status).failure.is_some());
            prop_assert!(trailer_bytes(status) < TRAILER_BYTES);
        }
    }
}
