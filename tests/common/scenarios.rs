//! Configurations and connections with the expected outcome: one table for the native policy, for the built modules in a
//! WebAssembly engine and for the built modules in a real Envoy.

use Outcome::{Closed, Cluster, DefaultCluster};

/// The outcome of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection is routed to this cluster.
    Cluster(&'static str),
    /// The connection keeps the cluster that `tcp_proxy` is configured with.
    DefaultCluster,
    /// The connection is closed.
    Closed,
}

/// A configuration, and connections given by their source, destination, server name and outcome.
pub struct Scenario<'a> {
    pub name: &'a str,
    pub config: &'a str,
    pub connections: &'a [(&'a str, &'a str, &'a str, Outcome)],
}

pub const SCENARIOS: &[Scenario<'static>] = &[
    Scenario {
        name: "the preset standalone, as an object",
        config: r#"{"preset": "standalone"}"#,
        connections: &[
            ("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress1")),
            ("10.0.0.3:1", "198.51.100.7:443", "", Cluster("egress2")),
            ("203.0.113.255:1", "198.51.100.7:443", "", Cluster("egress2")),
            ("[2001:db8::3]:443", "[2001:db8::7]:443", "", Cluster("egress2")),
            ("[2001:db8:1:2:3:4:5:fffe]:1", "[2001:db8::7]:443", "", Cluster("egress1")),
            ("[::ffff:192.168.1.100]:80", "[::ffff:198.51.100.7]:443", "", Cluster("egress1")),
            ("[::ffff:192.168.1.101]:80", "[::ffff:198.51.100.7]:443", "", Cluster("egress2")),
        ],
    },
    Scenario {
        name: "the example of docs/configuration.md",
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
            ("10.1.0.5:1", "10.96.0.1:443", "", DefaultCluster),
            ("10.1.0.5:1", "10.111.255.255:443", "", DefaultCluster),
            ("10.1.0.5:1", "10.112.0.0:443", "", Cluster("egress2")),
            ("10.1.0.5:1", "10.96.0.1:25", "", Closed),
            ("[::ffff:10.1.0.5]:1", "[::ffff:10.244.0.1]:443", "", DefaultCluster),
        ],
    },
    Scenario {
        name: "otherwise continue",
        config: r#"{"routes": [{"match": {"source": ["10.0.0.0/8"]}, "clusters": ["egress1"]}], "otherwise": "continue"}"#,
        connections: &[
            ("10.0.0.3:1", "198.51.100.7:443", "", Cluster("egress1")),
            ("11.0.0.3:1", "198.51.100.7:443", "", DefaultCluster),
            ("[2001:db8::3]:1", "[2001:db8::7]:443", "", DefaultCluster),
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
        name: "IPv6 prefixes do not match IPv4 addresses",
        config: r#"{"routes": [{"match": {"source": ["::/0"]}, "clusters": ["egress1"]}, {"match": {"source": ["0.0.0.0/0"]}, "clusters": ["egress2"]}], "otherwise": "deny"}"#,
        connections: &[
            ("[2001:db8::2]:1", "[2001:db8::7]:443", "", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress2")),
            ("[::ffff:10.0.0.2]:1", "[::ffff:198.51.100.7]:443", "", Cluster("egress2")),
        ],
    },
    Scenario {
        name: "server names match exactly or below a wildcard, and ignore case and a trailing dot",
        config: r#"{"routes": [{"match": {"sni": ["API.example.com", "*.example.org."]}, "clusters": ["egress1"]}, {"match": {"sni": ["blocked.example"]}, "action": "deny"}], "otherwise": "continue"}"#,
        connections: &[
            ("10.0.0.2:1", "198.51.100.7:443", "api.example.com", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "api.example.com.", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "www.api.example.com", DefaultCluster),
            ("10.0.0.2:1", "198.51.100.7:443", "a.b.example.org", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "a.b.example.org.", Cluster("egress1")),
            ("10.0.0.2:1", "198.51.100.7:443", "example.org", DefaultCluster),
            ("10.0.0.2:1", "198.51.100.7:443", "Blocked.Example", Closed),
            ("10.0.0.2:1", "198.51.100.7:443", "blocked.example.", Closed),
            ("10.0.0.2:1", "198.51.100.7:443", "", DefaultCluster),
        ],
    },
    Scenario {
        name: "the first route that matches decides, and escape sequences are resolved",
        config: r#"{"routes": [{"match": {}, "clusters": ["egr\u0065ss3"]}, {"action": "deny"}], "otherwise": "deny", "on_error": "continue"}"#,
        connections: &[("10.0.0.2:1", "198.51.100.7:443", "", Cluster("egress3"))],
    },
];
