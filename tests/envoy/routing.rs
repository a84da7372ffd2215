//! Routes connections with the presets.

use crate::proxy::{LOCALHOST, answer, answer_to, module_lines, standalone, start};
use anyhow::Result;
use std::{collections::HashMap, net::Ipv4Addr, thread};
use testbed::{Backend, Config, Module, config, for_each_module, who_answers};

for_each_module! {
    the_last_octet_of_the_source_selects_the_egress,
    ten_thousand_connections_are_split_by_their_sources,
    the_preset_istio_selects_router_and_port,
}

fn the_last_octet_of_the_source_selects_the_egress(module: Module) -> Result<()> {
    let envoy = start(&standalone(module)?)?;
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

fn ten_thousand_connections_are_split_by_their_sources(module: Module) -> Result<()> {
    const THREADS: u8 = 4;
    const EACH: u16 = 2_500;
    let envoy = start(&standalone(module)?)?;
    let listener = envoy.listener("sluice", &LOCALHOST)?;
    let clients: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || -> Result<HashMap<(u8, String), u64>> {
                let mut answers = HashMap::new();
                for count in 0..EACH {
                    // Three of the seven last octets are odd, so that the counts of the egresses differ.
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
    assert_eq!(workers.count(), 2, "both workers must accept connections: {stats}");
    assert!(envoy.log().contains("[info]"), "Envoy must log at info level: {}", envoy.end_of_log());
    assert_eq!(module_lines(&envoy), [""; 0]);
    Ok(())
}

/// Returns the configuration with a listener that takes the addresses of a connection from a PROXY header.
fn behind_proxy_protocol(config: &Config) -> Result<Config> {
    let filter = r#"listener_filters:
        - name: envoy.filters.listener.proxy_protocol
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
      filter_chains:"#;
    config.with("filter_chains:", filter)
}

fn the_preset_istio_selects_router_and_port(module: Module) -> Result<()> {
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
    let config = standalone(module)?
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
        assert_eq!(answer_to(&envoy, header.as_bytes())?, expected, "{header}\n{}", envoy.log());
    }
    Ok(())
}
