//! The calling end: [`Multiplexer`] starts calls, [`Call`] is one of them, [`Incoming`] brings their answers.

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
use super::{BATCH_BYTES, MAX_ITEM_BYTES, call_size};
use crate::{
    pb::{
        CallBatch, CallChunk, CallOpened, CallReply, CallStart, ReplyBatch,
        bridge_service_client::BridgeServiceClient,
    },
    proxy,
    status::{INVALID_ARGUMENT, refuse},
};

/// Starts calls on one `Multiplex` stream. Clones share it.
///
/// Dropping the last clone closes the stream for new calls. Calls that were started go on, and the sending half stays open
/// for their credits and cancellations until the last of them has ended.
#[derive(Debug, Clone)]
pub struct Multiplexer {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let waker = state.sender.take();
        drop(state);
        wake(waker);
    }
}

struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    last_id: u64,
    calls: HashMap<u64, Entry, BuildHasherDefault<IdHasher>>,
    /// The number of calls that have no end yet.
    open: usize,
    /// What is to be sent, and about how many bytes its calls are.
    outbox: CallBatch,
    outbox_bytes: usize,
    /// Calls in the outbox that were cancelled there. Their places hold empty calls, which are dropped before a message is
    /// cut: taking each one out of the middle would move all calls behind it.
    withdrawn: HashSet<u64, BuildHasherDefault<IdHasher>>,
    /// The task that sends, while it has nothing to send.
    sender: Option<Waker>,
    by_tag: ByTag,
    /// Tasks that wait until no call of a tag runs any more.
    settling: HashMap<u64, Vec<Waker>, BuildHasherDefault<IdHasher>>,
    /// No more calls will be started.
    closed: bool,
    /// Why no more answers will come.
    broken: Option<Status>,
    /// The tags of calls that were under way when the stream broke. Whether those calls have ended is not known.
    lost: HashSet<u64, BuildHasherDefault<IdHasher>>,
}

/// The open calls with their tags: `(tag, id)`. Calls enter it when somebody asks for a tag, and not when they start, because
/// of most calls nobody does.
#[derive(Default)]
struct ByTag {
    calls: BTreeSet<(u64, u64)>,
    /// Open calls up to this id are in it.
    up_to: u64,
}

/// A call that has not ended, or whose end was not fetched.
#[derive(Default)]
struct Entry {
    tag: u64,
    waker: Option<Waker>,
    opened: Option<CallOpened>,
    chunks: Vec<CallChunk>,
    /// The beginning of a large answer or chunk.
    parts: Vec<u8>,
    end: Option<CallEnd>,
    /// Nobody will fetch anything any more.
    abandoned: bool,
    /// The other side was asked to cancel it.
    cancelled: bool,
}

impl Multiplexer {
    /// Opens the stream. Calls go on only while somebody polls the future that comes with it.
    ///
    /// # Errors
    /// What the server answered: `UNIMPLEMENTED` from one that does not know the RPC.
    pub async fn open<T>(mut client: BridgeServiceClient<T>) -> Result<(Self, Incoming), Status>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<tonic::codegen::StdError>,
        T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
    {
        let shared = Arc::new(Shared::new());
        let outgoing = Outgoing(Arc::clone(&shared));
        let response = client.multiplex(Request::new(outgoing)).await.map_err(proxy::clarify)?;
        let proxy = proxy::server(response.metadata());
        let replies = response.into_inner();
        let multiplexer = Self { owner: Arc::new(Owner(Arc::clone(&shared))) };
        Ok((multiplexer, Incoming::new(shared, replies, proxy)))
    }

    /// Starts a call; its `id` is set here. `tag` names it for [`ended`](Self::ended).
    #[must_use = "dropping a call cancels it"]
    pub fn start(&self, mut call: CallStart, tag: u64) -> Call {
        let shared = &self.owner.0;
        let mut state = shared.lock();
        state.last_id += 1;
        let id = state.last_id;
        call.id = id;
        let mut entry = Entry { tag, ..Entry::default() };
        let size = call_size(&call);
        let waker = if let Some(status) = &state.broken {
            entry.end = Some(CallEnd::Unsent(call, status.clone()));
            None
        } else if size > MAX_ITEM_BYTES {
            // A message that large would break the stream, and with it all other calls.
            entry.end = Some(CallEnd::Reply(too_large(id, size)));
            None
        } else {
            state.outbox_bytes += size;
            state.outbox.calls.push(call);
            state.open += 1;
            state.sender.take()
        };
        state.calls.insert(id, entry);
        drop(state);
        wake(waker);
        Call { shared: Arc::clone(shared), id, ended: false }
    }

    /// Whether the stream broke, so that calls started on it fail.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.owner.0.lock().broken.is_some()
    }

    /// Asks for the calls of this tag back, if they have not begun.
    pub fn recall(&self, tag: u64) {
        self.owner.0.send(|state, _| {
            let ids = state.of_tag(tag);
            state.outbox.recalls.extend(ids);
        });
    }

    /// Returns once no call of this tag runs any more, cancelling those that still do. `false`: the stream broke before
    /// the other side said so.
    pub async fn ended(&self, tag: u64) -> bool {
        let shared = &self.owner.0;
        shared.send(|state, wakers| {
            let ids = state.of_tag(tag);
            ids.into_iter().for_each(|id| state.cancel(id, wakers));
        });
        std::future::poll_fn(|cx| {
            let mut state = shared.lock();
            if state.of_tag(tag).is_empty() {
                return Poll::Ready(!state.lost.contains(&tag));
            }
            let settling = state.settling.entry(tag).or_default();
            if !settling.iter().any(|waker| waker.will_wake(cx.waker())) {
                settling.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl State {
    /// The open calls of a tag. Costs as much as the calls that were started since it was last asked, at most.
    fn of_tag(&mut self, tag: u64) -> Vec<u64> {
        let Self { calls, by_tag, last_id, .. } = self;
        let new = (by_tag.up_to + 1)..=*last_id;
        let entries = |id: &u64, entry: &Entry| entry.end.is_none().then_some((entry.tag, *id));
        if new.end() - by_tag.up_to < calls.len() as u64 {
            by_tag.calls.extend(new.filter_map(|id| calls.get(&id).and_then(|entry| entries(&id, entry))));
        } else {
            let new = calls.iter().filter(|(id, _)| new.contains(id));
            by_tag.calls.extend(new.filter_map(|(id, entry)| entries(id, entry)));
        }
        by_tag.up_to = *last_id;
        by_tag.calls.range((tag, 0)..=(tag, u64::MAX)).map(|(_, id)| *id).collect()
    }

    /// Nobody waits for the call any more.
    fn abandon(&mut self, id: u64, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id) else { return };
        if entry.end.is_some() {
            self.calls.remove(&id);
            return;
        }
        entry.abandoned = true;
        (entry.chunks, entry.parts) = (Vec::new(), Vec::new());
        self.cancel(id, wakers);
    }

    /// Has the other side cancel the call, or takes it back if it was not even sent. Does nothing once it has ended.
    fn cancel(&mut self, id: u64, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id).filter(|entry| entry.end.is_none()) else { return };
        // Calls are sent in the order of their ids.
        if let Ok(unsent) = self.outbox.calls.binary_search_by_key(&id, |call| call.id) {
            let empty = CallStart { id, ..CallStart::default() };
            let call = std::mem::replace(&mut self.outbox.calls[unsent], empty);
            self.outbox_bytes -= call_size(&call);
            self.withdrawn.insert(id);
            if self.withdrawn.len() > self.outbox.calls.len() / 2 {
                self.drop_withdrawn();
            }
            self.end(id, CallEnd::Recalled, wakers);
        } else if !std::mem::replace(&mut entry.cancelled, true) {
            self.outbox.cancels.push(id);
        }
    }

    /// Drops the places of cancelled calls from the outbox. The calls that cancel pay for it: it runs when they are the
    /// majority, and otherwise once for each message.
    fn drop_withdrawn(&mut self) {
        let Self { outbox, withdrawn, .. } = self;
        outbox.calls.retain(|call| !withdrawn.remove(&call.id));
    }

    /// The call has ended. Its first end counts: an answer that has arrived outlives the stream that brought it.
    fn end(&mut self, id: u64, end: CallEnd, wakers: &mut Vec<Waker>) {
        let Some(entry) = self.calls.get_mut(&id) else { return };
        if entry.end.is_some() {
            return;
        }
        let tag = entry.tag;
        if entry.abandoned {
            self.calls.remove(&id);
        } else {
            entry.end = Some(end);
            wakers.extend(entry.waker.take());
        }
        self.open -= 1;
        if id <= self.by_tag.up_to {
            self.by_tag.calls.remove(&(tag, id));
        }
        if !self.settling.is_empty() {
            wakers.extend(self.settling.remove(&tag).into_iter().flatten());
        }
        if self.is_done() {
            wakers.extend(self.sender.take());
        }
    }

    /// Nothing is left to be sent, now or later.
    const fn is_done(&self) -> bool {
        self.closed && self.open == 0
    }

    /// Takes in a message.
    ///
    /// # Errors
    /// When it makes no sense. The stream is then to [fail](Self::fail), for what the other side does is not known.
    fn deliver(&mut self, batch: ReplyBatch, wakers: &mut Vec<Waker>) -> Result<(), Status> {
        let ReplyBatch { opened, chunks, replies, recalled, parts } = batch;
        for opened in opened {
            if let Some(entry) = self.live(opened.id) {
                entry.opened = Some(opened);
                wakers.extend(entry.waker.take());
            }
        }
        for mut run in chunks {
            if let Some(entry) = self.live(run.id) {
                for chunk in run.chunks.iter_mut().filter(|chunk| chunk.sent_in_parts > 0) {
                    entry.complete(&mut chunk.data, &mut chunk.sent_in_parts)?;
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
                && let Some(entry) = self.live(reply.id)
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
            if let Some(entry) = self.live(part.id) {
                entry.put_part(&part.data)?;
            }
        }
        Ok(())
    }

    /// A call that has not ended and that somebody waits for.
    fn live(&mut self, id: u64) -> Option<&mut Entry> {
        self.calls.get_mut(&id).filter(|entry| !entry.abandoned && entry.end.is_none())
    }

    /// The stream broke: no more answers come. Calls whose answers came keep them.
    fn fail(&mut self, status: &Status, wakers: &mut Vec<Waker>) {
        self.broken = Some(status.clone());
        for call in std::mem::take(&mut self.outbox).calls {
            self.end(call.id, CallEnd::Unsent(call, status.clone()), wakers);
        }
        self.outbox_bytes = 0;
        self.withdrawn.clear();
        let open = self.calls.iter().filter(|(_, entry)| entry.end.is_none());
        let (ids, tags): (Vec<u64>, Vec<u64>) = open.map(|(id, entry)| (*id, entry.tag)).unzip();
        self.lost.extend(tags);
        for id in ids {
            self.end(id, CallEnd::Broken(status.clone()), wakers);
        }
        wakers.extend(self.settling.drain().flat_map(|(_, wakers)| wakers));
        wakers.extend(self.sender.take());
    }

    /// Takes what can be sent now, as one message of bounded size.
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
            // The next message will hold about as many calls.
            let calls = Vec::with_capacity(self.outbox.calls.len());
            let next = CallBatch { calls, ..CallBatch::default() };
            return Some(std::mem::replace(&mut self.outbox, next));
        }
        let mut bytes = 0;
        let fits = self.outbox.calls.iter().take_while(|call| {
            let first = bytes == 0;
            bytes += call_size(call);
            first || bytes <= BATCH_BYTES
        });
        let rest = self.outbox.calls.split_off(fits.count());
        self.outbox_bytes = rest.iter().map(call_size).sum();
        // Those of calls that are not yet sent must not overtake them; the others must not wait for large calls.
        let unsent = rest.first().map_or(u64::MAX, |call| call.id);
        let CallBatch { credits, cancels, recalls, .. } = &mut self.outbox;
        let next = CallBatch {
            calls: rest,
            credits: credits.extract_if(.., |credit| credit.id >= unsent).collect(),
            cancels: cancels.extract_if(.., |id| *id >= unsent).collect(),
            recalls: recalls.extract_if(.., |id| *id >= unsent).collect(),
            takes_parts: false,
        };
        Some(std::mem::replace(&mut self.outbox, next))
    }
}

impl Entry {
    fn put_part(&mut self, part: &[u8]) -> Result<(), Status> {
        if self.parts.len() + part.len() > MAX_ITEM_BYTES {
            let problem =
                format!("the other side sent an answer in parts of more than {MAX_ITEM_BYTES} bytes");
            return Err(Status::internal(problem));
        }
        self.parts.extend_from_slice(part);
        Ok(())
    }

    /// Puts the parts that came before in front of the last bytes of an answer or chunk.
    fn complete(&mut self, data: &mut Bytes, sent_in_parts: &mut u64) -> Result<(), Status> {
        let sent = std::mem::take(sent_in_parts);
        if self.parts.len() as u64 != sent {
            let came = self.parts.len();
            let problem =
                format!("the other side sent {sent} bytes of an answer in parts, of which {came} came");
            return Err(Status::internal(problem));
        }
        self.put_part(data)?;
        *data = std::mem::take(&mut self.parts).into();
        Ok(())
    }
}

impl Shared {
    /// No calls yet.
    fn new() -> Self {
        let outbox = CallBatch { takes_parts: true, ..CallBatch::default() };
        Self(Mutex::new(State { outbox, ..State::default() }))
    }

    /// No code under this lock panics half-way through a change, so a poisoned state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something into the outbox, then wakes whom that concerns.
    fn send(&self, put: impl FnOnce(&mut State, &mut Vec<Waker>)) {
        self.update(|state, wakers| {
            put(state, wakers);
            wakers.extend(state.sender.take());
        });
    }

    /// Changes the state, then wakes whom that concerns.
    fn update<T>(&self, change: impl FnOnce(&mut State, &mut Vec<Waker>) -> T) -> T {
        let mut wakers = Vec::new();
        let changed = change(&mut self.lock(), &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        changed
    }
}

fn too_large(id: u64, size: usize) -> CallReply {
    let problem = format!(
        "the call has {size} bytes, the limit is {MAX_ITEM_BYTES}; pass large data in parts, or as the path of a file"
    );
    let status = refuse(Code::InvalidArgument, INVALID_ARGUMENT, problem);
    CallReply { id, status: Some(status.into()), ..CallReply::default() }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Shared")
            .field("calls", &state.calls.len())
            .field("unsent", &state.outbox.calls.len())
            .field("broken", &state.broken)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
