//! Loading a configuration when Envoy starts.

use crate::proxy::{
    LOCALHOST, answer, answer_to, first_bytes, scenario_envoy, standalone, standalone_with, start, start_error,
};
use anyhow::{Context, Result};
use std::{fs, path::Path, process::Command, time::Duration};
use testbed::{Config, Envoy, config::table_of_clusters, connect, envoy, module::shipped};

/// The module is at the path that the file names, in a mount namespace. If that cannot be created, the path is replaced.
#[test]
fn every_shipped_configuration_is_valid_as_shipped() -> Result<()> {
    let program = envoy::program()?;
    let mut validated = 0;
    for file in fs::read_dir(testbed::root().join("envoy-docker"))? {
        let file = file?.path();
        if file.extension().is_none_or(|extension| extension != "yaml") || file.ends_with("compose.yaml") {
            continue;
        }
        let (valid, log) = match validate_unchanged(&program, &file)? {
            Some(result) => result,
            None => {
                println!("{}: no mount namespace, so the path of the module is replaced", file.display());
                envoy::validate(&program, &Config::file(&file)?.with_module(&shipped()?)?)?
            }
        };
        assert!(valid, "{}\n{log}", file.display());
        assert!(log.contains("' OK"), "{log}");
        validated += 1;
    }
    assert_eq!(validated, 3, "configurations of Envoy");
    Ok(())
}

/// Validates a file with the module in `/etc/envoy`. Returns `None` if no mount namespace can be created.
fn validate_unchanged(program: &Path, file: &Path) -> Result<Option<(bool, String)>> {
    let etc = tempfile::tempdir()?;
    fs::create_dir(etc.path().join("envoy"))?;
    fs::copy(shipped()?, etc.path().join("envoy/sluice.wasm"))?;
    for user in [&[][..], &["--user", "--map-root-user"]] {
        let shell = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(user).args(["--mount", "sh", "-c", script, "sh"]).args([etc.path(), program, file]);
            command.output()
        };
        if shell("mount --bind \"$1\" /etc")?.status.success() {
            let output = shell("mount --bind \"$1\" /etc && exec \"$2\" --mode validate --config-path \"$3\"")?;
            let log = [output.stdout, output.stderr].concat();
            return Ok(Some((output.status.success(), String::from_utf8_lossy(&log).into_owned())));
        }
    }
    Ok(None)
}

#[test]
fn an_absent_and_an_empty_configuration_mean_standalone() -> Result<()> {
    let block = "                  configuration:
                    \"@type\": type.googleapis.com/google.protobuf.StringValue
                    value: standalone\n";
    for config in [standalone()?.with(block, "")?, standalone()?.with("value: standalone", "value: \"\"")?] {
        let envoy = start(&config)?;
        assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
        assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    }
    Ok(())
}

#[test]
fn a_table_may_be_a_string() -> Result<()> {
    let config = scenario_envoy(&shipped()?, "CONFIGURATION")?
        .with("google.protobuf.Struct", "google.protobuf.StringValue")?
        .with("CONFIGURATION", r#"'{"routes": [{"clusters": ["egress3"]}], "otherwise": "deny"}'"#)?;
    let envoy = start(&config)?;
    assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?)?, "egress3");
    Ok(())
}

#[test]
fn envoy_does_not_start_with_an_unknown_preset() -> Result<()> {
    let long = "x".repeat(70_000);
    for (value, quoted) in
        [("Standalone", "\"Standalone\""), (" istio", "\" istio\""), (long.as_str(), "xxx\"... (70000 bytes)")]
    {
        let error = start_error(&standalone_with(value)?)?;
        assert!(error.contains("sluice: plugin configuration: \""), "{error}");
        assert!(error.contains(&format!("{quoted} is neither a preset")), "{error}");
    }
    Ok(())
}

#[test]
fn envoy_does_not_start_with_an_invalid_table() -> Result<()> {
    let start = r#"{"routes": [{"action": "deny"}, {"match": {"source": ["10.0.0.0/"#;
    for (table, error) in [
        (
            format!(r#"{start}33"]}}, "action": "deny"}}], "otherwise": "deny"}}"#),
            r#"routes[1].match.source[0]: "10.0.0.0/33" is not "#,
        ),
        (format!(r#"{start}8"]}}, "action": "deny"}}]}}"#), "otherwise is missing"),
    ] {
        let log = start_error(&scenario_envoy(&shipped()?, &table)?)?;
        assert!(log.contains(&format!("sluice: plugin configuration: {error}")), "{log}");
    }
    Ok(())
}

/// Two VMs load the configuration: one of the main thread, to validate it, and one of the worker.
#[test]
fn the_largest_table_loads_within_100_ms_more_than_a_preset() -> Result<()> {
    const RUNS: usize = 5;
    let table = table_of_clusters(1_024, 16_384);
    assert!(table.len() <= 256 << 10, "{} bytes", table.len());
    let least_cpu = |config: &Config| -> Result<Duration> {
        let runs: Result<Vec<Duration>> = (0..RUNS).map(|_| cpu_to_load(config)).collect();
        runs?.into_iter().min().context("no run")
    };
    let preset = least_cpu(&standalone()?)?;
    let table = least_cpu(&standalone_with(&table)?)?;
    println!("CPU time to start Envoy: {preset:?} with a preset, {table:?} with the largest table");
    assert!(table <= preset + Duration::from_millis(100), "{table:?}, {preset:?} with a preset");
    Ok(())
}

/// Returns the CPU time of an Envoy with one worker until it has handled a connection.
fn cpu_to_load(config: &Config) -> Result<Duration> {
    let envoy = Envoy::start_with(&envoy::program()?, config, &["--concurrency", "1"])?;
    drop(connect(LOCALHOST, envoy.listener("sluice", &LOCALHOST)?)?);
    envoy.await_stat("tcp.sluice.downstream_cx_total", 1)?;
    let mut cpu = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", envoy.id()))? {
        let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
        cpu += schedstat.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(cpu))
}
