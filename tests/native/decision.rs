//! Compares decisions with a simple model, and counts the allocations of a decision.

use crate::scenario_table::{Outcome, SCENARIOS, Scenario};
use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use sluice::{
    address::parse_endpoint,
    config,
    policy::{Action, ConnectionInfo, Decision},
};
use std::net::{IpAddr, SocketAddr};
use testbed::config::table_of;

/// Returns the decision that `docs/configuration.md` requires, computed step by step from the JSON.
fn model(config: &Value, source: Option<SocketAddr>, destination: Option<SocketAddr>, server_name: &str) -> String {
    let routes = config["routes"].as_array().unwrap();
    let has_criterion = |field: &str| routes.iter().any(|route| !route["match"][field].is_null());
    let on_error = config["on_error"].as_str().unwrap_or("deny").to_owned();
    let Some(source) = source else { return on_error };
    if destination.is_none() && (has_criterion("destination") || has_criterion("destination_ports")) {
        return on_error;
    }
    let within = |entries: &Value, address: Option<SocketAddr>| {
        let ip = address.unwrap().ip().to_canonical();
        strings(entries).any(|entry| entry.parse::<IpNet>().unwrap().contains(&ip))
    };
    for route in routes {
        let criteria = &route["match"];
        let has = |field: &str| !criteria[field].is_null();
        let matches = (!has("source") || within(&criteria["source"], Some(source)))
            && (!has("destination") || within(&criteria["destination"], destination))
            && (!has("destination_ports")
                || criteria["destination_ports"].as_array().unwrap().contains(&json!(destination.unwrap().port())))
            && (!has("sni") || strings(&criteria["sni"]).any(|pattern| pattern_matches(pattern, server_name)));
        if matches {
            if let Some(action) = route["action"].as_str() {
                return action.to_owned();
            }
            let clusters: Vec<&str> = strings(&route["clusters"]).collect();
            let octets = match source.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            return format!("cluster {}", clusters[usize::from(*octets.last().unwrap()) % clusters.len()]);
        }
    }
    config["otherwise"].as_str().unwrap().to_owned()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap())
}

fn pattern_matches(pattern: &str, server_name: &str) -> bool {
    let [pattern, server_name] =
        [pattern, server_name].map(|name| name.strip_suffix('.').unwrap_or(name).to_lowercase());
    match pattern.strip_prefix('*') {
        Some(suffix) => server_name.strip_suffix(suffix).is_some_and(|labels| !labels.is_empty()),
        None => server_name == pattern,
    }
}

/// Returns the decision of the library's policy.
fn decide(config: &str, source: Option<SocketAddr>, destination: Option<SocketAddr>, server_name: &str) -> String {
    let parse =
        |address: Option<SocketAddr>| address.map(|address| parse_endpoint(address.to_string().as_bytes()).unwrap());
    let (source, destination) = (parse(source), parse(destination));
    let policy = config::parse(config.as_bytes()).unwrap();
    match policy.decide(&ConnectionInfo { source, destination, server_name: server_name.as_bytes() }) {
        Decision::Cluster(index) => format!("cluster {}", policy.cluster(index)),
        Decision::Action(action) => word(action).to_owned(),
        Decision::Unreadable(_) => word(policy.on_error).to_owned(),
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Continue => "continue",
        Action::Deny => "deny",
    }
}

/// Generates an address from a small set, so that routes and connections often match.
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
    let names = ["a.example", "*.example", "*.a.example", "B.EXAMPLE", "example."];
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

/// Generates a valid configuration.
pub fn configuration() -> impl Strategy<Value = Value> {
    let action = || select(&["continue", "deny"][..]);
    let clusters =
        prop::collection::vec(select(&["a", "b", "c"][..]), 1..4).prop_map(|names| ("clusters", json!(names)));
    let target = prop_oneof![clusters, action().prop_map(|action| ("action", json!(action)))];
    let route = (criteria(), target).prop_map(|(criteria, (field, target))| json!({"match": criteria, field: target}));
    let routes = prop::collection::vec(route, 1..6);
    (routes, action(), prop::option::of(action())).prop_map(|(routes, otherwise, on_error)| {
        let mut config = json!({"routes": routes, "otherwise": otherwise});
        if let Some(on_error) = on_error {
            config["on_error"] = json!(on_error);
        }
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn decisions_equal_the_model(
        config in configuration(),
        source in address(),
        destination in address(),
        server_name in select(&["", "a.example", "B.a.Example.", "b.example", "example", "example.", "c.org"][..]),
    ) {
        let expected = model(&config, source, destination, server_name);
        prop_assert_eq!(decide(&config.to_string(), source, destination, server_name), expected, "{}", config);
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
        let policy = config::parse(scenario.config.as_bytes()).unwrap();
        for (source, destination, server_name, _) in scenario.connections {
            let allocated = allocation_counter::measure(|| {
                let [source, destination] = [source, destination].map(|text| parse_endpoint(text.as_bytes()));
                let connection = ConnectionInfo { source, destination, server_name: server_name.as_bytes() };
                std::hint::black_box(policy.decide(&connection));
            });
            assert_eq!(allocated.count_total, 0, "{}: {source} → {destination}", scenario.name);
        }
    }
}
