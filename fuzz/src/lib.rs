//! Fuzz targets: one module each, with a function `run` that takes what the fuzzer gives and panics if the library and the
//! model differ. `fuzz_targets/` calls them from libFuzzer, `tests/corpora.rs` with the committed corpora.

pub mod address;
pub mod cidr;
pub mod compare;
pub mod config_limits;
pub mod config_struct;
pub mod config_text;
pub mod decision;
pub mod input;
pub mod json;
pub mod model;
pub mod native_boundary;
pub mod scenario;
pub mod server_name;
pub mod traffic;
pub mod vm;
pub mod wasm_boundary;
