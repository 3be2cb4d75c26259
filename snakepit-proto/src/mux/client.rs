//! The caller: [`Multiplexer`] starts calls, [`Call`] is the handle of one, and [`Incoming`] receives their replies.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    hash::BuildHasherDefault,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use bytes::Bytes;
use tonic::{Code, Request, Status};

mod call;
mod event;
#[cfg(any(test, feature = "test-util"))]
mod frames;
mod transport;

#[cfg(any(test, feature = "test-util"))]
pub use self::frames::Frames;
pub use self::{
    call::Call,
    event::{CallEnd, CallEvent},
    transport::Incoming,
};
use self::{event::IdHasher, transport::Outgoing};
use super::{BATCH_BYTES, MAX_ITEM_BYTES, call_size, report_queue};
use crate::{
    pb::{
        CallBatch, CallChunk, CallOpened, CallReply, CallReport, CallStart, ReplyBatch,
        bridge_service_client::BridgeServiceClient,
    },
    proxy,
    status::{INVALID_ARGUMENT, error_status},
};

/// The maximum number of reports of a call that wait for their reader. A notice replaces further lines of output.
const MAX_REPORTS: usize = 4096;

/// Starts calls on one `Multiplex` stream. Clones share the stream.
///
/// Dropping the last clone closes the stream for new calls. Open calls continue, and the sending half stays open for
/// their credits and cancellations until the last of them has ended.
#[derive(Debug, Clone)]
pub struct Multiplexer {
    owner: Arc<CloseOnDrop>,
}

#[derive(Debug)]
struct CloseOnDrop(Arc<SharedCalls>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let waker = state.sender_waker.take();
        drop(state);
        wake(waker);
    }
}

struct SharedCalls(Mutex<CallTable>);

#[derive(Default)]
struct CallTable {
    last_id: u64,
    calls: HashMap<u64, CallEntry, BuildHasherDefault<IdHasher>>,
    /// The number of calls that have not ended.
    open_count: usize,
    /// The frames to send.
    outbox: CallBatch,
    /// The approximate size of the calls in the outbox, in bytes.
    outbox_bytes: usize,
    /// The ids of calls that were cancelled in the outbox. Empty calls replace them there until the next message is taken, because
    /// removing a call from the middle would move all calls behind it.
    withdrawn: HashSet<u64, BuildHasherDefault<IdHasher>>,
    /// The sending task, while the outbox is empty.
    sender_waker: Option<Waker>,
    tag_index: TagIndex,
    /// Tasks that wait until no call of a tag runs.
    tag_waiters: HashMap<u64, Vec<Waker>, BuildHasherDefault<IdHasher>>,
    /// Whether the last [`Multiplexer`] was dropped, so that no more calls start.
    is_closed: bool,
    /// The status with which the stream broke.
    break_status: Option<Status>,
    /// The tags of calls that were open when the stream broke. It is unknown whether these calls have ended.
    lost_tags: HashSet<u64, BuildHasherDefault<IdHasher>>,
}

/// An index of the open calls by tag: `(tag, id)`. A lookup adds the calls that started since the last one, because
/// most calls end without a lookup of their tag.
#[derive(Default)]
struct TagIndex {
    calls: BTreeSet<(u64, u64)>,
    /// The index covers open calls up to this id.
    up_to: u64,
}

/// A call that has not ended, or whose end was not polled yet.
#[derive(Default)]
struct CallEntry {
    tag: u64,
    waker: Option<Waker>,
    opened: Option<CallOpened>,
    chunks: Vec<CallChunk>,
    reports: Vec<CallReport>,
    /// The start of a reply or chunk that arrives in parts.
    parts: Vec<u8>,
    end: Option<CallEnd>,
    /// Whether the [`Call`] was dropped.
    is_abandoned: bool,
    /// Whether a cancellation was sent.
    is_cancelled: bool,
}

impl Multiplexer {
    /// Opens the stream. Calls make progress only while the returned future is polled.
    ///
    /// # Errors
    /// The status of the server: `UNIMPLEMENTED` if it does not serve the RPC.
    pub async fn open<T>(mut client: BridgeServiceClient<T>) -> Result<(Self, Incoming), Status>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<tonic::codegen::StdError>,
        T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
    {
        let shared = Arc::new(SharedCalls::new());
        let outgoing = Outgoing(Arc::clone(&shared));
        let response = client.multiplex(Request::new(outgoing)).await.map_err(proxy::clarify)?;
        let proxy = proxy::proxy_name(response.metadata());
        let replies = response.into_inner();
        let multiplexer = Self { owner: Arc::new(CloseOnDrop(Arc::clone(&shared))) };
        Ok((multiplexer, Incoming::new(shared, replies, proxy)))
    }

    /// Starts a call and sets its `id`. `tag` names the call in [`recall`](Self::recall) and [`cancel`](Self::cancel).
    #[must_use = "dropping a call cancels it"]
    pub fn start(&self, mut call: CallStart, tag: u64) -> Call {
        let shared = &self.owner.0;
        let mut state = shared.lock();
        state.last_id += 1;
        let id = state.last_id;
        call.id = id;
        let mut entry = CallEntry { tag, ..CallEntry::default() };
        let size = call_size(&call);
        let waker = if let Some(status) = &state.break_status {
            entry.end = Some(CallEnd::Unsent(call, status.clone()));
            None
        } else if size > MAX_ITEM_BYTES {
            // Sending it would break the stream, and all other calls with it.
            entry.end = Some(CallEnd::Reply(too_large(id, size)));
            None
        } else {
            state.outbox_bytes += size;
            state.outbox.calls.push(call);
            state.open_count += 1;
            state.sender_waker.take()
        };
        state.calls.insert(id, entry);
        drop(state);
        wake(waker);
        Call { shared: Arc::clone(shared), id, has_ended: false }
    }

    /// Whether the stream broke. Calls that start on a broken stream fail.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.owner.0.lock().break_status.is_some()
    }

    /// Recalls the calls of this tag that have not begun.
    pub fn recall(&self, tag: u64) {
        self.owner.0.send(|state, _| {
            let ids = state.open_calls_of(tag);
            state.outbox.recalls.extend(ids);
        });
    }

    /// The tag of an open call.
    #[must_use]
    pub fn tag_of(&self, id: u64) -> Option<u64> {
        self.owner.0.lock().calls.get(&id).filter(|entry| entry.end.is_none()).map(|entry| entry.tag)
    }

    /// Cancels the calls of this tag and waits until none of them runs. Returns `false` if the stream broke before the
    /// callee confirmed it.
    ///
    /// # Cancel safety
    /// Cancel safe. If the future is dropped after its first poll, the calls are cancelled nevertheless.
    pub async fn cancel(&self, tag: u64) -> bool {
        let shared = &self.owner.0;
        shared.send(|state, wakers| {
            let ids = state.open_calls_of(tag);
            ids.into_iter().for_each(|id| state.cancel(id, wakers));
        });
        std::future::poll_fn(|cx| {
            let mut state = shared.lock();
            if state.open_calls_of(tag).is_empty() {
                return Poll::Ready(!state.lost_tags.contains(&tag));
            }
            let tag_waiters = state.tag_waiters.entry(tag).or_default();
            if !tag_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                tag_waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl CallTable {
    /// The open calls of a tag. The cost is at most linear in the number of calls that started since the last lookup.
    fn open_calls_of(&mut self, tag: u64) -> Vec<u64> {
        let Self { calls, tag_index, last_id, .. } = self;
        let new = (tag_index.up_to + 1)..=*last_id;
        let entries = |id: &u64, entry: &CallEntry| entry.end.is_none().then_some((entry.tag, *id));
        if new.end() - tag_index.up_to < calls.len() as u64 {
            tag_index.calls.extend(new.filter_map(|id| calls.get(&id).and_then(|entry| entries(&id, entry))));
        } else {
            let new = calls.iter().filter(|(id, _)| new.contains(id));
            tag_index.calls.extend(new.filter_map(|(id, entry)| entries(id, entry)));
        }
        tag_index.up_to = *last_id;
        tag_index.calls.range((tag, 0)..=(tag, u64::MAX)).map(|(_, id)| *id).collect()
    }

    /// Cancels a call whose handle was dropped, and discards its items.
    fn abandon(&mut self, id: u64, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id) else { return };
        if entry.end.is_some() {
            self.calls.remove(&id);
            return;
        }
        entry.is_abandoned = true;
        (entry.chunks, entry.parts, entry.reports) = (Vec::new(), Vec::new(), Vec::new());
        self.cancel(id, wakers);
    }

    /// Sends a cancellation, or removes the call from the outbox if it was not sent. Does nothing if the call has
    /// ended.
    fn cancel(&mut self, id: u64, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id).filter(|entry| entry.end.is_none()) else { return };
        // The outbox is ordered by id.
        if let Ok(unsent) = self.outbox.calls.binary_search_by_key(&id, |call| call.id) {
            let empty = CallStart { id, ..CallStart::default() };
            let call = std::mem::replace(&mut self.outbox.calls[unsent], empty);
            self.outbox_bytes -= call_size(&call);
            self.withdrawn.insert(id);
            if self.withdrawn.len() > self.outbox.calls.len() / 2 {
                self.drop_withdrawn();
            }
            self.end(id, CallEnd::Recalled, wakers);
        } else if !std::mem::replace(&mut entry.is_cancelled, true) {
            self.outbox.cancels.push(id);
        }
    }

    /// Removes cancelled calls from the outbox. It runs when they are the majority, and once per message, so its cost
    /// per cancellation is constant.
    fn drop_withdrawn(&mut self) {
        let Self { outbox, withdrawn, .. } = self;
        outbox.calls.retain(|call| !withdrawn.remove(&call.id));
    }

    /// Ends a call. The first end counts, so a reply that has arrived survives the end of the stream.
    fn end(&mut self, id: u64, end: CallEnd, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id) else { return };
        if entry.end.is_some() {
            return;
        }
        let tag = entry.tag;
        if entry.is_abandoned {
            self.calls.remove(&id);
        } else {
            entry.end = Some(end);
            wakers.extend(entry.waker.take());
        }
        self.open_count -= 1;
        if id <= self.tag_index.up_to {
            self.tag_index.calls.remove(&(tag, id));
        }
        if !self.tag_waiters.is_empty() {
            wakers.extend(self.tag_waiters.remove(&tag).into_iter().flatten());
        }
        if self.is_done() {
            wakers.extend(self.sender_waker.take());
        }
    }

    /// Whether there is nothing to send, now or later.
    const fn is_done(&self) -> bool {
        self.is_closed && self.open_count == 0
    }

    /// Processes a message of the callee.
    ///
    /// # Errors
    /// A violation of the protocol. The stream must then [fail](Self::fail), because the state of the callee is
    /// unknown.
    fn deliver(&mut self, batch: ReplyBatch, wakers: &mut Vec<Waker>) -> Result<(), Status> {
        let ReplyBatch { opened, chunks, replies, recalled, parts, reports } = batch;
        // Deliver reports first, because they precede the replies of their calls.
        for report in reports {
            if let Some(entry) = self.awaited_entry(report.id) {
                let is_full = entry.reports.len() >= MAX_REPORTS;
                report_queue::push(&mut entry.reports, report, is_full);
                wakers.extend(entry.waker.take());
            }
        }
        for opened in opened {
            if let Some(entry) = self.awaited_entry(opened.id) {
                entry.opened = Some(opened);
                wakers.extend(entry.waker.take());
            }
        }
        for mut run in chunks {
            if let Some(entry) = self.awaited_entry(run.id) {
                for chunk in run.chunks.iter_mut().filter(|chunk| chunk.sent_in_parts > 0) {
                    let data = chunk.binary.as_mut().unwrap_or(&mut chunk.data);
                    entry.complete(data, &mut chunk.sent_in_parts)?;
                }
                if entry.chunks.is_empty() {
                    entry.chunks = run.chunks;
                } else {
                    entry.chunks.extend(run.chunks);
                }
                wakers.extend(entry.waker.take());
            }
        }
        for mut reply in replies {
            if let Some(value) = reply.value.as_mut().filter(|value| value.sent_in_parts > 0)
                && let Some(entry) = self.awaited_entry(reply.id)
            {
                let data = value.binary.as_mut().unwrap_or(&mut value.json);
                entry.complete(data, &mut value.sent_in_parts)?;
            }
            self.end(reply.id, CallEnd::Reply(reply), wakers);
        }
        for id in recalled {
            self.end(id, CallEnd::Recalled, wakers);
        }
        for part in parts {
            if let Some(entry) = self.awaited_entry(part.id) {
                entry.append_part(&part.data)?;
            }
        }
        Ok(())
    }

    /// The entry of a call, if the call is open and its handle exists.
    fn awaited_entry(&mut self, id: u64) -> Option<&mut CallEntry> {
        self.calls.get_mut(&id).filter(|entry| !entry.is_abandoned && entry.end.is_none())
    }

    /// Ends all open calls, because the stream broke. Replies that have arrived stay.
    fn fail(&mut self, status: &Status, wakers: &mut Vec<Waker>) {
        self.break_status = Some(status.clone());
        for call in std::mem::take(&mut self.outbox).calls {
            self.end(call.id, CallEnd::Unsent(call, status.clone()), wakers);
        }
        self.outbox_bytes = 0;
        self.withdrawn.clear();
        let open = self.calls.iter().filter(|(_, entry)| entry.end.is_none());
        let (ids, tags): (Vec<u64>, Vec<u64>) = open.map(|(id, entry)| (*id, entry.tag)).unzip();
        self.lost_tags.extend(tags);
        for id in ids {
            self.end(id, CallEnd::Broken(status.clone()), wakers);
        }
        wakers.extend(self.tag_waiters.drain().flat_map(|(_, wakers)| wakers));
        wakers.extend(self.sender_waker.take());
    }

    /// Takes the next message from the outbox, within the size limit.
    fn take_batch(&mut self) -> Option<CallBatch> {
        if !self.withdrawn.is_empty() {
            self.drop_withdrawn();
        }
        let CallBatch { calls, credits, cancels, recalls, .. } = &self.outbox;
        if calls.is_empty() && credits.is_empty() && cancels.is_empty() && recalls.is_empty() {
            return None;
        }
        if self.outbox_bytes <= BATCH_BYTES {
            self.outbox_bytes = 0;
            // The next message probably has about as many calls.
            let calls = Vec::with_capacity(self.outbox.calls.len());
            let next = CallBatch { calls, ..CallBatch::default() };
            return Some(std::mem::replace(&mut self.outbox, next));
        }
        let mut bytes = 0;
        let fitting = self.outbox.calls.iter().take_while(|call| {
            let is_first = bytes == 0;
            bytes += call_size(call);
            is_first || bytes <= BATCH_BYTES
        });
        let rest = self.outbox.calls.split_off(fitting.count());
        self.outbox_bytes = rest.iter().map(call_size).sum();
        // Frames of unsent calls must not overtake them. Frames of other calls must not wait behind large calls.
        let first_unsent = rest.first().map_or(u64::MAX, |call| call.id);
        let CallBatch { credits, cancels, recalls, .. } = &mut self.outbox;
        let next = CallBatch {
            calls: rest,
            credits: credits.extract_if(.., |credit| credit.id >= first_unsent).collect(),
            cancels: cancels.extract_if(.., |id| *id >= first_unsent).collect(),
            recalls: recalls.extract_if(.., |id| *id >= first_unsent).collect(),
            takes_parts: false,
            takes_buffers: false,
        };
        Some(std::mem::replace(&mut self.outbox, next))
    }
}

impl CallEntry {
    fn append_part(&mut self, part: &[u8]) -> Result<(), Status> {
        if self.parts.len() + part.len() > MAX_ITEM_BYTES {
            let problem =
                format!("the other side sent an answer in parts of more than {MAX_ITEM_BYTES} bytes");
            return Err(Status::internal(problem));
        }
        self.parts.extend_from_slice(part);
        Ok(())
    }

    /// Prepends the parts that have arrived to the last bytes of a reply or chunk.
    fn complete(&mut self, data: &mut Bytes, sent_in_parts: &mut u64) -> Result<(), Status> {
        let sent = std::mem::take(sent_in_parts);
        if self.parts.len() as u64 != sent {
            let arrived = self.parts.len();
            let problem = format!(
                "the other side sent {sent} bytes of an answer in parts, but {arrived} bytes arrived"
            );
            return Err(Status::internal(problem));
        }
        self.append_part(data)?;
        *data = std::mem::take(&mut self.parts).into();
        Ok(())
    }
}

impl SharedCalls {
    /// Creates a table without calls.
    fn new() -> Self {
        let outbox = CallBatch { takes_parts: true, takes_buffers: true, ..CallBatch::default() };
        Self(Mutex::new(CallTable { outbox, ..CallTable::default() }))
    }

    /// Locks the table. Ignores poisoning, because no code under the lock panics in the middle of a change.
    fn lock(&self) -> MutexGuard<'_, CallTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the outbox, then wakes the sending task and all other tasks concerned.
    fn send(&self, change: impl FnOnce(&mut CallTable, &mut Vec<Waker>)) {
        self.update(|state, wakers| {
            change(state, wakers);
            wakers.extend(state.sender_waker.take());
        });
    }

    /// Changes the table under the lock, then wakes the tasks concerned.
    fn update<T>(&self, change: impl FnOnce(&mut CallTable, &mut Vec<Waker>) -> T) -> T {
        let mut wakers = Vec::new();
        let result = change(&mut self.lock(), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

fn too_large(id: u64, size: usize) -> CallReply {
    let problem = format!(
        "the call has {size} bytes, the limit is {MAX_ITEM_BYTES}; pass large data in parts, or as the path of a file"
    );
    let status = error_status(Code::InvalidArgument, INVALID_ARGUMENT, problem);
    CallReply { id, status: Some(Box::new(status.into())), ..CallReply::default() }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl fmt::Debug for SharedCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("SharedCalls")
            .field("calls", &state.calls.len())
            .field("unsent", &state.outbox.calls.len())
            .field("broken", &state.break_status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
