//! The JSON Schema and the parser against the same configurations, and the parser's words.

use crate::scenario::as_struct;
use jsonschema::Validator;
use serde_json::{Value, json};
use sluice::config;
use std::fs;

/// Who refuses a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Schema and parser.
    Both,
    /// The parser alone, as a schema cannot say this: it sees no bytes, no repeated keys, no bits of an address and not
    /// how a number is spelt.
    Parser,
}
use By::{Both, Parser};

const ACCEPTED: &[&str] = &[
    include_str!("../data/example.json"),
    r#"{"preset":"standalone"}"#,
    r#"{"preset":"istio"}"#,
    r#"{"routes":[{"action":"deny"}]}"#,
    r#" { "routes" : [ { "clusters" : [ "a" , "a" ] , "match" : { } } ] , "on_error" : "continue" , "otherwise" : "deny" } "#,
    r#"{"routes":[{"match":{"source":["0.0.0.0/0","::/0","10.0.0.7/32","2001:db8::1/128","64:ff9b::10.0.0.0/104"]},"clusters":["a"]}]}"#,
    r#"{"routes":[{"match":{"destination_ports":[1,65535]},"clusters":["outbound|80||a.b\u003c\"\\\u00e9\ud83d\ude00"]}]}"#,
    r#"{"routes":[{"match":{"sni":["a","*.a","A-b_c.example.com"]},"action":"continue"}]}"#,
];

const REFUSED: &[(&str, By, &str)] = &[
    ("{}", Both, "routes is missing"),
    ("[]", Both, r#""[]" is neither a preset (standalone, istio) nor a JSON object"#),
    (r#""istio""#, Both, r#""\x22istio\x22" is neither a preset (standalone, istio) nor a JSON object"#),
    (r#"{"routes":[]}"#, Both, "routes: an empty list"),
    (r#"{"routes":{}}"#, Both, "routes: not a list"),
    (r#"{"routes":null}"#, Both, "routes: not a list"),
    (r#"{"routes":[1]}"#, Both, "routes[0]: not an object"),
    (r#"{"routes":[{}]}"#, Both, "routes[0]: not exactly one of clusters and action"),
    (r#"{"routes":[{"action":"deny"},{"match":{}}]}"#, Both, "routes[1]: not exactly one of clusters and action"),
    (r#"{"routes":[{"clusters":["a"],"action":"deny"}]}"#, Both, "routes[0]: not exactly one of clusters and action"),
    (r#"{"routes":[{"clusters":[]}]}"#, Both, "routes[0].clusters: an empty list"),
    (r#"{"routes":[{"clusters":[""]}]}"#, Both, "routes[0].clusters[0]: an empty name"),
    (r#"{"routes":[{"clusters":["a",1]}]}"#, Both, "routes[0].clusters[1]: not a string"),
    (r#"{"routes":[{"clusters":"a"}]}"#, Both, "routes[0].clusters: not a list"),
    (r#"{"routes":[{"action":"drop"}]}"#, Both, r#"routes[0].action: "drop" is neither continue nor deny"#),
    (r#"{"routes":[{"action":"Deny"}]}"#, Both, r#"routes[0].action: "Deny" is neither continue nor deny"#),
    (r#"{"routes":[{"action":true}]}"#, Both, "routes[0].action: not a string"),
    (r#"{"routes":[{"cluster":["a"]}]}"#, Both, r#"routes[0]: "cluster" is not a field here"#),
    (r#"{"route":[]}"#, Both, r#""route" is not a field here"#),
    (r#"{"routes":[{"action":"deny"}],"otherwise":"stop"}"#, Both, r#"otherwise: "stop" is neither continue nor deny"#),
    (r#"{"routes":[{"action":"deny"}],"on_error":""}"#, Both, r#"on_error: "" is neither continue nor deny"#),
    (r#"{"preset":"Istio"}"#, Both, r#"preset: "Istio" is not a preset: standalone, istio"#),
    (r#"{"preset":""}"#, Both, r#"preset: "" is not a preset: standalone, istio"#),
    (r#"{"preset":"istio","otherwise":"deny"}"#, Both, "preset stands alone"),
    (r#"{"preset":"istio","routes":[{"action":"deny"}]}"#, Both, "preset stands alone"),
    (r#"{"routes":[{"match":[],"action":"deny"}]}"#, Both, "routes[0].match: not an object"),
    (r#"{"routes":[{"match":{"source":[]},"action":"deny"}]}"#, Both, "routes[0].match.source: an empty list"),
    (
        r#"{"routes":[{"match":{"src":["::/0"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match: "src" is not a field here"#,
    ),
    (
        r#"{"routes":[{"action":"deny"},{"match":{"source":["10.0.0.0/33"]},"action":"deny"}]}"#,
        Both,
        r#"routes[1].match.source[0]: "10.0.0.0/33" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"destination":["::/0","10.0.0.0"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.destination[1]: "10.0.0.0" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["10.0.0.0/08"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.source[0]: "10.0.0.0/08" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["256.0.0.0/8"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.source[0]: "256.0.0.0/8" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["010.0.0.0/8"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.source[0]: "010.0.0.0/8" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["::::/1"]},"action":"deny"}]}"#,
        Parser,
        r#"routes[0].match.source[0]: "::::/1" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[8e1]},"action":"deny"}]}"#,
        Parser,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"source":["10.0.0.1/8"]},"action":"deny"}]}"#,
        Parser,
        r#"routes[0].match.source[0]: "10.0.0.1/8" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["::ffff:10.0.0.0/104"]},"action":"deny"}]}"#,
        Parser,
        r#"routes[0].match.source[0]: "::ffff:10.0.0.0/104" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"source":["1::2::/64"]},"action":"deny"}]}"#,
        Parser,
        r#"routes[0].match.source[0]: "1::2::/64" is not a CIDR"#,
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[0]},"action":"deny"}]}"#,
        Both,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[80,65536]},"action":"deny"}]}"#,
        Both,
        "routes[0].match.destination_ports[1]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":["80"]},"action":"deny"}]}"#,
        Both,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[-1]},"action":"deny"}]}"#,
        Both,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[80.5]},"action":"deny"}]}"#,
        Both,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"destination_ports":[80.0]},"action":"deny"}]}"#,
        Parser,
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        r#"{"routes":[{"match":{"sni":["*"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.sni[0]: "*" is not a server name, nor *. and one"#,
    ),
    (
        r#"{"routes":[{"match":{"sni":["a..b"]},"action":"deny"}]}"#,
        Both,
        r#"routes[0].match.sni[0]: "a..b" is not a server name, nor *. and one"#,
    ),
    (r#"{"routes":[{"action":"deny"}],"routes":[{"action":"deny"}]}"#, Parser, "routes: given twice"),
    (r#"{"routes":[{"action":"deny","action":"deny"}]}"#, Parser, "routes[0].action: given twice"),
    (r#"{"routes":[{"match":{"sni":["a"],"sni":["a"]},"action":"deny"}]}"#, Parser, "routes[0].match.sni: given twice"),
    (r#"{"preset":"istio","preset":"istio"}"#, Parser, "preset: given twice"),
];

/// No JSON at all, which no schema gets to see.
const NO_JSON: &[(&[u8], &str)] = &[
    (b"{", "not a string"),
    (b"{\"preset\"", "preset: no colon after the field"),
    (b"{\"preset\":", "preset: not a string"),
    (b"{\"preset\":\"istio\"", "no comma or bracket after a value"),
    (b"{\"preset\":\"istio\",}", "not a string"),
    (b"{\"preset\":\"istio\"} {}", "\"{}\" after the object"),
    (b"{\"preset\":\"istio\"}\0", "\"\\x00\" after the object"),
    (b"{\"preset\":\"ist\nio\"}", "preset: an unended string or a control character"),
    (b"{\"preset\":\"istio}", "preset: an unended string or a control character"),
    (b"{\"preset\":\"\\x\"}", "preset: not an escape of JSON"),
    (b"{\"preset\":\"\\u12\"}", "preset: not an escape of JSON"),
    (b"{\"preset\":\"\\ud800\"}", "preset: not an escape of JSON"),
    (b"{\"preset\":\"\\udc00\"}", "preset: not an escape of JSON"),
    (b"{\"preset\":\"\\ud800\\u0041\"}", "preset: not an escape of JSON"),
    (b"{\"preset\":\"\xff\"}", "preset: not UTF-8"),
    (b"{\"preset\":\"\xc0\xaf\"}", "preset: not UTF-8"),
    (b"{'preset':'istio'}", "not a string"),
    (b"{\"routes\":[{\"action\":\"deny\"},]}", "routes[1]: not an object"),
    (
        b"{\"routes\":[{\"match\":{\"destination_ports\":[080]},\"action\":\"deny\"}]}",
        "routes[0].match.destination_ports[0]: not a whole number from 1 to 65535",
    ),
    (
        b"\xef\xbb\xbf{\"preset\":\"istio\"}",
        "\"\\xef\\xbb\\xbf{\\x22preset\\x22:\\x22istio\\x22}\" is neither a preset (standalone, istio) nor a JSON object",
    ),
];

fn schema() -> Validator {
    let text = fs::read_to_string(testbed::root().join("schema/sluice.schema.json")).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

fn refusal(text: &[u8]) -> String {
    let line = config::parse(text).expect_err("accepted").bytes().to_vec();
    let line = String::from_utf8(line).unwrap();
    line.strip_prefix("sluice: plugin configuration: ").unwrap().to_owned()
}

#[test]
fn schema_and_parser_accept_the_same_configurations() {
    let schema = schema();
    for text in ACCEPTED {
        let parsed = config::parse(text.as_bytes());
        assert!(parsed.is_ok(), "{text}: {}", refusal(text.as_bytes()));
        assert!(schema.is_valid(&serde_json::from_str(text).unwrap()), "{text}");
    }
}

#[test]
fn schema_and_parser_refuse_the_same_configurations() {
    let schema = schema();
    for &(text, by, expected) in REFUSED {
        assert_eq!(refusal(text.as_bytes()), expected, "{text}");
        let value = serde_json::from_str(text).unwrap();
        assert_eq!(schema.is_valid(&value), by == Parser, "{text}");
    }
}

#[test]
fn what_is_no_json_is_refused_and_the_place_is_named() {
    for &(text, expected) in NO_JSON {
        assert_eq!(refusal(text), expected, "{}", String::from_utf8_lossy(text));
        assert!(serde_json::from_slice::<serde_json::Value>(text).is_err() || text.starts_with(b"\xef"), "{text:?}");
    }
}

#[test]
fn nesting_is_refused_where_it_begins() {
    let deep = format!("{{\"routes\":[{}", "[".repeat(100_000));
    assert_eq!(refusal(deep.as_bytes()), "routes[0]: not an object");
}

#[test]
fn the_readmes_example_is_the_tests_example() {
    let readme = fs::read_to_string(testbed::root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```json\n").unwrap();
    assert_eq!(rest.split_once("```").unwrap().0, include_str!("../data/example.json"));
}

#[test]
fn schema_and_parser_have_the_same_limits() {
    let schema = schema();
    let routes = |count: usize| json!({"routes": vec![json!({"clusters": ["a"]}); count]});
    let clusters = |count: usize| json!({"routes": [{"clusters": vec!["a"; count]}]});
    let name = |letter: &str, count: usize| json!({"routes": [{"clusters": [letter.repeat(count)]}]});
    let names = |count: usize| {
        let names: Vec<String> = (0..count).map(|index| format!("c{index}")).collect();
        json!({"routes": names.chunks(256).map(|names| json!({"clusters": names})).collect::<Vec<_>>()})
    };
    for (config, accepted, by) in [
        (routes(1_024), true, Both),
        (routes(1_025), false, Both),
        (clusters(256), true, Both),
        (clusters(257), false, Both),
        (name("n", 1_024), true, Both),
        (name("n", 1_025), false, Both),
        (name("é", 512), true, Both),
        (name("é", 513), false, Parser),
        (names(1_024), true, Both),
        (names(1_025), false, Parser),
    ] {
        let text = config.to_string();
        assert_eq!(config::parse(text.as_bytes()).is_ok(), accepted, "{}", &text[..60]);
        assert_eq!(schema.is_valid(&config), accepted || by == Parser, "{}", &text[..60]);
    }
}

/// Numbers of a struct are floating point, so it cannot say 80.0 and not 80; an empty one arrives as nothing.
#[test]
fn a_struct_is_read_as_the_json_that_it_stands_for() {
    let mut read = 0;
    for text in ACCEPTED.iter().chain(REFUSED.iter().map(|(text, ..)| text)) {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else { continue };
        // Written anew, as a struct has no order of fields and no field twice.
        let text = Value::Object(fields).to_string();
        if text == "{}" || text.contains("80.0") {
            continue;
        }
        assert_eq!(config::parse(&as_struct(&text)), config::parse(text.as_bytes()), "{text}");
        read += 1;
    }
    assert!(read > 50, "{read}");
}

#[test]
fn a_struct_that_is_cut_off_or_goes_on_is_refused() {
    let text = r#"{"routes":[{"match":{"destination_ports":[80],"sni":["a.example"]},"clusters":["egress1"]}]}"#;
    let bytes = as_struct(text);
    assert!(config::parse(&bytes).is_ok());
    for cut in 1..bytes.len() {
        assert!(config::parse(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(config::parse(&[&bytes[..], b"\x12"].concat()).is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_like_a_structs_make_the_parser_panic(at in 0_usize..200, byte: u8, tail: Vec<u8>) {
        let mut bytes = as_struct(include_str!("../data/example.json"));
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        let _ = config::parse(&bytes);
        let _ = config::parse(&[b"\x0a", &tail[..], b"\x12"].concat());
    }
}
