//! `sluice_fuzz::wasm_boundary` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::wasm_boundary::run(data));
