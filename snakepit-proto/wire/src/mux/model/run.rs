//! One run of the model: both ends, the messages in transit, and the expectations of the callers.

use super::*;

/// A call at its caller.
struct Caller {
    id: u64,
    state: CallerState,
    /// The number of chunks that arrived.
    count: u64,
    is_end_requested: bool,
}

enum CallerState {
    Waiting(BoxFuture<'static, Result<ToolReply, ToolError>>),
    Reading(ChunkStream),
}

pub(super) struct Run {
    multiplexer: Multiplexer,
    frames: Frames,
    callers: Vec<Caller>,
    started: u64,
    ending: Vec<(u64, BoxFuture<'static, bool>)>,
    to_callee: VecDeque<pb::CallBatch>,
    tools: Tools,
    callee: MuxCalls<TestService>,
    replies: Replies,
    body: ReplyBatches,
    parts: bool,
    to_caller: VecDeque<pb::ReplyBatch>,
    is_cut: bool,
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Run {
    pub(super) fn new(parts: bool) -> Self {
        let (multiplexer, frames) = Frames::open();
        let (tools, replies) = (Tools::default(), Replies::new());
        Self {
            multiplexer,
            frames,
            callers: Vec::new(),
            started: 0,
            ending: Vec::new(),
            to_callee: VecDeque::new(),
            callee: MuxCalls::new(Arc::new(TestService(tools.clone())), replies.clone()),
            tools,
            body: replies.body(),
            replies,
            parts,
            to_caller: VecDeque::new(),
            is_cut: false,
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        let count = self.callers.len();
        let index_of = |pick: usize| (count > 0).then(|| pick % count);
        match step {
            Step::Start { streams } => self.start(streams),
            Step::Poll(pick) => {
                if let Some(i) = index_of(pick) {
                    self.poll(i);
                }
                self.poll_ending();
            }
            Step::Drop(pick) => {
                if let Some(i) = index_of(pick) {
                    self.callers.swap_remove(i);
                }
            }
            Step::Recall(pick) => {
                if let Some(i) = index_of(pick) {
                    self.callers[i].is_end_requested = true;
                    self.multiplexer.recall(self.callers[i].id);
                }
            }
            Step::Cancel(pick) => {
                if let Some(i) = index_of(pick) {
                    self.callers[i].is_end_requested = true;
                    let (id, multiplexer) = (self.callers[i].id, self.multiplexer.clone());
                    self.ending.push((id, async move { multiplexer.cancel(id).await }.boxed()));
                    self.poll_ending();
                }
            }
            Step::Send => drop(self.send()),
            Step::Receive => drop(self.receive()),
            Step::Serve => drop(self.callee.poll(&mut noop())),
            Step::Work(pick, action) => self.work(pick, action),
            Step::Confirm(pick) => drop(self.confirm(pick)),
            Step::Answer => drop(self.answer()),
            Step::Deliver => drop(self.deliver()),
        }
    }

    /// The tag of a call is its id.
    fn start(&mut self, streams: bool) {
        self.started += 1;
        let mut tool = ToolCall::new("tool");
        tool.id = CallId::from_u64(self.started);
        tool.mode = if streams { CallMode::Streaming } else { CallMode::Unary };
        let state = CallerState::Waiting(call(&self.multiplexer, &TestCallErrors, tool).boxed());
        self.callers.push(Caller { id: self.started, state, count: 0, is_end_requested: false });
    }

    /// Polls a call once. Returns whether it was ready.
    fn poll(&mut self, i: usize) -> bool {
        let caller = &mut self.callers[i];
        let end = match &mut caller.state {
            CallerState::Waiting(answer) => match answer.poll_unpin(&mut noop()) {
                Poll::Pending => return false,
                Poll::Ready(Ok(ToolReply { body: ReplyBody::Stream(chunks), .. })) => {
                    caller.state = CallerState::Reading(chunks);
                    return true;
                }
                Poll::Ready(Ok(ToolReply { body: ReplyBody::Value(value), .. })) => {
                    Ok(value.binary().cloned())
                }
                Poll::Ready(Err(error)) => Err(error),
            },
            CallerState::Reading(chunks) => match chunks.poll_next_unpin(&mut noop()) {
                Poll::Pending => return false,
                Poll::Ready(Some(Ok(chunk))) => {
                    let index = caller.count;
                    assert!(chunk.data == data(caller.id, index, chunk.data.len()), "chunk {index}");
                    caller.count += 1;
                    return true;
                }
                Poll::Ready(end) => {
                    let again = chunks.poll_next_unpin(&mut noop());
                    assert!(matches!(again, Poll::Ready(None)), "call {} ended twice", caller.id);
                    end.map_or(Ok(None), |error| Err(error.unwrap_err()))
                }
            },
        };
        let caller = self.callers.swap_remove(i);
        self.check_end(&caller, end);
        true
    }

    fn check_end(&self, caller: &Caller, end: Result<Option<Bytes>, ToolError>) {
        let states = self.tools.lock();
        let work = states.get(&caller.id);
        let tool_end = work.and_then(|work| work.end.clone());
        let is_whole = work.is_some_and(|work| work.count == caller.count);
        match end {
            Ok(Some(value)) => assert!(tool_end == Some(ToolEnd::Returned(value)), "call {}", caller.id),
            Ok(None) => {
                assert!(
                    is_whole && matches!(tool_end, Some(ToolEnd::Returned(_))),
                    "a gap in call {}",
                    caller.id
                );
            }
            Err(ToolError::Failed(_)) => {
                assert!(is_whole && tool_end == Some(ToolEnd::Failed), "call {}", caller.id);
            }
            Err(ToolError::Recalled { .. }) => {
                assert!(caller.is_end_requested && work.is_none_or(|work| work.count == 0));
            }
            Err(ToolError::Cancelled { .. }) => assert!(work.is_some_and(|work| work.is_confirmed)),
            Err(ToolError::WorkerLost { .. }) => assert!(self.is_cut),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn poll_ending(&mut self) -> bool {
        let (tools, is_cut, before) = (&self.tools, self.is_cut, self.ending.len());
        self.ending.retain_mut(|(id, ended)| match ended.poll_unpin(&mut noop()) {
            Poll::Pending => true,
            Poll::Ready(ended) => {
                assert!(ended || is_cut);
                assert!(!ended || tools.lock().get(id).is_none_or(|work| !work.is_running), "call {id} runs");
                false
            }
        });
        self.ending.len() < before
    }

    fn send(&mut self) -> bool {
        let Poll::Ready(Some(batch)) = self.frames.poll_take(&mut noop()) else { return false };
        self.to_callee.push_back(batch);
        true
    }

    fn receive(&mut self) -> bool {
        let Some(batch) = self.to_callee.pop_front() else { return false };
        if batch.takes_parts && self.parts {
            self.replies.enable_parts();
        }
        self.callee.receive(batch);
        true
    }

    /// The ids of the calls whose tools are in a state, in order.
    fn calls_in(&self, is_in_state: impl Fn(&ToolState) -> bool) -> Vec<u64> {
        let states = self.tools.lock();
        let mut ids: Vec<u64> =
            states.iter().filter(|(_, work)| is_in_state(work)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    fn work(&self, pick: usize, action: ToolAction) {
        let ids = self.calls_in(|work| work.is_running && work.end.is_none());
        if ids.is_empty() {
            return;
        }
        let id = ids[pick % ids.len()];
        self.tools.change(id, |work| {
            match action {
                ToolAction::Chunk(_) if !work.streams => return,
                ToolAction::Chunk(bytes) => {
                    work.chunks.push_back(data(id, work.count, bytes));
                    work.count += 1;
                }
                ToolAction::Return(bytes) => work.end = Some(ToolEnd::Returned(data(id, 0, bytes))),
                ToolAction::Fail => work.end = Some(ToolEnd::Failed),
            }
            work.has_begun = true;
        });
    }

    fn confirm(&self, pick: usize) -> bool {
        let ids = self.calls_in(|work| work.is_cancelled && !work.is_confirmed);
        if !ids.is_empty() {
            self.tools.change(ids[pick % ids.len()], |work| work.is_confirmed = true);
        }
        !ids.is_empty()
    }

    fn answer(&mut self) -> bool {
        let Poll::Ready(Some(batch)) = Pin::new(&mut self.body).poll_next(&mut noop()) else { return false };
        self.to_caller.push_back(batch.unwrap());
        true
    }

    fn deliver(&mut self) -> bool {
        let Some(batch) = self.to_caller.pop_front() else { return false };
        self.frames.deliver(batch);
        true
    }

    /// Breaks the stream, loses the messages in transit, and checks that all tools stop.
    pub(super) fn cut(mut self) {
        self.is_cut = true;
        self.frames.cut(&Status::unavailable("cut"));
        let idle = MuxCalls::new(Arc::new(TestService(self.tools.clone())), Replies::new());
        drop(std::mem::replace(&mut self.callee, idle));
        assert!(self.calls_in(|work| work.is_running).is_empty());
        while !self.callers.is_empty() {
            while self.poll(0) {
                if self.callers.is_empty() {
                    break;
                }
            }
        }
        self.poll_ending();
        assert_eq!((self.ending.len(), self.frames.calls()), (0, 0));
    }

    /// Ends all tools and delivers all messages.
    pub(super) fn settle(mut self) {
        loop {
            let mut progressed = self.send() | self.receive();
            self.callee.poll(&mut noop());
            let open = self.calls_in(|work| work.is_running && work.end.is_none());
            open.iter().for_each(|_| self.work(0, ToolAction::Return(1)));
            progressed |=
                !open.is_empty() | self.confirm(0) | self.answer() | self.deliver() | self.poll_ending();
            for i in (0..self.callers.len()).rev() {
                progressed |= self.poll(i);
            }
            if !progressed && !self.callee.poll(&mut noop()) {
                break;
            }
        }
        assert_eq!((self.callers.len(), self.ending.len(), self.frames.calls()), (0, 0, 0));
        assert_eq!(self.callee.usage(), (0, 0, 0));
        assert!(self.replies.is_empty() && self.calls_in(|work| work.is_running).is_empty());
    }
}
