//! Fuzz targets. Each target is a module with a function `run`, which takes the fuzzer's data and panics if the library and the
//! model differ. `fuzz_targets/` calls these functions from libFuzzer, and `tests/corpora.rs` with the committed corpora.

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
