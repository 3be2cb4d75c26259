//! Tests of the admission and the budgets of connections.

use snakepit_worker::WorkerId;

use super::*;

fn response_budget() -> Arc<ResponseBudget> {
    Arc::new(ResponseBudget::new(1))
}

fn connections(limit: usize) -> Arc<Connections> {
    Connections::new(limit, 1, ArrivalBudgets::new(1), response_budget(), Weak::new(), false)
}

fn admit(connections: &Arc<Connections>) -> Option<ConnectionPermit> {
    admit_peer(connections, Peer::Unknown)
}

/// This process, on a Unix socket.
fn own_process() -> Peer {
    Peer::Process { pid: Some(std::process::id()), uid: 0 }
}

fn admit_peer(connections: &Arc<Connections>, peer: Peer) -> Option<ConnectionPermit> {
    match connections.admit(peer) {
        Admission::Admitted(permit) => Some(permit),
        Admission::Rejected { .. } => None,
    }
}

fn is_evicted(permit: &ConnectionPermit) -> bool {
    permit.connection().evicted.is_cancelled()
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_evicts_an_unused_one_or_the_one_idle_longest() {
    let connections = connections(3);
    let (busy, idle, silent) =
        (admit(&connections).unwrap(), admit(&connections).unwrap(), admit(&connections).unwrap());
    let _request = busy.connection().begin_request(false);
    drop(idle.connection().begin_request(false));
    tokio::time::advance(Duration::from_secs(1)).await;
    let first = admit(&connections).unwrap();
    let _first_request = first.connection().begin_request(false);
    assert_eq!([&busy, &idle, &silent].map(is_evicted), [false, false, true]);
    silent.connection().evicted().await;
    drop(silent);
    let second = admit(&connections).unwrap();
    let _second_request = second.connection().begin_request(false);
    assert_eq!([&busy, &idle, &first].map(is_evicted), [false, true, false]);
    // The evicted connection has not closed yet, and no other is idle.
    assert!(admit(&connections).is_none());
}

#[tokio::test]
async fn busy_connections_are_not_evicted_and_closed_ones_admit_others() {
    let connections = connections(2);
    let (one, other) = (admit(&connections).unwrap(), admit(&connections).unwrap());
    let _requests = [one.connection().begin_request(false), other.connection().begin_request(false)];
    assert!(admit(&connections).is_none());
    drop(other);
    assert!(admit(&connections).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_multiplex_stream_protects_its_connection_only_while_calls_run() {
    let connections = connections(1);
    let permit = admit(&connections).unwrap();
    let _stream = permit.connection().begin_request(true);
    let mut stream_use = StreamUse::new(Arc::clone(permit.connection()));
    assert!(stream_use.begin() && stream_use.begin());
    assert!(admit(&connections).is_none(), "a call runs");
    stream_use.end();
    let _new = admit(&connections).unwrap();
    assert!(is_evicted(&permit) && !stream_use.begin(), "calls that arrive after the eviction do not run");
    assert!(!permit.connection().is_in_use());
}

#[tokio::test(start_paused = true)]
async fn an_idle_multiplex_stream_counts_as_an_open_request_but_not_as_a_use() {
    let connections = connections(1);
    let permit = admit(&connections).unwrap();
    let connection = permit.connection();
    assert_eq!(connection.without_requests_since(), Some(Instant::now()), "it has just opened");
    let stream = connection.begin_request(true);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(connection.without_requests_since(), None);
    drop(stream);
    assert_eq!(connection.without_requests_since(), Some(Instant::now()));
    let opened = Instant::now() - Duration::from_secs(3600);
    assert_eq!(connection.last_use_ended(), opened, "a stream without calls is not a use");
}

#[tokio::test]
async fn clients_that_use_all_connections_do_not_keep_workers_out() {
    let launches = Launches::new();
    let connections =
        Connections::new(1, 1, ArrivalBudgets::new(1), response_budget(), Arc::downgrade(&launches), false);
    let client = admit_peer(&connections, own_process()).unwrap();
    let _request = client.connection().begin_request(false);
    assert!(admit_peer(&connections, own_process()).is_none());
    let _launch = launches.add_process(&WorkerId::new("w"), std::process::id());
    let worker = admit_peer(&connections, own_process()).unwrap();
    assert_eq!(worker.connection().find_launch().unwrap().id().as_str(), "w");
    assert!(admit(&connections).is_none(), "the reserve is only for workers");
}

#[tokio::test]
async fn workers_neither_evict_connections_nor_lose_theirs() {
    let launches = Launches::new();
    let connections =
        Connections::new(1, 1, ArrivalBudgets::new(1), response_budget(), Arc::downgrade(&launches), false);
    let _launch = launches.add_process(&WorkerId::new("w"), std::process::id());
    let worker = || admit_peer(&connections, own_process()).unwrap();
    let (first, second) = (worker(), worker());
    drop(first.connection().begin_request(false));
    let idle_client = admit(&connections).expect("workers do not count towards the limit");
    let third = worker();
    assert_eq!([&first, &second, &third, &idle_client].map(is_evicted), [false; 4]);
    let _other_client = admit(&connections).unwrap();
    assert_eq!([&first, &second, &third, &idle_client].map(is_evicted), [false, false, false, true]);
}

#[tokio::test]
async fn processes_are_looked_up_once_at_the_limit() {
    let connections = connections(2);
    let _first = admit_peer(&connections, own_process()).unwrap();
    assert!(connections.unidentified_at_limit().is_empty(), "below the limit");
    let _second = admit_peer(&connections, own_process()).unwrap();
    let unidentified = connections.unidentified_at_limit();
    assert_eq!(unidentified.len(), 2);
    assert!(unidentified.iter().all(|connection| connection.find_launch().is_none()));
    assert!(connections.unidentified_at_limit().is_empty(), "they are known now");
}

#[tokio::test]
async fn arriving_requests_of_clients_do_not_use_the_budget_of_workers() {
    let launches = Launches::new();
    let connections =
        Connections::new(8, 1, ArrivalBudgets::new(100), response_budget(), Arc::downgrade(&launches), false);
    let client = admit(&connections).unwrap();
    let mut reservation = client.connection().arrival_reservation();
    reservation.grow(100).unwrap();
    assert!(admit(&connections).unwrap().connection().arrival_reservation().grow(1).is_err());
    let _launch = launches.add_process(&WorkerId::new("w"), std::process::id());
    let worker = admit_peer(&connections, own_process()).unwrap();
    worker.connection().arrival_reservation().grow(100).unwrap();
}
