//! Loads configurations when Envoy starts.

use crate::proxy::{
    LOCALHOST, answer, answer_to, first_bytes, scenario_envoy, standalone, standalone_with, start, start_error,
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};
use testbed::{
    Config, Envoy, Module,
    config::{SEARCH_PATH, table_of_clusters},
    connect, envoy, for_each_module,
};

for_each_module! {
    an_absent_and_an_empty_configuration_mean_standalone,
    an_empty_struct_means_standalone_to_wasm_and_is_rejected_by_the_native_module,
    a_table_may_be_a_string,
    envoy_does_not_start_with_an_unknown_preset,
    envoy_does_not_start_with_an_invalid_table,
    the_largest_table_loads_within_100_ms_more_than_a_preset,
}

/// Mounts the module at the path that the files name. If no mount namespace can be created, the paths are replaced.
#[test]
fn every_shipped_configuration_is_valid_as_shipped() -> Result<()> {
    let program = envoy::program()?;
    let mut validated = 0;
    for file in fs::read_dir(testbed::root().join("envoy-docker"))? {
        let file = file?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with(".yaml") || name.starts_with("compose.") {
            continue;
        }
        let (valid, log) = validate_shipped(&program, &file)?;
        assert!(valid, "{}\n{log}", file.display());
        assert!(log.contains("' OK"), "{log}");
        validated += 1;
    }
    assert_eq!(validated, 5, "the number of Envoy configurations");
    Ok(())
}

/// Validates a file with the modules in `/etc/envoy`. Returns whether it is valid, and the log.
fn validate_shipped(program: &Path, file: &Path) -> Result<(bool, String)> {
    let etc = tempfile::tempdir()?;
    let modules = etc.path().join("envoy");
    fs::create_dir(&modules)?;
    // Envoy requires the files of secrets and endpoints to exist, but reads their contents only when it serves.
    for name in ["sluice/identity.yaml", "sluice/trust.yaml", "endpoints/egress1.yaml", "endpoints/egress2.yaml"] {
        let path = etc.path().join(name);
        fs::create_dir_all(path.parent().context("the path has no folder")?)?;
        fs::write(path, "resources: []")?;
    }
    for module in [Module::Wasm, Module::Native] {
        let module = module.path()?;
        fs::copy(&module, modules.join(module.file_name().context("the module has no file name")?))?;
    }
    for user in [&[][..], &["--user", "--map-root-user"]] {
        let shell = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(user).args(["--mount", "sh", "-c", script, "sh"]).args([etc.path(), program, file]);
            command.env(SEARCH_PATH, "/etc/envoy").output()
        };
        if shell("mount --bind \"$1\" /etc")?.status.success() {
            let output = shell("mount --bind \"$1\" /etc && exec \"$2\" --mode validate --config-path \"$3\"")?;
            return Ok(result_of(&output));
        }
    }
    println!("{}: no mount namespace, so the paths are replaced", file.display());
    let config = etc.path().join("config.yaml");
    fs::write(&config, fs::read_to_string(file)?.replace("/etc/", &format!("{}/", etc.path().display())))?;
    let mut validation = Command::new(program);
    let validation = validation.args(["--mode", "validate", "--config-path"]).arg(config).env(SEARCH_PATH, modules);
    Ok(result_of(&validation.output()?))
}

fn result_of(validation: &Output) -> (bool, String) {
    let log = [&validation.stdout[..], &validation.stderr].concat();
    (validation.status.success(), String::from_utf8_lossy(&log).into_owned())
}

fn an_absent_and_an_empty_configuration_mean_standalone(module: Module) -> Result<()> {
    let config = standalone(module)?;
    let (name, indent) = match module {
        Module::Wasm => ("configuration", " ".repeat(18)),
        Module::Native => ("filter_config", " ".repeat(16)),
    };
    let block = format!(
        "{indent}{name}:
{indent}  \"@type\": type.googleapis.com/google.protobuf.StringValue
{indent}  value: standalone\n"
    );
    for config in [config.with(&block, "")?, config.with("value: standalone", "value: \"\"")?] {
        let envoy = start(&config)?;
        assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
        assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    }
    Ok(())
}

/// Envoy passes a Struct to a Wasm module as protobuf bytes, which are empty for an empty Struct, and to a native module as JSON.
fn an_empty_struct_means_standalone_to_wasm_and_is_rejected_by_the_native_module(module: Module) -> Result<()> {
    let config = scenario_envoy(&module.path()?, "{}")?;
    match module {
        Module::Wasm => {
            let envoy = start(&config)?;
            assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.3:1", "198.51.100.7:443", "")?)?, "egress2");
        }
        Module::Native => {
            let error = start_error(&config)?;
            assert!(error.contains("sluice: plugin configuration: routes is missing"), "{error}");
        }
    }
    Ok(())
}

fn a_table_may_be_a_string(module: Module) -> Result<()> {
    let config = scenario_envoy(&module.path()?, "CONFIGURATION")?
        .with("google.protobuf.Struct", "google.protobuf.StringValue")?
        .with("CONFIGURATION", r#"'{"routes": [{"clusters": ["egress3"]}], "otherwise": "deny"}'"#)?;
    let envoy = start(&config)?;
    assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?)?, "egress3");
    Ok(())
}

fn envoy_does_not_start_with_an_unknown_preset(module: Module) -> Result<()> {
    let long = "x".repeat(70_000);
    for (value, quoted) in
        [("Standalone", "\"Standalone\""), (" istio", "\" istio\""), (long.as_str(), "xxx\"... (70000 bytes)")]
    {
        let error = start_error(&standalone_with(module, value)?)?;
        assert!(error.contains("sluice: plugin configuration: \""), "{error}");
        assert!(error.contains(&format!("{quoted} is neither a preset")), "{error}");
    }
    Ok(())
}

fn envoy_does_not_start_with_an_invalid_table(module: Module) -> Result<()> {
    let start = r#"{"routes": [{"action": "deny"}, {"match": {"source": ["10.0.0.0/"#;
    for (table, error) in [
        (
            format!(r#"{start}33"]}}, "action": "deny"}}], "otherwise": "deny"}}"#),
            r#"routes[1].match.source[0]: "10.0.0.0/33" is not "#,
        ),
        (format!(r#"{start}8"]}}, "action": "deny"}}]}}"#), "otherwise is missing"),
    ] {
        let log = start_error(&scenario_envoy(&module.path()?, &table)?)?;
        assert!(log.contains(&format!("sluice: plugin configuration: {error}")), "{log}");
    }
    Ok(())
}

/// With Wasm, two VMs load the configuration: the main thread's, to validate it, and the worker's.
fn the_largest_table_loads_within_100_ms_more_than_a_preset(module: Module) -> Result<()> {
    const LIMIT: Duration = Duration::from_millis(100);
    let table = table_of_clusters(1_024, 16_384);
    assert!(table.len() <= 256 << 10, "{} bytes", table.len());
    let (preset_config, table_config) = (standalone(module)?, standalone_with(module, &table)?);
    // The least time counts, because other processes can only add to it. On a busy machine that takes more rounds.
    let (mut preset, mut table) = (Duration::MAX, Duration::MAX);
    for round in 1..=20 {
        preset = preset.min(cpu_to_load(&preset_config)?);
        table = table.min(cpu_to_load(&table_config)?);
        if round >= 5 && table <= preset + LIMIT {
            break;
        }
    }
    println!("CPU time to start Envoy: {preset:?} with a preset, {table:?} with the largest table");
    assert!(table <= preset + LIMIT, "{table:?} with the largest table, {preset:?} with a preset");
    Ok(())
}

/// Returns the CPU time of an Envoy with one worker until it has handled a connection.
fn cpu_to_load(config: &Config) -> Result<Duration> {
    let envoy = Envoy::start_with(&envoy::program()?, config, &["--concurrency", "1"])?;
    drop(connect(LOCALHOST, envoy.listener("sluice", &LOCALHOST)?)?);
    envoy.await_stat("tcp.sluice.downstream_cx_total", 1)?;
    envoy.cpu_time()
}
