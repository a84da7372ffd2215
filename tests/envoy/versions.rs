//! The native module on several releases of Envoy, which are downloaded like the pinned one.

use crate::proxy::{answer_to, first_bytes, module_lines, scenario_envoy, standalone};
use anyhow::{Result, ensure};
use testbed::{Config, Envoy, Module, envoy};

#[test]
fn the_same_native_module_routes_on_every_tested_release() -> Result<()> {
    let table = r#"{"routes": [{"match": {"sni": ["*.example.com"]}, "action": "deny"},
      {"match": {"destination_ports": [443]}, "clusters": ["egress1", "egress2"]}], "otherwise": "continue"}"#;
    let config = scenario_envoy(&Module::Native.path()?, table)?;
    let older = envoy::OLDER.into_iter().filter(|release| !envoy::WITHOUT_NATIVE.contains(release));
    let older: Result<Vec<_>> = older.map(envoy::release).collect();
    for program in older?.into_iter().chain([envoy::program()?]) {
        let envoy = Envoy::start(&program, &config)?;
        let version = envoy::version(&program)?;
        for (source, destination, server_name, expected) in [
            ("10.0.0.2:1", "198.51.100.7:443", "", "egress1"),
            ("10.0.0.3:1", "198.51.100.7:443", "example.com", "egress2"),
            ("[2001:db8::3]:1", "[2001:db8::7]:443", "", "egress2"),
            ("10.0.0.2:1", "198.51.100.7:443", "www.example.com", ""),
            ("10.0.0.2:1", "198.51.100.7:80", "", "default"),
        ] {
            let answer = answer_to(&envoy, &first_bytes(source, destination, server_name)?)?;
            assert_eq!(answer, expected, "{version}: {source} → {destination} {server_name:?}");
        }
        for (counter, expected) in [("routed.egress1", 1), ("routed.egress2", 2), ("denied", 1), ("continued", 1)] {
            let counted = envoy.stat(&format!("wasmcustom.sluice.{counter}"))?;
            assert_eq!(counted, expected, "{version}: {counter}");
        }
        assert_eq!(module_lines(&envoy), [""; 0], "{version}");
        // A release whose ABI version differs from the module's logs a warning and loads the module.
        let log = envoy.log();
        let mut warnings = log.lines().filter(|line| line.contains("[warning][dynamic_modules]"));
        assert!(warnings.all(|line| line.contains(" is deprecated. Please recompile ")), "{version}: {log}");
    }
    Ok(())
}

/// Returns the log of a release that rejects this configuration.
fn reason(release: &str, config: &Config) -> Result<String> {
    let (valid, log) = envoy::validate(&envoy::release(release)?, config)?;
    ensure!(!valid, "Envoy {release} accepts the module:\n{log}");
    // Protobuf varies the number of spaces in its messages.
    Ok(log.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `docs/native-module.md` quotes these messages.
#[test]
fn a_release_that_lacks_the_required_functions_rejects_the_module_at_start() -> Result<()> {
    let [without_filter, without_functions] = envoy::WITHOUT_NATIVE;
    let config = standalone(Module::Native)?;
    let log = reason(without_filter, &config)?;
    assert!(log.contains("could not find @type") && log.contains(".DynamicModuleNetworkFilter"), "{log}");
    let log = reason(without_functions, &config)?;
    assert!(log.contains("no such field: 'metrics_namespace'"), "{log}");
    // The loader does not find a function, and Envoy reports that as a missing file.
    let log = reason(without_functions, &config.with(", metrics_namespace: wasmcustom", "")?)?;
    assert!(log.contains("Failed to load dynamic module: "), "{log}");
    assert!(log.contains("libsluice.so not found in any search path"), "{log}");
    Ok(())
}
