//! Adds readers of call records to a host.

use snakepit_registry::CallRecord;

use super::Builder;

impl Builder {
    /// Adds a reader, which receives the [record](CallRecord) of every call when it ends: unary and streaming calls, of worker
    /// tools and host tools, from any caller. Use it for metrics, an audit log, or a list of recent calls.
    ///
    /// The reader runs in the task of the call and delays the end of the call, so the reader must return quickly and must not
    /// block. Send slow work to another task over a bounded channel. If the reader panics, the call is not affected, and
    /// [`Snakepit::reader_panics`](crate::Snakepit::reader_panics) counts the panic. Several readers run in the order in which you
    /// add them.
    ///
    /// Without readers, the host does not take timestamps or create records, unless its log has the level DEBUG.
    ///
    /// ```
    /// use snakepit_server::Snakepit;
    ///
    /// let builder = Snakepit::builder().on_call_end(|record| {
    ///     let waited = record.assigned.unwrap_or_default() - record.queued.unwrap_or_default();
    ///     println!("{}: {} after {:?}, {waited:?} in the queue", record.tool, record.outcome.as_str(), record.total);
    /// });
    /// ```
    pub fn on_call_end(mut self, reader: impl Fn(&CallRecord) + Send + Sync + 'static) -> Self {
        self.call_readers.push(Box::new(reader));
        self
    }
}
