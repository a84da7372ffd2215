//! Decisions against a naive model, and what one costs.

use crate::scenario::{Outcome, SCENARIOS, Scenario};
use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use sluice::{
    address, config,
    route::{Action, Connection, Decision},
};
use std::net::{IpAddr, SocketAddr};
use testbed::config::table_of;

/// The words, step by step, on the JSON itself.
fn model(config: &Value, source: Option<SocketAddr>, destination: Option<SocketAddr>, name: &str) -> String {
    let routes = config["routes"].as_array().unwrap();
    let asks = |field: &str| routes.iter().any(|route| !route["match"][field].is_null());
    let on_error = config["on_error"].as_str().unwrap_or("deny").to_owned();
    let Some(source) = source else { return on_error };
    if destination.is_none() && (asks("destination") || asks("destination_ports")) {
        return on_error;
    }
    let within = |entries: &Value, address: Option<SocketAddr>| {
        let ip = address.unwrap().ip().to_canonical();
        strings(entries).any(|entry| entry.parse::<IpNet>().unwrap().contains(&ip))
    };
    for route in routes {
        let criteria = &route["match"];
        let given = |field: &str| !criteria[field].is_null();
        let matches = (!given("source") || within(&criteria["source"], Some(source)))
            && (!given("destination") || within(&criteria["destination"], destination))
            && (!given("destination_ports")
                || criteria["destination_ports"].as_array().unwrap().contains(&json!(destination.unwrap().port())))
            && (!given("sni") || strings(&criteria["sni"]).any(|pattern| names(pattern, name)));
        if matches {
            if let Some(action) = route["action"].as_str() {
                return action.to_owned();
            }
            let clusters: Vec<&str> = strings(&route["clusters"]).collect();
            let text = match source.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            return format!("cluster {}", clusters[usize::from(*text.last().unwrap()) % clusters.len()]);
        }
    }
    config["otherwise"].as_str().unwrap_or("continue").to_owned()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap())
}

fn names(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    match pattern.strip_prefix('*') {
        Some(end) => name.strip_suffix(end).is_some_and(|start| !start.is_empty()),
        None => name == pattern,
    }
}

fn ours(config: &str, source: Option<SocketAddr>, destination: Option<SocketAddr>, name: &str) -> String {
    let read =
        |address: Option<SocketAddr>| address.map(|address| address::parse(address.to_string().as_bytes()).unwrap());
    let (source, destination) = (read(source), read(destination));
    let table = config::parse(config.as_bytes()).unwrap();
    match table.decide(&Connection { source, destination, name: name.as_bytes() }) {
        Decision::Cluster(place) => format!("cluster {}", String::from_utf8_lossy(table.cluster(place).name)),
        Decision::Action(action) => word(action).to_owned(),
        Decision::Unreadable(_) => word(table.on_error).to_owned(),
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Continue => "continue",
        Action::Deny => "deny",
    }
}

/// Few of each, so that they meet.
fn address() -> impl Strategy<Value = Option<SocketAddr>> {
    let ips = [
        "10.0.0.2",
        "10.0.1.3",
        "10.1.0.4",
        "192.0.2.255",
        "::ffff:10.0.0.3",
        "::ffff:192.0.2.8",
        "fd00::2",
        "fd00:0:0:1::3",
        "2001:db8::ff",
    ];
    let address = (select(ips.to_vec()), select(&[25_u16, 80, 443][..]))
        .prop_map(|(ip, port)| (ip.parse::<IpAddr>().unwrap(), port).into());
    prop_oneof![9 => address.prop_map(Some), 1 => Just(None)]
}

fn prefixes() -> impl Strategy<Value = Vec<&'static str>> {
    let prefixes = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.2/31",
        "192.0.2.255/32",
        "::/0",
        "fd00::/63",
        "fd00::/64",
        "2001:db8::ff/128",
    ];
    prop::collection::vec(select(prefixes.to_vec()), 1..3)
}

fn criteria() -> impl Strategy<Value = Value> {
    let names = ["a.example", "*.example", "*.a.example", "B.EXAMPLE"];
    let ports = prop::collection::vec(select(&[25, 80, 443][..]), 1..3);
    let names = prop::collection::vec(select(names.to_vec()), 1..3);
    (
        prop::option::weighted(0.4, prefixes()),
        prop::option::weighted(0.3, prefixes()),
        prop::option::weighted(0.3, ports),
        prop::option::weighted(0.3, names),
    )
        .prop_map(|(source, destination, ports, names)| {
            let mut criteria = json!({});
            for (field, value) in [
                ("source", source.map(|value| json!(value))),
                ("destination", destination.map(|value| json!(value))),
                ("destination_ports", ports.map(|value| json!(value))),
                ("sni", names.map(|value| json!(value))),
            ] {
                if let Some(value) = value {
                    criteria[field] = value;
                }
            }
            criteria
        })
}

fn configuration() -> impl Strategy<Value = Value> {
    let action = || select(&["continue", "deny"][..]);
    let clusters =
        prop::collection::vec(select(&["a", "b", "c"][..]), 1..4).prop_map(|names| ("clusters", json!(names)));
    let way = prop_oneof![clusters, action().prop_map(|action| ("action", json!(action)))];
    let route = (criteria(), way).prop_map(|(criteria, (field, way))| json!({"match": criteria, field: way}));
    let routes = prop::collection::vec(route, 1..6);
    (routes, prop::option::of(action()), prop::option::of(action())).prop_map(|(routes, otherwise, on_error)| {
        let mut config = json!({"routes": routes});
        for (field, action) in [("otherwise", otherwise), ("on_error", on_error)] {
            if let Some(action) = action {
                config[field] = json!(action);
            }
        }
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn decisions_are_the_models(
        config in configuration(),
        source in address(),
        destination in address(),
        name in select(&["", "a.example", "B.a.Example", "b.example", "example", "c.org"][..]),
    ) {
        let expected = model(&config, source, destination, name);
        prop_assert_eq!(ours(&config.to_string(), source, destination, name), expected, "{}", config);
    }
}

#[test]
fn a_decision_allocates_nothing() {
    let parsing = allocation_counter::measure(|| drop(config::parse(b"standalone")));
    assert!(parsing.count_total > 0, "allocations are not counted");
    let large = Scenario {
        name: "many routes",
        config: &table_of(1_000),
        connections: &[
            ("10.0.0.2:1", "[2001:db8::7]:443", "a.example", Outcome::Cluster("egress1")),
            ("/pipe", "", "", Outcome::Closed),
        ],
    };
    for scenario in SCENARIOS.iter().chain([&large]) {
        let table = config::parse(scenario.config.as_bytes()).unwrap();
        for (source, destination, name, _) in scenario.connections {
            let allocated = allocation_counter::measure(|| {
                let (source, destination) = (address::parse(source.as_bytes()), address::parse(destination.as_bytes()));
                let decision = table.decide(&Connection { source, destination, name: name.as_bytes() });
                std::hint::black_box(decision);
            });
            assert_eq!(allocated.count_total, 0, "{}: {source} → {destination}", scenario.name);
        }
    }
}
