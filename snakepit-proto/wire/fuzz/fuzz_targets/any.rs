//! Values from the wire, as bytes that nobody made on purpose. What must hold is in `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snakepit_wire_fuzz::any(input));
