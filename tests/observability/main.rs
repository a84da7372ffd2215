//! The files of `observability/` in a real Prometheus that scrapes a real Envoy with each module. `make test` builds the modules
//! and downloads Envoy. If Prometheus is not installed, `make test` lists these tests as skipped.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod prometheus;

use anyhow::{Result, ensure};
use prometheus::Prometheus;
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};
use testbed::{Backend, Config, Envoy, Module, envoy, for_each_module, who_answers};

/// The folder with the shipped files.
fn folder() -> PathBuf {
    testbed::root().join("observability")
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() -> Result<()> {
    for arguments in [
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        let output = Command::new("promtool").args(arguments).current_dir(folder()).output()?;
        let [said, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        ensure!(output.status.success(), "promtool {}: {said}{errors}", arguments.join(" "));
    }
    Ok(())
}

#[test]
fn every_alert_has_a_test_that_raises_it() -> Result<()> {
    let [rules, tests] = ["alerts.yaml", "alerts_test.yaml"].map(|name| fs::read_to_string(folder().join(name)));
    let (rules, tests) = (rules?, tests?);
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let raised = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&raised), "no test in alerts_test.yaml expects {alert}");
    }
    Ok(())
}

for_each_module! {
    every_metric_of_the_alerts_and_the_dashboard_exists,
    an_unrouted_connection_raises_an_alert,
}

/// Starts an Envoy with the shipped configuration, this module, this plugin configuration and two backends.
fn standalone(module: Module, configuration: &str) -> Result<Envoy> {
    let config = Config::shipped("standalone.yaml")?
        .with_module(&module.path()?)?
        .with_backend(9001, Backend::start("egress1")?.address())?
        .with_backend(9002, Backend::start("egress2")?.address())?
        .with("value: standalone", &format!("value: '{configuration}'"))?;
    Envoy::start(&envoy::program()?, &config)
}

fn answer(envoy: &Envoy, source: &str) -> Result<String> {
    let source = source.parse()?;
    who_answers(source, envoy.listener("sluice", &source)?)
}

/// The names of an Envoy's metrics about certificates, and of their labels.
fn metrics_of_certificates() -> Result<Vec<String>> {
    let signed = rcgen::generate_simple_self_signed(["proxy.example".to_owned()])?;
    let pem = |text: String| text.replace('\n', "\\n");
    let (chain, key) = (pem(signed.cert.pem()), pem(signed.signing_key.serialize_pem()));
    let tls = |context: &str| {
        format!(
            "{{ name: tls, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}, \
             common_tls_context: {{ tls_certificates: [{{ certificate_chain: {{ inline_string: \"{chain}\" }}, \
             private_key: {{ inline_string: \"{key}\" }} }}] }} }} }}"
        )
    };
    let config = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
static_resources:
  listeners:
    - name: listener
      address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
      filter_chains:
        - transport_socket: {}
          filters:
            - name: envoy.filters.network.direct_response
              typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config }}
  clusters:
    - {{ name: cluster, type: STATIC, transport_socket: {} }}
",
        tls("DownstreamTlsContext"),
        tls("UpstreamTlsContext")
    );
    let envoy = Envoy::start(&envoy::program()?, &Config::from(config))?;
    let metrics = envoy.get("/stats/prometheus")?;
    let of_certificates = metrics.lines().filter(|line| line.contains("_ssl_certificate_"));
    let words =
        of_certificates.flat_map(|line| line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'));
    Ok(words.map(str::to_owned).collect())
}

fn every_metric_of_the_alerts_and_the_dashboard_exists(module: Module) -> Result<()> {
    let envoy = standalone(module, "standalone")?;
    assert_eq!([answer(&envoy, "127.0.0.2")?, answer(&envoy, "127.0.0.3")?], ["egress1", "egress2"]);
    let prometheus = Prometheus::start(envoy.admin().parse()?)?;
    prometheus.await_result(r#"sluice_routed{cluster="egress1"} == 1"#)?;
    prometheus.await_result(r#"sluice_routed{cluster="egress2"} == 1"#)?;

    let mut known: BTreeSet<String> = prometheus.strings("/api/v1/label/__name__/values")?.into_iter().collect();
    known.extend(prometheus.strings("/api/v1/labels")?);
    known.extend(metrics_of_certificates()?);
    for name in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(folder().join(name))?;
        let used: BTreeSet<&str> = text
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .filter(|word| word.starts_with("sluice_") || word.starts_with("envoy_"))
            .collect();
        assert!(used.len() > 5, "{name}: {used:?}");
        for word in used {
            assert!(known.contains(word), "{name}: Prometheus has no metric or label {word}");
        }
    }

    let rules = prometheus.get("/api/v1/rules")?;
    let rules = rules
        .pointer("/data/groups/0/rules")
        .and_then(|rules| rules.as_array())
        .expect("Prometheus has a group of rules");
    assert_eq!(rules.len(), 8);
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    Ok(())
}

fn an_unrouted_connection_raises_an_alert(module: Module) -> Result<()> {
    let envoy = standalone(module, r#"{"routes": [{"action": "continue"}], "otherwise": "continue"}"#)?;
    let prometheus = Prometheus::start(envoy.admin().parse()?)?;
    prometheus.await_result("sluice_continued == 0")?;
    assert_eq!(prometheus.alerts("SluiceUnrouted")?, [""; 0]);
    assert_eq!(answer(&envoy, "127.0.0.2")?, "");
    prometheus.await_alert("SluiceUnrouted", "firing")?;
    assert_eq!(prometheus.alerts("SluiceModuleNotLoaded")?, [""; 0]);
    Ok(())
}

/// Expects a pending alert only, because the rule waits a minute before it fires.
#[test]
fn an_envoy_without_the_module_raises_an_alert() -> Result<()> {
    let config = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }\n";
    let envoy = Envoy::start(&envoy::program()?, &Config::from(config.to_owned()))?;
    let prometheus = Prometheus::start(envoy.admin().parse()?)?;
    prometheus.await_alert("SluiceModuleNotLoaded", "pending")
}
