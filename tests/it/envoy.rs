//! The built module in a real Envoy with the configuration that we ship. What is asserted, Envoy's counters and the
//! backends say.

use crate::{
    client_hello, plain,
    scenario::{Outcome, SCENARIOS},
    shipped,
};
use anyhow::Result;
use std::{
    collections::HashMap,
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testbed::{Backend, Config, Envoy, config, connect, envoy, who_answers};

/// The shipped configuration with the shipped module and two backends.
fn standalone() -> Result<Config> {
    Config::shipped("standalone.yaml")?
        .with_module(&shipped())?
        .with_backend(9001, Backend::start("egress1")?.address())?
        .with_backend(9002, Backend::start("egress2")?.address())
}

/// The configuration with a listener that takes the clients' addresses from a PROXY header.
fn behind_proxy_protocol(config: &Config) -> Result<Config> {
    let filter = r#"listener_filters:
        - name: envoy.filters.listener.proxy_protocol
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
      filter_chains:"#;
    config.with("filter_chains:", filter)
}

fn start(config: &Config) -> Result<Envoy> {
    Envoy::start(&envoy::program()?, config)
}

fn answer(envoy: &Envoy, source: &str) -> Result<String> {
    let source = source.parse()?;
    who_answers(source, envoy.listener("sluice", &source)?)
}

/// A client of this listener's, once it has said this.
fn send(envoy: &Envoy, listener: &str, bytes: &[u8]) -> Result<TcpStream> {
    let mut client = connect(LOCALHOST, envoy.listener(listener, &LOCALHOST)?)?;
    client.write_all(bytes)?;
    Ok(client)
}

/// Who answers a connection that comes with this PROXY header, version 1.
fn answer_to_header(envoy: &Envoy, header: &str) -> Result<String> {
    read_all(send(envoy, "sluice", header.as_bytes())?)
}

fn read_all(mut client: TcpStream) -> Result<String> {
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn the_last_octet_of_the_source_chooses_the_egress() -> Result<()> {
    let envoy = start(&standalone()?)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    assert_eq!(answer(&envoy, "127.255.255.254")?, "egress1");
    if config::has_ipv6() {
        assert_eq!(answer(&envoy, "::1")?, "egress2");
        assert_eq!(envoy.stat("cluster.egress2.upstream_cx_total")?, 2);
    }
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")?, 2);
    assert_eq!(envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?, 0);
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn addresses_that_this_machine_does_not_have_are_read_too() -> Result<()> {
    let envoy = start(&behind_proxy_protocol(&standalone()?)?)?;
    for (header, expected) in [
        ("PROXY TCP4 10.0.0.2 198.51.100.7 1234 443\r\n", "egress1"),
        ("PROXY TCP4 203.0.113.255 198.51.100.7 1234 443\r\n", "egress2"),
        ("PROXY TCP6 2001:db8::3 2001:db8::7 443 443\r\n", "egress2"),
        ("PROXY TCP6 2001:db8:1:2:3:4:5:fffe 2001:db8::7 443 443\r\n", "egress1"),
        ("PROXY TCP6 ::ffff:192.168.1.100 ::ffff:198.51.100.7 80 443\r\n", "egress1"),
        ("PROXY TCP6 ::ffff:192.168.1.101 ::ffff:198.51.100.7 80 443\r\n", "egress2"),
    ] {
        assert_eq!(answer_to_header(&envoy, header)?, expected, "{header}\n{}", envoy.log());
    }
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn ten_thousand_connections_are_split_as_their_sources_say() -> Result<()> {
    const THREADS: u8 = 4;
    const EACH: u16 = 2_500;
    let envoy = start(&standalone()?)?;
    let listener = envoy.listener("sluice", &LOCALHOST)?;
    let clients: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || -> Result<HashMap<(u8, String), u64>> {
                let mut answers = HashMap::new();
                for count in 0..EACH {
                    // Three of seven last octets are odd, so the sides are not equal by accident.
                    let last = u8::try_from(2 + count % 7)?;
                    let answer = who_answers(Ipv4Addr::new(127, 0, thread, last).into(), listener)?;
                    *answers.entry((last % 2, answer)).or_default() += 1;
                }
                Ok(answers)
            })
        })
        .collect();
    let mut answers: HashMap<(u8, String), u64> = HashMap::new();
    for client in clients {
        for (key, count) in client.join().expect("a client panicked")? {
            *answers.entry(key).or_default() += count;
        }
    }
    let odd = (0..EACH).filter(|count| (2 + count % 7) % 2 == 1).count() as u64 * u64::from(THREADS);
    let even = 10_000 - odd;
    assert_eq!(answers, HashMap::from([((0, "egress1".to_owned()), even), ((1, "egress2".to_owned()), odd)]));
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")?, even);
    assert_eq!(envoy.stat("cluster.egress2.upstream_cx_total")?, odd);
    assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress1")?, even);
    assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress2")?, odd);
    let stats = envoy.get("/stats?filter=worker_[01].downstream_cx_total")?;
    let workers =
        stats.lines().filter(|line| line.starts_with("listener.") && !line.contains("admin") && !line.ends_with(": 0"));
    assert_eq!(workers.count(), 2, "both workers took connections: {stats}");
    let log = envoy.log();
    assert!(log.contains("[info]"), "Envoy logs at info: {log}");
    assert!(!log.contains("wasm log"), "{log}");
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_decision_is_logged_at_debug() -> Result<()> {
    let envoy = Envoy::start_with(&envoy::program()?, &standalone()?, &["--component-log-level", "wasm:debug"])?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    let line = only_wasm_line(&envoy);
    assert!(line.contains("[debug]") && line.contains("source.address \"127.0.0.2:"), "{line}");
    assert!(line.ends_with(" takes \"egress1\""), "{line}");
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn istio_chooses_router_and_port() -> Result<()> {
    let router = |port: u16, number: u8| format!("outbound|{port}||egress-router{number}.default.svc.cluster.local");
    let http = |number: u8, backend: &Backend| {
        let (name, port) = (router(8081, number), backend.address().port());
        format!(
            r#"- name: "{name}"
      load_assignment:
        cluster_name: http{number}
        endpoints:
          - lb_endpoints:
              - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}
    "#
        )
    };
    let http = http(1, &Backend::start("http1")?) + &http(2, &Backend::start("http2")?);
    let config = standalone()?
        .with("value: standalone", "value: istio")?
        .with("- name: egress1", &format!("- name: \"{}\"", router(8080, 1)))?
        .with("- name: egress2", &format!("- name: \"{}\"", router(8080, 2)))?
        .with("- name: unrouted", &format!("{http}- name: unrouted"))?;
    let envoy = start(&behind_proxy_protocol(&config)?)?;
    for (header, expected) in [
        ("PROXY TCP4 10.0.0.2 198.51.100.7 1234 443\r\n", "egress1"),
        ("PROXY TCP4 10.0.0.3 198.51.100.7 1234 443\r\n", "egress2"),
        ("PROXY TCP4 10.0.0.2 198.51.100.7 1234 80\r\n", "http1"),
        ("PROXY TCP4 10.0.0.3 198.51.100.7 1234 80\r\n", "http2"),
        ("PROXY TCP6 2001:db8::3 2001:db8::7 1234 80\r\n", "http2"),
        ("PROXY TCP4 10.0.0.2 198.51.100.7 80 8081\r\n", "egress1"),
    ] {
        assert_eq!(answer_to_header(&envoy, header)?, expected, "{header}\n{}", envoy.log());
    }
    Ok(())
}

/// A client that comes to the shipped configuration by a socket file: Envoy, and what the client hears.
fn by_a_pipe(config: &Config) -> Result<(Envoy, String)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let address =
        config.text().lines().find(|line| line.starts_with("      address:")).expect("the listener's address");
    let envoy = start(&config.with(address, &format!("      address: {{ pipe: {{ path: {} }} }}", socket.display()))?)?;
    let mut answer = String::new();
    UnixStream::connect(&socket)?.read_to_string(&mut answer)?;
    Ok((envoy, answer))
}

fn only_wasm_line(envoy: &Envoy) -> String {
    let log = envoy.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("wasm log")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    lines[0].to_owned()
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_client_without_an_ip_address_keeps_the_cluster_and_one_warning_says_so() -> Result<()> {
    let (envoy, answer) = by_a_pipe(&standalone()?)?;
    assert_eq!(answer, "", "tcp_proxy's own cluster is an empty one");
    envoy.await_stat("cluster.unrouted.upstream_cx_none_healthy", 1)?;
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")? + envoy.stat("cluster.egress2.upstream_cx_total")?, 0);
    assert_eq!((envoy.stat("wasmcustom.sluice.unreadable")?, envoy.stat("wasmcustom.sluice.continued")?), (1, 1));
    let line = only_wasm_line(&envoy);
    assert!(
        line.contains("[warning]") && line.ends_with("is no IP address and port, tcp_proxy's cluster stays"),
        "{line}"
    );
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_client_without_an_ip_address_is_denied_by_a_table() -> Result<()> {
    let table = r#"value: '{"routes": [{"clusters": ["egress1"]}]}'"#;
    let (envoy, answer) = by_a_pipe(&standalone()?.with("value: standalone", table)?)?;
    assert_eq!(answer, "");
    envoy.await_stat("wasmcustom.sluice.denied", 1)?;
    assert_eq!(envoy.stat("wasmcustom.sluice.unreadable")?, 1);
    assert_eq!(envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?, 0, "tcp_proxy looked for no upstream");
    let line = only_wasm_line(&envoy);
    assert!(line.contains("[warning]") && line.ends_with("is no IP address and port, connection closed"), "{line}");
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_cluster_that_does_not_exist_fails_its_connections_only() -> Result<()> {
    let envoy = start(&standalone()?.with("- name: egress2", "- name: misnamed")?)?;
    assert_eq!(answer(&envoy, "127.0.0.3")?, "");
    envoy.await_stat("tcp.sluice.downstream_cx_no_route", 1)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    assert_eq!(envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?, 0);
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_wrong_configuration_stops_envoy_and_is_named() -> Result<()> {
    let long = "x".repeat(70_000);
    for (value, named) in [
        ("Standalone", "\"Standalone\" is neither a preset"),
        ("\" istio\"", "\" istio\" is neither a preset"),
        (long.as_str(), "xxx\"... (70000 bytes) is neither a preset"),
    ] {
        let config = standalone()?.with("value: standalone", &format!("value: {value}"))?;
        let error = start(&config).err().expect("Envoy started").to_string();
        assert!(error.starts_with("Envoy did not start: exit status"), "{error}");
        assert!(error.contains("sluice: plugin configuration: \""), "{error}");
        assert!(error.contains(named), "{error}");
    }
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
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
#[ignore = "make test gets the Envoy and builds the module"]
fn the_plain_cargo_build_routes_too() -> Result<()> {
    let config = standalone()?.with(shipped().to_str().expect("UTF-8"), plain().to_str().expect("UTF-8"))?;
    let envoy = start(&config)?;
    for _ in 0..100 {
        assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
        assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    }
    assert!(!envoy.log().contains("wasm log"), "{}", envoy.log());
    Ok(())
}

/// With the module at the path that the file names, in a mount namespace; where none may be made, the path is the one
/// thing that is replaced.
#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn every_shipped_configuration_is_valid_as_it_stands() -> Result<()> {
    let program = envoy::program()?;
    let mut seen = 0;
    for file in fs::read_dir(testbed::root().join("envoy-docker"))? {
        let file = file?.path();
        if file.extension().is_none_or(|extension| extension != "yaml") || file.ends_with("compose.yaml") {
            continue;
        }
        let (valid, log) = match as_shipped(&program, &file)? {
            Some(result) => result,
            None => {
                println!("{}: no mount namespace, so with the module's path replaced", file.display());
                envoy::validate(&program, &Config::file(&file)?.with_module(&shipped())?)?
            }
        };
        assert!(valid, "{}\n{log}", file.display());
        assert!(log.contains("' OK"), "{log}");
        seen += 1;
    }
    assert_eq!(seen, 3, "configurations of Envoy");
    Ok(())
}

fn as_shipped(program: &Path, file: &Path) -> Result<Option<(bool, String)>> {
    let etc = tempfile::tempdir()?;
    fs::create_dir(etc.path().join("envoy"))?;
    fs::copy(shipped(), etc.path().join("envoy/sluice.wasm"))?;
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

/// The Envoy of the scenarios with this table.
fn scenario(config: &str) -> Result<Config> {
    scenario_through(&shipped(), config)
}

/// The same through the door of this module.
fn scenario_through(module: &Path, config: &str) -> Result<Config> {
    let mut yaml = Config::file(&testbed::root().join("tests/data/scenario.yaml"))?.with_module(module)?;
    for (port, name) in [(9000, "own"), (9001, "egress1"), (9002, "egress2"), (9003, "egress3")] {
        yaml = yaml.with_backend(port, Backend::start(name)?.address())?;
    }
    yaml.with("CONFIGURATION", config)
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_table_may_come_as_a_text_too() -> Result<()> {
    let config = scenario("CONFIGURATION")?
        .with("google.protobuf.Struct", "google.protobuf.StringValue")?
        .with("CONFIGURATION", r#"'{"routes": [{"clusters": ["egress3"]}]}'"#)?;
    let envoy = start(&config)?;
    assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?)?, "egress3");
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_wrong_table_stops_envoy_and_its_field_is_named() -> Result<()> {
    let config = r#"{"routes": [{"action": "deny"}, {"match": {"source": ["10.0.0.0/33"]}, "action": "deny"}]}"#;
    let error = start(&scenario(config)?).err().expect("Envoy started").to_string();
    let line = r#"sluice: plugin configuration: routes[1].match.source[0]: "10.0.0.0/33" is not a CIDR"#;
    assert!(error.starts_with("Envoy did not start: exit status") && error.contains(line), "{error}");
    Ok(())
}

/// What a client sends that comes from `source`, was on its way to `destination` and asks for this name.
fn first_bytes(source: &str, destination: &str, name: &str) -> Result<Vec<u8>> {
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse()?, destination.parse()?);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    let mut bytes = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes();
    if name.is_empty() {
        bytes.extend_from_slice(b"no TLS");
    } else {
        bytes.extend(client_hello(name)?);
    }
    Ok(bytes)
}

fn answer_to(envoy: &Envoy, first_bytes: &[u8]) -> Result<String> {
    let mut client = send(envoy, "sluice", first_bytes)?;
    let mut answer = String::new();
    match client.read_to_string(&mut answer) {
        // Envoy closes what it has not read with a reset.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(answer),
        read => Ok(read.map(|_| answer)?),
    }
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn every_scenario_holds_in_envoy() -> Result<()> {
    for (scenario_, module) in SCENARIOS.iter().flat_map(|scenario| [(scenario, shipped()), (scenario, plain())]) {
        let envoy = start(&scenario_through(&module, scenario_.config)?)?;
        let mut counts: HashMap<String, u64> = HashMap::new();
        for &(source, destination, name, expected) in scenario_.connections {
            let answer = answer_to(&envoy, &first_bytes(source, destination, name)?)?;
            let (expected, counter) = match expected {
                Outcome::Cluster(cluster) => (cluster, format!("wasmcustom.sluice.routed.{cluster}")),
                Outcome::Own => ("own", "wasmcustom.sluice.continued".to_owned()),
                Outcome::Closed => ("", "wasmcustom.sluice.denied".to_owned()),
            };
            let case = format!("{}: {}: {source} → {destination} {name:?}", module.display(), scenario_.name);
            assert_eq!(answer, expected, "{case}\n{}", envoy.end_of_log());
            *counts.entry(counter).or_default() += 1;
            if !expected.is_empty() {
                *counts.entry(format!("cluster.{expected}.upstream_cx_total")).or_default() += 1;
            }
        }
        for (counter, expected) in counts {
            assert_eq!(envoy.stat(&counter)?, expected, "{}: {counter}", scenario_.name);
        }
        let upstream = ["own", "egress1", "egress2", "egress3"].map(|name| format!("cluster.{name}.upstream_cx_total"));
        let upstream: u64 = upstream.iter().map(|counter| envoy.stat(counter)).sum::<Result<u64>>()?;
        let closed = scenario_.connections.iter().filter(|(.., outcome)| *outcome == Outcome::Closed).count();
        assert_eq!(
            upstream + closed as u64,
            scenario_.connections.len() as u64,
            "a denied connection reaches no egress"
        );
    }
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_denied_connection_is_closed_on_the_plain_module_too() -> Result<()> {
    let config = scenario(
        r#"{"routes": [{"match": {"source": ["10.0.0.0/8"]}, "action": "deny"}, {"clusters": ["egress1"]}]}"#,
    )?;
    let config = config.with(shipped().to_str().expect("UTF-8"), plain().to_str().expect("UTF-8"))?;
    let envoy = start(&config)?;
    for _ in 0..50 {
        assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?)?, "");
        assert_eq!(answer_to(&envoy, &first_bytes("11.0.0.2:1", "198.51.100.7:443", "")?)?, "egress1");
    }
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")?, 50);
    assert!(!envoy.log().contains("wasm log"), "{}", envoy.end_of_log());
    Ok(())
}

/// Counters are one for all workers and all plugins of a name; tables are one for each plugin.
#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn two_listeners_that_share_a_vm_keep_their_tables_apart_and_count_together() -> Result<()> {
    for module in [shipped(), plain()] {
        let config = scenario_through(&module, r#"{"routes": [{"clusters": ["egress1"]}]}"#)?;
        let text = config.text();
        let start_of_listener = text.find("    - name: sluice\n").expect("the listener");
        let end_of_listener = text.find("\n  clusters:").expect("the clusters");
        let listener = &text[start_of_listener..end_of_listener];
        let other = listener
            .replacen("    - name: sluice\n", "    - name: other\n", 1)
            .replace(r#""clusters": ["egress1"]"#, r#""clusters": ["egress2", "egress1"]"#);
        let config = config.with(listener, &format!("{listener}{other}"))?;
        let envoy = start(&config)?;
        let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
        for _ in 0..100 {
            for (name, expected) in [("sluice", "egress1"), ("other", "egress2")] {
                assert_eq!(read_all(send(&envoy, name, &first)?)?, expected, "{name}");
            }
        }
        assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress1")?, 100);
        assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress2")?, 100);
        let prometheus = envoy.get("/stats/prometheus")?;
        assert!(prometheus.lines().any(|line| line == "sluice_routed_egress1{} 100"), "{prometheus}");
    }
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_table_replaced_under_load_loses_no_connection_and_a_wrong_one_changes_nothing() -> Result<()> {
    const REPLACEMENTS: u64 = 100;
    let folder = tempfile::tempdir()?;
    let config = scenario("CONFIGURATION")?;
    // The listener moves to a file that Envoy watches.
    let text = config.text();
    let (start, end) = (text.find("  listeners:\n").expect("listeners"), text.find("\n  clusters:").expect("clusters"));
    let listener =
        text[start..end].lines().skip(1).map(|line| line.get(4..).unwrap_or("")).collect::<Vec<_>>().join("\n");
    let listener =
        listener.replacen("- name:", "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name:", 1);
    let replace = |table: &str| -> Result<()> {
        let aside = folder.path().join("aside.yaml");
        fs::write(&aside, format!("resources:\n{}", listener.replace("CONFIGURATION", table)))?;
        Ok(fs::rename(aside, folder.path().join("listeners.yaml"))?)
    };
    let table = |cluster: &str| format!(r#"{{"routes": [{{"clusters": ["{cluster}"]}}]}}"#);
    let watched = folder.path().join("listeners.yaml");
    let dynamic = format!(
        "dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {} }} }} }}\n\nstatic_resources:\n",
        watched.display()
    );
    let config = config.with(&text[start..=end], "")?.with("static_resources:\n", &dynamic)?;
    replace(&table("egress1"))?;
    let envoy = Envoy::start_with(
        &envoy::program()?,
        &config,
        &["--drain-time-s", "1", "--service-node", "test", "--service-cluster", "test"],
    )?;
    envoy.await_stat("listener_manager.listener_create_success", 2)?; // one for each worker

    let address = envoy.listener("sluice", &LOCALHOST)?;
    let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
    let ask = move || -> Result<String> {
        let mut client = connect(LOCALHOST, address)?;
        client.write_all(&first)?;
        read_all(client)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, ask) = (Arc::clone(&stop), ask.clone());
            thread::spawn(move || -> Result<(u64, u64)> {
                let (mut right, mut wrong) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    match ask()?.as_str() {
                        "egress1" | "egress2" => right += 1,
                        _ => wrong += 1,
                    }
                }
                Ok((right, wrong))
            })
        })
        .collect();
    for replacement in 1..=REPLACEMENTS {
        let cluster = if replacement % 2 == 0 { "egress1" } else { "egress2" };
        replace(&table(cluster))?;
        envoy.await_stat("listener_manager.listener_in_place_updated", replacement)?;
        let started = Instant::now();
        while ask()? != cluster {
            assert!(started.elapsed() < testbed::DEADLINE, "replacement {replacement} does not decide");
        }
    }
    replace(r#"{"routes": [{"clusters": []}]}"#)?;
    envoy.await_stat("listener_manager.lds.update_rejected", 1)?;
    assert_eq!(ask()?, "egress1", "the table that was there decides on");
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (right, wrong) = client.join().expect("a client panicked")?;
        assert!(
            right > REPLACEMENTS && wrong == 0,
            "{right} connections answered, {wrong} lost\n{}",
            envoy.end_of_log()
        );
    }
    assert!(envoy.log().contains("routes[0].clusters: an empty list"), "{}", envoy.end_of_log());
    Ok(())
}

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn the_access_log_shows_the_decision() -> Result<()> {
    let envoy = start(&standalone()?)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    envoy.await_access(&["source=127.0.0.2:", " decision=egress1 cluster=egress1 "])?;
    envoy.await_access(&["source=127.0.0.3:", " decision=egress2 cluster=egress2 "])?;
    Ok(())
}

/// A module that takes two connections without a word and traps at the third.
const TRAPS: &str = r#"(module
  (memory (export "memory") 1)
  (global $connections (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (global.set $connections (i32.add (global.get $connections) (i32.const 1)))
    (if (i32.eq (global.get $connections) (i32.const 3)) (then unreachable))
    (i32.const 0)))"#;

/// Puts that module into this folder.
pub fn module_that_traps(folder: &Path) -> Result<PathBuf> {
    let module = folder.join("traps.wasm");
    fs::write(&module, wat::parse_str(TRAPS)?)?;
    Ok(module)
}

/// With a cluster of tcp_proxy's own that answers, so that what is let through shows.
#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_module_that_traps_lets_nothing_through_and_is_loaded_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = module_that_traps(folder.path())?;
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let config = Config::shipped("standalone.yaml")?
        .with_module(&module)?
        .with_backend(9001, server.local_addr()?)?
        .with("cluster: unrouted", "cluster: egress1")?;
    thread::spawn(move || {
        let _held: Vec<TcpStream> = server.incoming().flatten().collect(); // as long as the process lasts
    });
    let envoy = Envoy::start_with(&envoy::program()?, &config, &["--concurrency", "1"])?;
    let address = envoy.listener("sluice", &LOCALHOST)?;
    let upstream = "cluster.egress1.upstream_cx_total";
    let mut established = [connect(LOCALHOST, address)?, connect(LOCALHOST, address)?];
    envoy.await_stat(upstream, 2)?;
    assert_eq!(connect(LOCALHOST, address)?.read(&mut [0])?, 0, "it trapped");
    for client in &mut established {
        client.write_all(b"?")?;
        // Envoy closes what it has not read with a reset.
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "connections that stood are closed too");
    }
    assert_eq!(envoy.stat(upstream)?, 2);
    let started = Instant::now();
    while envoy.stat(upstream)? == 2 {
        connect(LOCALHOST, address)?;
        assert!(started.elapsed() < testbed::DEADLINE, "{}", envoy.end_of_log());
        thread::sleep(Duration::from_millis(100));
    }
    let reloads = envoy.get("/stats?filter=vm_reload_success")?;
    assert!(reloads.lines().any(|line| line.ends_with(": 1")), "{reloads}");
    Ok(())
}
