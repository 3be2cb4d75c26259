//! The product under load: the whole of it, with sessions, scheduler, deadlines and counters.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use snakepit_server::Snakepit;
use snakepit_tests::{SHOWCASE, python};

use crate::load::{Report, closed_loop};

#[derive(Debug, Serialize)]
struct Pair {
    a: u64,
    b: u64,
}

/// A host inside this process.
pub(crate) async fn embedded(workers: usize, multiplex: bool) -> Snakepit {
    let _ = multiplex;
    Snakepit::builder()
        .adapter(SHOWCASE)
        .python(python())
        .workers(workers)
        .listen(([127, 0, 0, 1], 0).into())
        .start()
        .await
        .expect("the host starts")
}

/// `add` in Python, called from this process.
pub(crate) async fn calls(host: &Snakepit, in_flight: usize, time: Duration) -> Report {
    let pids: Vec<u32> = host.status().workers.iter().filter_map(|worker| worker.pid).collect();
    let host = Arc::new(host.clone());
    closed_loop(in_flight, time, &pids, move |number| {
        let host = Arc::clone(&host);
        async move {
            let sum = host.execute::<u64>("add", Pair { a: number, b: 1 }).await;
            sum.is_ok_and(|sum| sum == number + 1)
        }
    })
    .await
}
