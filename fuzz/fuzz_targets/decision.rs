//! `sluice_fuzz::decision` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::decision::run(data));
