//! Credit of streams: chunks stay within it, and the end needs none.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_outbox_bounds_a_stream_with_unlimited_credit() {
    let tools = Tools::default();
    let (batches, replies) = open_raw(&tools).await;
    let greedy = pb::CallStart { credit: u64::MAX, ..start_stream(1, 100_000, 10_000) };
    let credits = vec![pb::CallCredit { id: 1, bytes: u64::MAX }; 3];
    let calls = vec![greedy, start(2, "hang")];
    batches.send(pb::CallBatch { calls, credits, ..Default::default() }).await.unwrap();
    wait_until(|| tools.0.produced.load(SeqCst) > 4_000_000).await;
    sleep(Duration::from_secs(1)).await;
    let produced = tools.0.produced.load(SeqCst);
    assert!(produced < 5_000_000, "{produced}");
    drop(replies);
    wait_until(|| tools.0.usage().is_none() && tools.0.running.load(SeqCst) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn at_most_the_credit_and_two_chunks_are_in_transit() {
    const SIZE: usize = 30_000;
    let tools = Tools::default();
    let (multiplexer, incoming) = open(&tools).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(incoming);
    let mut uneven = streaming_call(13 * 50, SIZE);
    uneven.metadata.insert("uneven".to_owned(), String::new());
    let reply = call(&multiplexer, &TestCallErrors, uneven).await.unwrap();
    let ReplyBody::Stream(mut chunks) = reply.body else { panic!("it streams") };
    let mut consumed = 0;
    while let Some(chunk) = chunks.next().await {
        consumed += chunk.unwrap().data.len();
        sleep(Duration::from_millis(5)).await;
        let ahead = tools.0.produced.load(SeqCst) - consumed;
        assert!(ahead <= usize::try_from(STREAM_CREDIT).unwrap() + 2 * 9 * SIZE, "{ahead} after {consumed}");
    }
    assert_eq!(consumed, 50 * SIZE_FACTORS.iter().sum::<usize>() * SIZE);
    drop(chunks);
    assert_empty(&tools.0, &multiplexer).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_needs_no_credit() {
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    // The second chunk overdraws the credit. The end follows.
    let calls = vec![pb::CallStart { credit: 1500, ..start_stream(1, 2, 1000) }];
    batches.send(pb::CallBatch { calls, ..Default::default() }).await.unwrap();
    let (mut count, mut ended) = (0, false);
    while !ended {
        let batch = replies.message().await.unwrap().unwrap();
        count += batch.chunks.iter().map(|run| run.chunks.len()).sum::<usize>();
        ended = batch.replies.iter().any(|reply| reply.id == 1 && reply.status.is_none());
    }
    assert_eq!((count, tools.0.usage()), (2, Some((0, 0, 0))));
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_reader_grants_nothing_ends_at_its_deadline() {
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    let start = Instant::now();
    let calls = vec![
        pb::CallStart { credit: 1500, timeout_us: 1_000_000, ..start_stream(1, 100, 1000) },
        pb::CallStart { credit: 1500, ..start_stream(2, 100, 1000) },
    ];
    batches.send(pb::CallBatch { calls, ..Default::default() }).await.unwrap();
    let mut counts = BTreeMap::new();
    let end = loop {
        let batch = replies.message().await.unwrap().unwrap();
        for run in batch.chunks {
            *counts.entry(run.id).or_insert(0) += run.chunks.len();
        }
        if let Some(reply) = batch.replies.into_iter().next() {
            break reply;
        }
    };
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_secs(2));
    assert_eq!((end.id, counts[&1], counts[&2]), (1, 2, 2));
    assert!(end.status.unwrap().message.contains("deadline"), "it says why");
    assert_eq!(tools.0.usage().map(|usage| usage.0), Some(1), "the other stream waits for its reader");
    // It continues where it stopped.
    let credits = vec![pb::CallCredit { id: 2, bytes: u64::MAX }];
    batches.send(pb::CallBatch { credits, ..Default::default() }).await.unwrap();
    let mut count = 2;
    while let Some(batch) = replies.message().await.unwrap() {
        count += batch.chunks.iter().map(|run| run.chunks.len()).sum::<usize>();
        if !batch.replies.is_empty() {
            break;
        }
    }
    assert_eq!(count, 100);
}

#[tokio::test(start_paused = true)]
async fn prefetched_chunks_of_all_streams_are_bounded() {
    const STREAMS: u64 = 100;
    const SIZE: usize = 1_000_000;
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    // The first chunk overdraws the credit, the second one waits for more.
    let timeout_us = |id| if id > 50 { 1_000_000 } else { 0 };
    let calls = (1..=STREAMS).map(|id| pb::CallStart {
        credit: 1,
        timeout_us: timeout_us(id),
        ..start_stream(id, 3, SIZE)
    });
    batches.send(pb::CallBatch { calls: calls.collect(), ..Default::default() }).await.unwrap();
    let mut counts = BTreeMap::<u64, usize>::new();
    let mut ends = BTreeMap::new();
    let mut take = |batch: pb::ReplyBatch| {
        for run in batch.chunks {
            *counts.entry(run.id).or_default() += run.chunks.len();
        }
        ends.extend(batch.replies.into_iter().map(|reply| (reply.id, reply.status.is_some())));
        (counts.values().sum::<usize>(), ends.len(), ends.values().filter(|failed| **failed).count())
    };
    while take(replies.message().await.unwrap().unwrap()).0 < 100 {}
    let ahead = tools.0.produced.load(SeqCst) - 100 * SIZE;
    let limit = usize::try_from(forward::PREFETCH_BYTES).unwrap();
    assert!(ahead > SIZE && ahead <= limit + SIZE, "{ahead}");
    // Streams that could not prefetch also end at their deadline.
    while take(replies.message().await.unwrap().unwrap()).1 < 50 {}
    let credits = (1..=50).map(|id| pb::CallCredit { id, bytes: u64::MAX }).collect();
    batches.send(pb::CallBatch { credits, ..Default::default() }).await.unwrap();
    drop(batches);
    let mut totals = (0, 0, 0);
    while let Some(batch) = replies.message().await.unwrap() {
        totals = take(batch);
    }
    assert_eq!(totals, (50 * 3 + 50, 100, 50));
}
