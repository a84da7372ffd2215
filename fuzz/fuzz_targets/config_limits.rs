//! `sluice_fuzz::config_limits` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::config_limits::run(data));
