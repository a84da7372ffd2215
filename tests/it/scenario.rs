//! Configurations and connections with what must become of them: one table for the native code, for the modules in a
//! WebAssembly engine and for the shipped module in a real Envoy.

use prost::Message;
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::Value;
use sluice::{
    address, config,
    route::{Action, Connection, Decision},
};

/// What must become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It takes this cluster.
    Cluster(&'static str),
    /// It keeps tcp_proxy's own cluster.
    Own,
    /// It is closed.
    Closed,
}
use Outcome::{Closed, Cluster, Own};

/// A configuration, and connections: source, destination, SNI, outcome.
pub struct Scenario<'a> {
    pub name: &'a str,
    pub config: &'a str,
    pub connections: &'a [(&'a str, &'a str, &'a str, Outcome)],
}

/// A configuration as the bytes of a `google.protobuf.Struct`.
pub fn as_struct(config: &str) -> Vec<u8> {
    fn value(json: &Value) -> prost_types::Value {
        let kind = match json {
            Value::Null => Kind::NullValue(0),
            Value::Bool(flag) => Kind::BoolValue(*flag),
            Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(value).collect() }),
            Value::Object(_) => Kind::StructValue(fields(json)),
        };
        prost_types::Value { kind: Some(kind) }
    }
    fn fields(json: &Value) -> Struct {
        Struct { fields: json.as_object().unwrap().iter().map(|(name, json)| (name.clone(), value(json))).collect() }
    }
    fields(&serde_json::from_str(config).unwrap()).encode_to_vec()
}

pub const SCENARIOS: &[Scenario<'static>] = &[
    Scenario {
        name: "the preset standalone, as an object",
        config: r#"{"preset": "standalone"}"#,
        connections: &[
            ("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress1")),
            ("10.0.0.3:1", "198.51.100.7:443", "", Cluster("egress2")),
            ("[2001:db8::3]:1", "[2001:db8::7]:443", "", Cluster("egress2")),
        ],
    },
    Scenario {
        name: "what operators write: the example of the README",
        config: include_str!("../data/example.json"),
        connections: &[
            ("10.1.0.3:1", "198.51.100.7:80", "a.example.com", Cluster("egress1")),
            ("10.1.0.4:1", "198.51.100.7:8000", "A.B.EXAMPLE.COM", Cluster("egress2")),
            ("10.1.0.5:1", "198.51.100.7:80", "a.example.com", Cluster("egress3")),
            ("10.1.0.5:1", "198.51.100.7:80", "example.com", Cluster("egress2")),
            ("10.1.0.5:1", "198.51.100.7:80", "", Cluster("egress2")),
            ("10.2.0.5:1", "198.51.100.7:80", "a.example.com", Cluster("egress2")),
            ("10.1.0.5:1", "198.51.101.7:80", "a.example.com", Cluster("egress2")),
            ("10.1.0.5:1", "198.51.100.7:81", "a.example.com", Cluster("egress2")),
            ("10.1.0.5:1", "198.51.100.7:25", "a.example.com", Closed),
            ("[2001:db8::5]:1", "[2001:db8::7]:25", "", Closed),
            ("10.1.0.5:1", "10.96.0.1:443", "", Own),
            ("10.1.0.5:1", "10.111.255.255:443", "", Own),
            ("10.1.0.5:1", "10.112.0.0:443", "", Cluster("egress2")),
            ("10.1.0.5:1", "10.96.0.1:25", "", Closed),
            ("[::ffff:10.1.0.5]:1", "[::ffff:10.244.0.1]:443", "", Own),
        ],
    },
    Scenario {
        name: "what no route matches is continued unless the table says deny",
        config: r#"{"routes": [{"match": {"source": ["10.0.0.0/8"]}, "clusters": ["egress1"]}]}"#,
        connections: &[
            ("10.0.0.3:1", "198.51.100.7:443", "", Cluster("egress1")),
            ("11.0.0.3:1", "198.51.100.7:443", "", Own),
            ("[2001:db8::3]:1", "[2001:db8::7]:443", "", Own),
        ],
    },
    Scenario {
        name: "otherwise deny",
        config: r#"{"routes": [{"match": {"source": ["fd00:1::/64", "10.0.0.0/8"]}, "clusters": ["egress1", "egress2"]}], "otherwise": "deny"}"#,
        connections: &[
            ("[fd00:1::3]:1", "[2001:db8::7]:443", "", Cluster("egress2")),
            ("[fd00:1:0:1::3]:1", "[2001:db8::7]:443", "", Closed),
            ("11.0.0.2:1", "198.51.100.7:443", "", Closed),
            ("[::ffff:10.0.0.2]:1", "[::ffff:198.51.100.7]:443", "", Cluster("egress1")),
        ],
    },
    Scenario {
        name: "families are kept apart",
        config: r#"{"routes": [{"match": {"source": ["::/0"]}, "clusters": ["egress1"]}, {"match": {"source": ["0.0.0.0/0"]}, "clusters": ["egress2"]}], "otherwise": "deny"}"#,
        connections: &[
            ("[2001:db8::2]:1", "[2001:db8::7]:443", "", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress2")),
            ("[::ffff:10.0.0.2]:1", "[::ffff:198.51.100.7]:443", "", Cluster("egress2")),
        ],
    },
    Scenario {
        name: "names match exactly, or below a wildcard, in any case",
        config: r#"{"routes": [{"match": {"sni": ["API.example.com", "*.example.org"]}, "clusters": ["egress1"]}, {"match": {"sni": ["blocked.example"]}, "action": "deny"}]}"#,
        connections: &[
            ("10.0.0.2:1", "198.51.100.7:443", "api.example.com", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "www.api.example.com", Own),
            ("10.0.0.2:1", "198.51.100.7:443", "a.b.example.org", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "example.org", Own),
            ("10.0.0.2:1", "198.51.100.7:443", "Blocked.Example", Closed),
            ("10.0.0.2:1", "198.51.100.7:443", "", Own),
        ],
    },
    Scenario {
        name: "the first route that matches decides, and escapes are resolved",
        config: r#"{"routes": [{"match": {}, "clusters": ["egr\u0065ss3"]}, {"action": "deny"}], "on_error": "continue"}"#,
        connections: &[("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress3"))],
    },
];

#[test]
fn every_scenario_holds_natively() {
    for scenario in SCENARIOS {
        let table = config::parse(scenario.config.as_bytes()).expect(scenario.name);
        for &(source, destination, name, expected) in scenario.connections {
            let connection = Connection {
                source: address::parse(source.as_bytes()),
                destination: address::parse(destination.as_bytes()),
                name: name.as_bytes(),
            };
            let decided = match table.decide(&connection) {
                Decision::Cluster(place) => Cluster(
                    SCENARIO_CLUSTERS
                        .into_iter()
                        .find(|known| known.as_bytes() == table.cluster(place).name)
                        .expect("a known cluster"),
                ),
                Decision::Action(Action::Continue) => Own,
                Decision::Action(Action::Deny) => Closed,
                Decision::Unreadable(criterion) => panic!("{criterion:?}"),
            };
            assert_eq!(decided, expected, "{}: {source} → {destination} {name:?}", scenario.name);
        }
    }
}

/// The clusters that the scenarios name.
pub const SCENARIO_CLUSTERS: [&str; 3] = ["egress1", "egress2", "egress3"];
