//! Fuzzes values from the wire. `src/lib.rs` contains the invariants.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snakepit_wire_fuzz::any(input));
