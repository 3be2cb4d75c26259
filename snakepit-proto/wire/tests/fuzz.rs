//! Runs the fuzz target as a test, on its seeds and on random mutations of them. There is a seed for each form of a value on the
//! wire.

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "the fuzzer uses it as a crate")]
mod fuzz;

/// Reads the seeds, sorted by name.
fn seeds() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/any");
    let files = fs::read_dir(directory).expect("there are seeds");
    let mut paths: Vec<_> = files.map(|file| file.expect("a seed is a file").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).expect("a seed can be read")).collect()
}

#[test]
fn invariants_hold_for_each_form_of_a_value() {
    let seeds = seeds();
    assert!(seeds.len() > 50, "the seeds are complete");
    seeds.iter().for_each(|input| fuzz::any(input));
}

/// A mutation of an input.
#[derive(Debug, Clone)]
enum Change {
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    /// Replaces the rest of the input with the bytes of another input from the same position.
    Splice(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:0123456789.-eE \n\0\xff"[..])];
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), byte()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        3 => (at(), byte()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        3 => at().prop_map(Change::Remove),
        1 => at().prop_map(Change::Cut),
        2 => (at(), at()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn invariants_hold_for_any_bytes(seed in any::<Index>(), changes in vec(change(), 1..6)) {
        let seeds = seeds();
        let mut input = seed.get(&seeds).clone();
        for change in changes {
            let at = |at: Index| at.index(input.len() + 1);
            match change {
                Change::Insert(index, byte) => input.insert(at(index), byte),
                Change::Cut(index) => input.truncate(at(index)),
                Change::Splice(index, other) => {
                    let (at, other) = (at(index), other.get(&seeds));
                    input.truncate(at);
                    input.extend_from_slice(&other[at.min(other.len())..]);
                }
                Change::Replace(..) | Change::Remove(_) if input.is_empty() => {}
                Change::Replace(index, byte) => *index.get_mut(&mut input) = byte,
                Change::Remove(index) => drop(input.remove(index.index(input.len()))),
            }
        }
        fuzz::any(&input);
    }
}
