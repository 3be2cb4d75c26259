//! [`InlineBuffers`]: responses about variables for clients that do not read nested values. Such values become plain JSON, with
//! their buffers as base64.

use bytes::Bytes;
use snakepit_proto::{headers, pb};
use snakepit_wire::inline_any;
use tonic::metadata::MetadataMap;

/// Whether the sender of a request accepts nested values in the response.
pub(super) fn takes_buffers(headers: &MetadataMap) -> bool {
    headers.get(headers::TAKES_BUFFERS).is_some_and(|flag| flag == "true")
}

/// A response that may contain nested values.
pub(super) trait InlineBuffers: Sized {
    /// Converts the nested values to plain JSON.
    fn inline_buffers(&mut self);

    /// Converts the nested values, unless the client takes buffers.
    fn for_client(mut self, takes_buffers: bool) -> Self {
        if !takes_buffers {
            self.inline_buffers();
        }
        self
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
