//! The built module in a real Envoy with the configuration that we ship. What is asserted, Envoy's counters and the
//! backends say.

use crate::{plain, shipped};
use anyhow::Result;
use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    thread,
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

/// Who answers a connection that comes with this PROXY header, version 1.
fn answer_to_header(envoy: &Envoy, header: &str) -> Result<String> {
    let mut client = connect(LOCALHOST, envoy.listener("sluice", &LOCALHOST)?)?;
    client.write_all(header.as_bytes())?;
    read_all(client)
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
    let log = envoy.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("wasm log")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("[debug]") && lines[0].contains("source.address \"127.0.0.2:"), "{log}");
    assert!(lines[0].ends_with(" takes egress1"), "{log}");
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

#[test]
#[ignore = "make test gets the Envoy and builds the module"]
fn a_client_without_an_ip_address_keeps_the_cluster_and_one_warning_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let config = standalone()?;
    let address =
        config.text().lines().find(|line| line.starts_with("      address:")).expect("the listener's address");
    let envoy = start(&config.with(address, &format!("      address: {{ pipe: {{ path: {} }} }}", socket.display()))?)?;
    let mut answer = String::new();
    UnixStream::connect(&socket)?.read_to_string(&mut answer)?;
    assert_eq!(answer, "", "tcp_proxy's own cluster is an empty one");
    envoy.await_stat("cluster.unrouted.upstream_cx_none_healthy", 1)?;
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")? + envoy.stat("cluster.egress2.upstream_cx_total")?, 0);
    let log = envoy.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("wasm log")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("[warning]") && lines[0].contains("is no IP address"), "{log}");
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
        ("Standalone", "\"Standalone\" is not a preset"),
        ("\" istio\"", "\" istio\" is not a preset"),
        (long.as_str(), "xxx\"... (70000 bytes) is not a preset"),
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
    for file in fs::read_dir(testbed::root().join("envoy-docker"))? {
        let file = file?.path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
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
        assert!(log.contains("OK") || log.is_empty(), "{log}");
    }
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
