//! Adds readers of call records to a host.

use snakepit_registry::CallRecord;

use super::Builder;

impl Builder {
    /// Adds a reader of the [record](CallRecord) of each call that has ended: unary or streaming, of a tool of a worker or of the host,
    /// from any caller. Use it for metrics, an audit log, or a list of recent calls.
    ///
    /// The reader runs in the task of the call, and delays its end. It must return quickly and must not block. Pass slow work to
    /// another task, over a bounded channel. If it panics, the call is not affected, and
    /// [`Snakepit::reader_panics`](crate::Snakepit::reader_panics) counts the panic. Several readers run in the order in which you
    /// add them.
    ///
    /// Without readers, the host takes no times and makes no records.
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
