//! `sluice_fuzz::server_name` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::server_name::run(data));
