//! Values for clients that do not read nested values. Such values become plain JSON, with their buffers as base64. A blocking thread
//! converts large ones.

use bytes::Bytes;
use prost::Message;
use snakepit_proto::{headers, mux::MAX_ITEM_BYTES, pb, value::inline_nested};
use snakepit_registry::{Chunk, ToolError};
use snakepit_session::Payload;
use snakepit_wire::{inline_any, without_buffers};
use tonic::metadata::MetadataMap;

use crate::blocking::run_if_heavy;

/// Whether the sender of a request accepts nested values in the response.
pub(super) fn takes_buffers(headers: &MetadataMap) -> bool {
    headers::has_flag(headers, headers::TAKES_BUFFERS)
}

/// Converts a nested value to plain JSON, unless the client accepts buffers.
///
/// # Errors
/// [`ToolError::AnswerTooLarge`], before the conversion, if the base64 text of its buffers alone exceeds the size limit.
pub(super) async fn inline_value_buffers(value: Payload, takes_buffers: bool) -> Result<Payload, ToolError> {
    if takes_buffers || value.nested_json().is_none() {
        return Ok(value);
    }
    check_base64(value.json(), value.binary())?;
    Ok(run_if_heavy(value.size(), move || without_buffers(value)).await)
}

/// Converts a chunk with a nested value to plain JSON.
///
/// # Errors
/// As for [`inline_value_buffers`].
pub(super) async fn inline_chunk_buffers(chunk: Chunk) -> Result<Chunk, ToolError> {
    let Chunk { data, metadata, binary } = chunk;
    let Some(buffers) = binary else { return Ok(Chunk { data, metadata, binary }) };
    check_base64(&data, Some(&buffers))?;
    let size = data.len() + buffers.len();
    let inline = move || match inline_nested(&data, &buffers) {
        Some(plain) => (plain.into(), None),
        None => (data, Some(buffers)),
    };
    let (data, binary) = run_if_heavy(size, inline).await;
    Ok(Chunk { data, metadata, binary })
}

fn check_base64(json: &[u8], buffers: Option<&Bytes>) -> Result<(), ToolError> {
    let base64 = buffers.map_or(0, |buffers| buffers.len().div_ceil(3) * 4);
    if base64 <= MAX_ITEM_BYTES {
        return Ok(());
    }
    Err(ToolError::answer_too_large(json.len() + base64, MAX_ITEM_BYTES))
}

/// A response that may contain nested values.
pub(super) trait InlineBuffers: Message + Sized + 'static {
    /// Converts the nested values to plain JSON.
    fn inline_buffers(&mut self);

    /// Converts the nested values, unless the client takes buffers.
    fn for_client(mut self, takes_buffers: bool) -> impl Future<Output = Self> + Send {
        async move {
            if takes_buffers {
                return self;
            }
            let size = self.encoded_len();
            let inline = move || {
                self.inline_buffers();
                self
            };
            run_if_heavy(size, inline).await
        }
    }
}

fn inline(value: &mut Option<pb::Any>, buffers: &mut Bytes) {
    if let Some(any) = value {
        inline_any(any, buffers);
    }
}

impl InlineBuffers for pb::Variable {
    fn inline_buffers(&mut self) {
        inline(&mut self.value, &mut self.binary_value);
    }
}

impl InlineBuffers for pb::GetVariableResponse {
    fn inline_buffers(&mut self) {
        self.variable.iter_mut().for_each(InlineBuffers::inline_buffers);
    }
}

impl InlineBuffers for pb::BatchGetVariablesResponse {
    fn inline_buffers(&mut self) {
        self.variables.values_mut().for_each(InlineBuffers::inline_buffers);
    }
}

impl InlineBuffers for pb::ListVariablesResponse {
    fn inline_buffers(&mut self) {
        self.variables.iter_mut().for_each(InlineBuffers::inline_buffers);
    }
}

impl InlineBuffers for pb::RollbackVariableResponse {
    fn inline_buffers(&mut self) {
        self.variable.iter_mut().for_each(InlineBuffers::inline_buffers);
    }
}

impl InlineBuffers for pb::VariableUpdate {
    fn inline_buffers(&mut self) {
        self.variable.iter_mut().for_each(InlineBuffers::inline_buffers);
    }
}

impl InlineBuffers for pb::GetVariableHistoryResponse {
    fn inline_buffers(&mut self) {
        for entry in &mut self.entries {
            inline(&mut entry.value, &mut entry.binary_value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        time::Duration,
    };

    use super::*;

    /// A list of this many buffers of one byte each.
    fn buffers(count: usize) -> Payload {
        let value = vec![Bytes::from_static(b"x"); count];
        Payload::try_from_serde(&value).unwrap()
    }

    /// Counts how often another task runs while a future does.
    async fn ticks_during<T>(future: impl Future<Output = T>) -> (T, usize) {
        let has_ended = AtomicBool::new(false);
        let ticker = async {
            let mut ticks = 0;
            while !has_ended.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks += 1;
            }
            ticks
        };
        let future = async {
            let output = future.await;
            has_ended.store(true, Relaxed);
            output
        };
        tokio::join!(future, ticker)
    }

    #[tokio::test]
    async fn other_tasks_run_while_a_large_value_is_converted() {
        let value = buffers(100_000);
        let (plain, ticks) = ticks_during(inline_value_buffers(value.clone(), false)).await;
        let plain = plain.unwrap();
        assert!(plain.binary().is_none() && ticks > 3, "{ticks} ticks");
        let back: Vec<Bytes> = plain.to_serde().unwrap();
        assert_eq!((back.len(), &back[99_999][..]), (100_000, &b"x"[..]));

        let (json, binary) = (Bytes::copy_from_slice(value.json()), value.binary().cloned());
        let chunk = Chunk { data: json, binary, ..Chunk::default() };
        let (chunk, ticks) = ticks_during(inline_chunk_buffers(chunk)).await;
        assert!(chunk.unwrap().binary.is_none() && ticks > 3, "{ticks} ticks");

        let (any, buffers) = snakepit_wire::payload_to_wire(value);
        let variable =
            pb::Variable { value: Some(any), binary_value: buffers.unwrap(), ..pb::Variable::default() };
        let response = pb::GetVariableResponse { variable: Some(variable), ..Default::default() };
        let (response, ticks) = ticks_during(response.for_client(false)).await;
        assert!(response.variable.unwrap().binary_value.is_empty() && ticks > 3, "{ticks} ticks");
    }

    #[tokio::test]
    async fn a_value_that_cannot_fit_is_refused_before_it_is_converted() {
        let value = Payload::try_from_serde(&[vec![0_u8; 8].into(), Bytes::from(vec![0; MAX_ITEM_BYTES])]);
        let value = value.unwrap();
        assert_eq!(inline_value_buffers(value.clone(), true).await.unwrap(), value);
        let (error, ticks) = ticks_during(inline_value_buffers(value, false)).await;
        let Err(ToolError::AnswerTooLarge { size, limit: MAX_ITEM_BYTES, .. }) = error else {
            panic!("{error:?}");
        };
        assert!(size > MAX_ITEM_BYTES / 3 * 4 && ticks <= 1, "{size} bytes, {ticks} ticks");
    }
}
