//! The random events of the model.

use proptest::{prelude::*, sample::Index};

#[derive(Debug, Clone)]
pub(super) enum Op {
    Submit {
        preferred: Option<(u32, u32)>,
        timeout: Option<u64>,
        micros: u64,
        wait: Option<u64>,
        is_nested: bool,
    },
    Withdraw(Index),
    EndCall(Index, Ending),
    Cancel(Index, bool),
    Launch(Index, Option<(bool, Option<usize>)>),
    Exit(Index),
    Suspend(Index),
    Resume(Index),
    Advance(u64),
    Restart,
    Memory(Index, u64),
    Recycle(Index),
    Drain(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Finished,
    Released,
    Returned,
    Retired,
    Lost,
    Abandoned,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let preferred = prop::option::of((0..4_u32, 1..3_u32));
    // The time in milliseconds that the call waits for room.
    let wait = prop::option::of(0..3000_u64);
    let ending = prop_oneof![
        6 => Just(Ending::Finished),
        1 => Just(Ending::Released),
        3 => Just(Ending::Returned),
        1 => Just(Ending::Retired),
        1 => Just(Ending::Lost),
        2 => Just(Ending::Abandoned),
    ];
    prop_oneof![
        60 => (preferred, prop::option::of(0..3000_u64), prop_oneof![0..20_u64, 0..1000_u64], wait, any::<bool>())
            .prop_map(|(preferred, timeout, micros, wait, is_nested)| {
                Op::Submit { preferred, timeout, micros, wait, is_nested }
            }),
        10 => any::<Index>().prop_map(Op::Withdraw),
        50 => (any::<Index>(), ending).prop_map(|(index, ending)| Op::EndCall(index, ending)),
        15 => (any::<Index>(), prop::bool::weighted(0.8)).prop_map(|(index, is_proven)| Op::Cancel(index, is_proven)),
        // `None` fails the launch; the pair is the worker's `queues_calls` and `concurrency`.
        25 => (any::<Index>(), prop::option::weighted(0.7, (any::<bool>(), prop::option::of(1..4_usize))))
            .prop_map(|(index, up)| Op::Launch(index, up)),
        10 => any::<Index>().prop_map(Op::Exit),
        6 => any::<Index>().prop_map(Op::Suspend),
        8 => any::<Index>().prop_map(Op::Resume),
        25 => (0..2500_u64).prop_map(Op::Advance),
        3 => Just(Op::Restart),
        4 => (any::<Index>(), 0..250_u64).prop_map(|(index, used)| Op::Memory(index, used)),
        4 => any::<Index>().prop_map(Op::Recycle),
        // Rare, because the scheduler only shuts down afterwards.
        1 => (0..5000_u64).prop_map(Op::Drain),
    ]
}
