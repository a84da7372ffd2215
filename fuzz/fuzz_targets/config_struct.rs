//! `sluice_fuzz::config_struct` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::config_struct::run(data));
