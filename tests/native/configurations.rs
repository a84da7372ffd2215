//! Configurations with the expected result, shared by the tests of the schema and of the Struct reader.

/// Configurations that the schema and the parser accept.
pub const ACCEPTED: &[&str] = &[
    include_str!("../data/example.json"),
    r#"{"preset":"standalone"}"#,
    r#"{"preset":"istio"}"#,
    r#"{"routes":[{"action":"deny"}],"otherwise":"continue"}"#,
    r#"{"routes":[{"action":"deny"}],"otherwise":"deny","mode":"observe"}"#,
    r#"{"routes":[{"action":"deny"}],"otherwise":"deny","mode":"enforce"}"#,
    r#" { "routes" : [ { "clusters" : [ "a" , "a" ] , "match" : { } } ] , "on_error" : "continue" , "otherwise" : "deny" } "#,
    r#"{"routes":[{"match":{"source":["0.0.0.0/0","::/0","10.0.0.7/32","2001:db8::1/128","64:ff9b::10.0.0.0/104"]},"clusters":["a"]}],"otherwise":"deny"}"#,
    r#"{"routes":[{"match":{"destination_ports":[1,65535]},"clusters":["outbound|80||a.b\u003c\"\\\u00e9\ud83d\ude00"]}],"otherwise":"deny"}"#,
    r#"{"routes":[{"match":{"sni":["a","*.a","A-b_c.example.com","a.example.","*.example."]},"action":"continue"}],"otherwise":"deny"}"#,
];

/// The checks that reject a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectedBy {
    /// The schema and the parser.
    Both,
    /// Only the parser. A schema cannot express these rules, because it does not see bytes, repeated keys, the bits of an
    /// address or the notation of a number.
    Parser,
}
use RejectedBy::{Both, Parser};

/// Rejected configurations, the checks that reject them, and the error of the parser.
const REJECTED: &[(&str, RejectedBy, &str)] = &[
    ("{}", Both, "routes is missing"),
    ("[]", Both, r#""[]" is neither a preset (standalone, istio) nor a JSON object"#),
    (r#""istio""#, Both, r#""\x22istio\x22" is neither a preset (standalone, istio) nor a JSON object"#),
    (r#"{"otherwise":"deny"}"#, Both, "routes is missing"),
    (r#"{"routes":[{"action":"deny"}]}"#, Both, "otherwise is missing: continue or deny"),
    (r#"{"routes":[{"clusters":["a"]}],"on_error":"deny"}"#, Both, "otherwise is missing: continue or deny"),
    (r#"{"routes":[]}"#, Both, "routes: must not be empty"),
    (r#"{"routes":{}}"#, Both, "routes: expected a list"),
    (r#"{"routes":null}"#, Both, "routes: expected a list"),
    (r#"{"routes":[1]}"#, Both, "routes[0]: expected an object"),
    (r#"{"routes":[{}]}"#, Both, "routes[0]: expected either clusters or action"),
    (r#"{"routes":[{"action":"deny"},{"match":{}}]}"#, Both, "routes[1]: expected either clusters or action"),
    (r#"{"routes":[{"clusters":["a"],"action":"deny"}]}"#, Both, "routes[0]: expected either clusters or action"),
    (r#"{"routes":[{"clusters":[]}]}"#, Both, "routes[0].clusters: must not be empty"),
    (r#"{"routes":[{"clusters":[""]}]}"#, Both, "routes[0].clusters[0]: must not be empty"),
    (r#"{"routes":[{"clusters":["a",1]}]}"#, Both, "routes[0].clusters[1]: expected a string"),
    (r#"{"routes":[{"clusters":"a"}]}"#, Both, "routes[0].clusters: expected a list"),
    (r#"{"routes":[{"action":"drop"}]}"#, Both, r#"routes[0].action: "drop", expected one of: continue deny"#),
    (r#"{"routes":[{"action":"Deny"}]}"#, Both, r#"routes[0].action: "Deny", expected one of: continue deny"#),
    (r#"{"routes":[{"action":true}]}"#, Both, "routes[0].action: expected a string"),
    (r#"{"routes":[{"cluster":["a"]}]}"#, Both, r#"routes[0]: "cluster", expected one of: match clusters action"#),
    (r#"{"route":[]}"#, Both, r#""route", expected one of: routes otherwise on_error mode preset"#),
    (
        r#"{"routes":[{"action":"deny"}],"otherwise":"deny","mode":"dry"}"#,
        Both,
        r#"mode: "dry", expected one of: enforce observe"#,
    ),
    (r#"{"preset":"istio","mode":"observe"}"#, Both, "preset cannot be combined with other fields"),
    (
        r#"{"routes":[{"action":"deny"}],"otherwise":"stop"}"#,
        Both,
        r#"otherwise: "stop", expected one of: continue deny"#,
    ),
    (r#"{"routes":[{"action":"deny"}],"otherwise":null}"#, Both, "otherwise: expected a string"),
    (r#"{"routes":[{"action":"deny"}],"on_error":""}"#, Both, r#"on_error: "", expected one of: continue deny"#),
    (r#"{"preset":"Istio"}"#, Both, r#"preset: "Istio", expected one of: standalone istio"#),
    (r#"{"preset":""}"#, Both, r#"preset: "", expected one of: standalone istio"#),
    (r#"{"preset":"istio","otherwise":"deny"}"#, Both, "preset cannot be combined with other fields"),
    (
        r#"{"preset":"istio","routes":[{"action":"deny"}],"otherwise":"deny"}"#,
        Both,
        "preset cannot be combined with other fields",
    ),
    (r#"{"routes":[{"match":[],"action":"deny"}]}"#, Both, "routes[0].match: expected an object"),
    (
        r#"{"routes":[{"action":"deny"}],"routes":[{"action":"deny"}],"otherwise":"deny"}"#,
        Parser,
        "routes: duplicate field",
    ),
    (r#"{"routes":[{"action":"deny"}],"otherwise":"deny","otherwise":"deny"}"#, Parser, "otherwise: duplicate field"),
    (
        r#"{"routes":[{"action":"deny","action":"deny"}],"otherwise":"deny"}"#,
        Parser,
        "routes[0].action: duplicate field",
    ),
    (r#"{"preset":"istio","preset":"istio"}"#, Parser, "preset: duplicate field"),
];

const CIDR: &str = " is not a CIDR without host bits, such as 10.0.0.0/8";
const PORT: &str = "expected a port from 1 to 65535";
const HOST_NAME: &str = " is not a host name or *.hostname";

/// Rejected criteria of the first route: the object `match`, the checks that reject it, and three parts of the parser's error:
/// the path below `routes[0].match`, the quoted value and the rest.
const REJECTED_CRITERIA: &[(&str, RejectedBy, &str, &str, &str)] = &[
    (r#"{"src":["::/0"]}"#, Both, "", r#""src""#, ", expected one of: source destination destination_ports sni"),
    (r#"{"source":[]}"#, Both, ".source", "", "must not be empty"),
    (r#"{"source":["10.0.0.0/33"]}"#, Both, ".source[0]", r#""10.0.0.0/33""#, CIDR),
    (r#"{"destination":["::/0","10.0.0.0"]}"#, Both, ".destination[1]", r#""10.0.0.0""#, CIDR),
    (r#"{"source":["10.0.0.0/08"]}"#, Both, ".source[0]", r#""10.0.0.0/08""#, CIDR),
    (r#"{"source":["256.0.0.0/8"]}"#, Both, ".source[0]", r#""256.0.0.0/8""#, CIDR),
    (r#"{"source":["010.0.0.0/8"]}"#, Both, ".source[0]", r#""010.0.0.0/8""#, CIDR),
    (r#"{"source":["::::/1"]}"#, Parser, ".source[0]", r#""::::/1""#, CIDR),
    (r#"{"source":["10.0.0.1/8"]}"#, Parser, ".source[0]", r#""10.0.0.1/8""#, CIDR),
    (r#"{"source":["::ffff:10.0.0.0/104"]}"#, Parser, ".source[0]", r#""::ffff:10.0.0.0/104""#, CIDR),
    (r#"{"source":["1::2::/64"]}"#, Parser, ".source[0]", r#""1::2::/64""#, CIDR),
    (r#"{"destination_ports":[0]}"#, Both, ".destination_ports[0]", "", PORT),
    (r#"{"destination_ports":[80,65536]}"#, Both, ".destination_ports[1]", "", PORT),
    (r#"{"destination_ports":["80"]}"#, Both, ".destination_ports[0]", "", PORT),
    (r#"{"destination_ports":[-1]}"#, Both, ".destination_ports[0]", "", PORT),
    (r#"{"destination_ports":[80.5]}"#, Both, ".destination_ports[0]", "", PORT),
    (r#"{"destination_ports":[80.0]}"#, Parser, ".destination_ports[0]", "", PORT),
    (r#"{"destination_ports":[8e1]}"#, Parser, ".destination_ports[0]", "", PORT),
    (r#"{"sni":["*"]}"#, Both, ".sni[0]", r#""*""#, HOST_NAME),
    (r#"{"sni":["a..b"]}"#, Both, ".sni[0]", r#""a..b""#, HOST_NAME),
    (r#"{"sni":["a.."]}"#, Both, ".sni[0]", r#""a..""#, HOST_NAME),
    (r#"{"sni":["."]}"#, Both, ".sni[0]", r#"".""#, HOST_NAME),
    (r#"{"sni":["a"],"sni":["a"]}"#, Parser, ".sni", "", "duplicate field"),
];

/// Returns all rejected configurations, the checks that reject them, and the error of the parser.
pub fn rejected() -> Vec<(String, RejectedBy, String)> {
    let whole = REJECTED.iter().map(|&(config, by, error)| (config.to_owned(), by, error.to_owned()));
    let criteria = REJECTED_CRITERIA.iter().map(|&(criteria, by, path, subject, message)| {
        let config = format!(r#"{{"routes":[{{"match":{criteria},"action":"deny"}}],"otherwise":"deny"}}"#);
        (config, by, format!("routes[0].match{path}: {subject}{message}"))
    });
    whole.chain(criteria).collect()
}
