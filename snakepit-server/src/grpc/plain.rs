//! Plain JSON for clients that do not know nested values, in the responses of RPCs about variables.

use bytes::Bytes;
use snakepit_proto::{headers, pb};
use snakepit_wire::inline_any;
use tonic::metadata::MetadataMap;

/// Whether the sender of a request accepts nested values in the response.
pub(super) fn takes_buffers(headers: &MetadataMap) -> bool {
    headers.get(headers::TAKES_BUFFERS).is_some_and(|flag| flag == "true")
}

/// A response with values.
pub(super) trait Plain: Sized {
    /// Converts the nested values to plain JSON.
    fn make_plain(&mut self);

    /// Converts the nested values unless the client takes buffers.
    fn for_client(mut self, takes_buffers: bool) -> Self {
        if !takes_buffers {
            self.make_plain();
        }
        self
    }
}

fn make_plain(value: &mut Option<pb::Any>, buffers: &mut Bytes) {
    if let Some(any) = value {
        inline_any(any, buffers);
    }
}

impl Plain for pb::Variable {
    fn make_plain(&mut self) {
        make_plain(&mut self.value, &mut self.binary_value);
    }
}

impl Plain for pb::GetVariableResponse {
    fn make_plain(&mut self) {
        self.variable.iter_mut().for_each(Plain::make_plain);
    }
}

impl Plain for pb::BatchGetVariablesResponse {
    fn make_plain(&mut self) {
        self.variables.values_mut().for_each(Plain::make_plain);
    }
}

impl Plain for pb::ListVariablesResponse {
    fn make_plain(&mut self) {
        self.variables.iter_mut().for_each(Plain::make_plain);
    }
}

impl Plain for pb::RollbackVariableResponse {
    fn make_plain(&mut self) {
        self.variable.iter_mut().for_each(Plain::make_plain);
    }
}

impl Plain for pb::VariableUpdate {
    fn make_plain(&mut self) {
        self.variable.iter_mut().for_each(Plain::make_plain);
    }
}

impl Plain for pb::GetVariableHistoryResponse {
    fn make_plain(&mut self) {
        for entry in &mut self.entries {
            make_plain(&mut entry.value, &mut entry.binary_value);
        }
    }
}
