//! `sluice_fuzz::cidr` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::cidr::run(data));
