//! The generated protobuf bindings.

use std::fs;

#[test]
fn generated_bindings_match_the_golden() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/envoy.source.extensions.common.wasm.rs"));
    let golden = fs::read_to_string(testbed::root().join("tests/data/set_envoy_filter_state.rs")).unwrap();
    assert_eq!(generated, golden, "make regen-proto shows the difference");
}
