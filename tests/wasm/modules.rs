//! The modules under test, and helpers that configure them and set up connections.

use crate::vm::{ERROR, Vm};
use testbed::module::{sdk, shipped};

/// The root context of most tests.
pub const ROOT: u32 = 1;
/// The stream context of most tests.
pub const STREAM: u32 = 2;

/// Returns both modules, with their names for assertions.
pub fn modules() -> [(&'static str, Vm); 2] {
    [("shipped", shipped()), ("SDK", sdk())].map(|(name, path)| (name, Vm::new(&path.unwrap())))
}

/// Returns the shipped module.
pub fn shipped_module() -> Vm {
    Vm::new(&shipped().unwrap())
}

/// Returns both modules with this configuration.
pub fn configured(configuration: &[u8]) -> [(&'static str, Vm); 2] {
    modules().map(|(name, mut vm)| {
        assert!(vm.configure(ROOT, configuration), "{name}: {:?}", vm.host().calls);
        assert_eq!(vm.host().logged(ERROR), [""; 0], "{name}");
        vm.take_calls();
        (name, vm)
    })
}

/// Sets the source address of the next connections.
pub fn set_source(vm: &mut Vm, source: &[u8]) {
    vm.host().properties.insert("source.address", source.to_vec());
}

/// Sets the destination address of the next connections.
pub fn set_destination(vm: &mut Vm, destination: &[u8]) {
    vm.host().properties.insert("destination.address", destination.to_vec());
}

/// Returns the encoded `SetEnvoyFilterStateArguments` that override the cluster.
///
/// ```text
/// path   0x0a 23 "envoy.tcp_proxy.cluster"
/// value  0x12 length cluster
/// ```
pub fn override_by(cluster: &str) -> Vec<u8> {
    let length = u8::try_from(cluster.len()).unwrap();
    [b"\x0a\x17envoy.tcp_proxy.cluster\x12", &[length][..], cluster.as_bytes()].concat()
}
