//! Checks that the JSON Schema and the parser accept the same configurations, and that errors name the rejected value.

use crate::configurations::{
    ACCEPTED,
    RejectedBy::{self, Both, Parser},
    rejected,
};
use jsonschema::Validator;
use serde_json::json;
use sluice::config;
use std::fs;
use testbed::config::table_of_clusters;

const TEXT: &str = "unterminated or invalid string";

/// Texts that are not JSON, so that a schema never sees them, with the path and the message of the parser's error.
const NOT_JSON: &[(&[u8], &str, &str)] = &[
    (b"{", "", "expected a string"),
    (b"{\"preset\"", "preset: ", "expected a colon"),
    (b"{\"preset\":", "preset: ", "expected a string"),
    (b"{\"preset\":\"istio\"", "", "expected a comma or a bracket"),
    (b"{\"preset\":\"istio\",}", "", "expected a string"),
    (b"{\"preset\":\"istio\"} {}", "", "\"{}\" after the object"),
    (b"{\"preset\":\"istio\"}\0", "", "\"\\x00\" after the object"),
    (b"{\"preset\":\"ist\nio\"}", "preset: ", TEXT),
    (b"{\"preset\":\"istio}", "preset: ", TEXT),
    (b"{\"preset\":\"\\x\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\\u12\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\\ud800\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\\udc00\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\\ud800\\u0041\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\xff\"}", "preset: ", TEXT),
    (b"{\"preset\":\"\xc0\xaf\"}", "preset: ", TEXT),
    (b"{\"routes\":[{\"clusters\":[\"\xb1\"]}]}", "routes[0].clusters[0]: ", TEXT),
    (b"{'preset':'istio'}", "", "expected a string"),
    (b"{\"routes\":[{\"action\":\"deny\"},]}", "routes[1]: ", "expected an object"),
    (
        b"{\"routes\":[{\"match\":{\"destination_ports\":[080]},\"action\":\"deny\"}]}",
        "routes[0].match.destination_ports[0]: ",
        "expected a port from 1 to 65535",
    ),
    (
        b"\xef\xbb\xbf{\"preset\":\"istio\"}",
        "",
        "\"\\xef\\xbb\\xbf{\\x22preset\\x22:\\x22istio\\x22}\" is neither a preset (standalone, istio) nor a JSON object",
    ),
];

fn schema() -> Validator {
    let text = fs::read_to_string(testbed::root().join("schema/sluice.schema.json")).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

fn error(document: &[u8]) -> String {
    let line = config::parse(document).expect_err("accepted").to_string();
    line.strip_prefix("sluice: plugin configuration: ").unwrap().to_owned()
}

#[test]
fn schema_and_parser_accept_the_same_configurations() {
    let schema = schema();
    for text in ACCEPTED {
        let parsed = config::parse(text.as_bytes());
        assert!(parsed.is_ok(), "{text}: {}", error(text.as_bytes()));
        assert!(schema.is_valid(&serde_json::from_str(text).unwrap()), "{text}");
    }
}

#[test]
fn schema_and_parser_reject_the_same_configurations() {
    let schema = schema();
    for (text, by, expected) in rejected() {
        assert_eq!(error(text.as_bytes()), expected, "{text}");
        let value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema.is_valid(&value), by == Parser, "{text}");
    }
}

#[test]
fn invalid_json_is_rejected_with_its_path() {
    for &(text, path, message) in NOT_JSON {
        assert_eq!(error(text), format!("{path}{message}"), "{}", String::from_utf8_lossy(text));
        assert!(serde_json::from_slice::<serde_json::Value>(text).is_err() || text.starts_with(b"\xef"), "{text:?}");
    }
}

#[test]
fn deep_nesting_is_rejected_at_its_first_level() {
    let deep = format!("{{\"routes\":[{}", "[".repeat(100_000));
    assert_eq!(error(deep.as_bytes()), "routes[0]: expected an object");
}

#[test]
fn the_documented_example_is_the_tested_one() {
    let page = fs::read_to_string(testbed::root().join("docs/configuration.md")).unwrap();
    let (_, rest) = page.split_once("```json\n").unwrap();
    assert_eq!(rest.split_once("```").unwrap().0, include_str!("../data/example.json"));
}

#[test]
fn schema_and_parser_have_the_same_limits() {
    let schema = schema();
    let routes = |routes: serde_json::Value| json!({"routes": routes, "otherwise": "deny"});
    let route_count = |count: usize| routes(json!(vec![json!({"clusters": ["a"]}); count]));
    let cluster_count = |count: usize| routes(json!([{"clusters": vec!["a"; count]}]));
    let name = |letter: &str, count: usize| routes(json!([{"clusters": [letter.repeat(count)]}]));
    let clusters =
        |names, entries| -> serde_json::Value { serde_json::from_str(&table_of_clusters(names, entries)).unwrap() };
    let limits: [(serde_json::Value, bool, RejectedBy); 12] = [
        (route_count(1_024), true, Both),
        (route_count(1_025), false, Both),
        (cluster_count(256), true, Both),
        (cluster_count(257), false, Both),
        (name("n", 1_024), true, Both),
        (name("n", 1_025), false, Both),
        (name("é", 512), true, Both),
        (name("é", 513), false, Parser),
        (clusters(1_024, 1_024), true, Both),
        (clusters(1_025, 1_025), false, Parser),
        (clusters(1_024, 16_384), true, Both),
        (clusters(1_024, 16_385), false, Parser),
    ];
    for (config, accepted, by) in limits {
        let text = config.to_string();
        assert_eq!(config::parse(text.as_bytes()).is_ok(), accepted, "{}", &text[..60]);
        assert_eq!(schema.is_valid(&config), accepted || by == Parser, "{}", &text[..60]);
    }
}

#[test]
fn errors_name_the_exceeded_limit() {
    for (config, expected) in [
        (table_of_clusters(1_025, 1_025), "routes[4].clusters[0]: more than 1024 cluster names"),
        (table_of_clusters(1_024, 16_385), "routes[64].clusters[0]: more than 16384 cluster references"),
        (" ".repeat(262_145), "longer than 262144 bytes"),
    ] {
        assert_eq!(error(config.as_bytes()), expected);
    }
}
