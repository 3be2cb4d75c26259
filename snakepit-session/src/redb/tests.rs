//! What is said of the durable backend beyond the contract.
use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::contract::session_backend_contract;

#[tokio::test(start_paused = true)]
async fn redb_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let files = std::sync::atomic::AtomicUsize::new(0);
    let make = async || {
        let file = files.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        RedbBackend::open(directory.path().join(file.to_string()), SessionLimits::default()).await.unwrap()
    };
    session_backend_contract(make, tokio::time::advance).await;
}
