//! Accepted configurations and their meaning; rejected configurations and their errors.

use super::*;
use std::{
    borrow::ToOwned,
    format,
    string::{String, ToString},
};

fn rejection(text: &[u8]) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_configuration_means_standalone() {
    let standalone = parse(b"standalone").unwrap();
    assert_eq!(parse(b"").unwrap(), standalone);
    assert_eq!(parse(br#"{"preset": "standalone"}"#).unwrap(), standalone);
    assert_ne!(parse(b"istio").unwrap(), standalone);
    assert_eq!(parse(br#"{"preset": "istio"}"#), parse(b"istio"));
}

#[test]
fn the_presets_have_documented_actions() {
    for (preset, otherwise, on_error) in [
        ("standalone", Action::Continue, Action::Continue),
        ("", Action::Continue, Action::Continue),
        ("istio", Action::Deny, Action::Deny),
    ] {
        let policy = parse(preset.as_bytes()).unwrap();
        assert_eq!((policy.otherwise, policy.on_error), (otherwise, on_error), "{preset:?}");
    }
}

#[test]
fn on_error_is_deny_unless_stated() {
    for (on_error, expected) in
        [("", Action::Deny), (r#","on_error":"deny""#, Action::Deny), (r#","on_error":"continue""#, Action::Continue)]
    {
        let text = format!(r#"{{"routes":[{{"clusters":["a"]}}],"otherwise":"continue"{on_error}}}"#);
        let policy = parse(text.as_bytes()).unwrap();
        assert_eq!((policy.otherwise, policy.on_error), (Action::Continue, expected), "{on_error}");
    }
}

#[test]
fn otherwise_has_no_default() {
    let error = parse(br#"{"routes":[{"clusters":["a"]}]}"#).unwrap_err();
    assert_eq!((error.path(), error.message()), ("", "otherwise is missing: continue or deny"));
}

#[test]
fn an_error_has_a_path_and_a_message() {
    let text =
        br#"{"routes":[{"action":"deny"},{"match":{"source":["10.0.0.0/33"]},"action":"deny"}],"otherwise":"deny"}"#;
    let error = parse(text).unwrap_err();
    assert_eq!(error.path(), "routes[1].match.source[0]");
    assert_eq!(error.message(), "\"10.0.0.0/33\" is not a CIDR without host bits, such as 10.0.0.0/8");
    let line = format!("sluice: plugin configuration: {}: {}", error.path(), error.message());
    assert_eq!(error.to_string(), line);
}

#[test]
fn the_documented_example_is_valid() {
    let module = include_str!("../config.rs");
    let example = module.split("//! ```json\n").nth(1).unwrap().split("//! ```").next().unwrap();
    let example = example.replace("//! ", "");
    let policy = parse(example.as_bytes()).unwrap();
    assert_eq!(policy.clusters, ["egress1", "egress2", "egress3"]);
    assert_eq!((policy.otherwise, policy.on_error), (Action::Deny, Action::Deny));
}

#[test]
fn clusters_with_the_same_hash_are_distinct() {
    let policy = parse(br#"{"routes":[{"clusters":["owcgfk","chebbo","owcgfk"]}],"otherwise":"deny"}"#).unwrap();
    assert_eq!(policy.clusters, ["owcgfk", "chebbo"]);
}

#[test]
fn other_texts_are_rejected_in_one_short_line() {
    for text in ["Standalone", " istio", "istio\n", "istio\0", "standalon", "standalone1", "[]", "\u{feff}{}"] {
        assert!(parse(text.as_bytes()).is_err(), "{text:?}");
    }
    assert_eq!(
        rejection(b"Standalone"),
        "sluice: plugin configuration: \"Standalone\" is neither a preset (standalone, istio) nor a JSON object"
    );
    let line = rejection(&[b'x'; 70_000]);
    assert!(line.contains("xxxx\"... (70000 bytes) is neither a preset"), "{line}");
    assert!(line.len() < 250, "{line}");
}

/// A table with these routes.
fn table(routes: &str) -> String {
    format!(r#"{{"routes":[{}],"otherwise":"deny"}}"#, routes.trim_end_matches(','))
}

/// A route to these clusters, followed by a comma.
fn route(names: impl Iterator<Item = String>) -> String {
    let names: String = names.map(|name| format!(r#""{name}","#)).collect();
    format!(r#"{{"clusters":[{}]}},"#, names.trim_end_matches(','))
}

#[test]
fn each_limit_can_be_reached_and_not_exceeded() {
    let routes = |count: usize| table(&r#"{"clusters":["a"]},"#.repeat(count));
    assert!(parse(routes(1_024).as_bytes()).is_ok());
    assert!(rejection(routes(1_025).as_bytes()).ends_with(" routes[1024]: more than 1024 routes"));

    let clusters = |count: usize| table(&route((0..count).map(|index| format!("c{index}"))));
    assert!(parse(clusters(256).as_bytes()).is_ok());
    assert!(rejection(clusters(257).as_bytes()).ends_with(" routes[0].clusters[256]: more than 256 clusters"));

    let different = |count: usize| {
        let names: std::vec::Vec<String> = (0..count).map(|index| format!("c{index}")).collect();
        table(&names.chunks(205).map(|names| route(names.iter().cloned())).collect::<String>())
    };
    assert!(parse(different(1_024).as_bytes()).is_ok());
    let error = rejection(different(1_025).as_bytes());
    assert!(error.ends_with("routes[4].clusters[204]: more than 1024 cluster names"), "{error}");

    let references = |count: usize| {
        let full = route((0..256).map(|_| "a".into())).repeat(count / 256);
        let rest = if !count.is_multiple_of(256) { route((0..count % 256).map(|_| "a".into())) } else { String::new() };
        table(&(full + &rest))
    };
    assert!(parse(references(16_384).as_bytes()).is_ok());
    let error = rejection(references(16_385).as_bytes());
    assert!(error.ends_with("routes[64].clusters[0]: more than 16384 cluster references"), "{error}");

    let name = |length: usize| table(&route(["n".repeat(length)].into_iter()));
    assert!(parse(name(1_024).as_bytes()).is_ok());
    assert!(rejection(name(1_025).as_bytes()).ends_with(" routes[0].clusters[0]: longer than 1024 bytes"));

    let sized = |size: usize| {
        let text = table(r#"{"clusters":["a"]}"#);
        let spaces = " ".repeat(size - text.len());
        text + &spaces
    };
    assert!(parse(sized(262_144).as_bytes()).is_ok());
    assert_eq!(rejection(sized(262_145).as_bytes()), "sluice: plugin configuration: longer than 262144 bytes");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text: std::vec::Vec<u8>) {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(at in 0_usize..200, byte: u8, cut in 0_usize..200) {
        let mut text = br#"{"routes":[{"match":{"source":["10.0.0.0/8"],"destination_ports":[80]},"clusters":["outbound|80||a","\u00e9"]},
{"match":{"sni":["*.example.com"]},"action":"deny"}],"otherwise":"deny","on_error":"continue"}"#.to_vec();
        let (at, cut) = (at.min(text.len().saturating_sub(1)), cut.min(text.len()));
        text[at] = byte;
        let _ = parse(&text);
        let _ = parse(&text[..cut]);
    }

    #[test]
    fn strings_parse_as_in_serde(name in "\\PC{1,40}", escaped in "[\u{0}-\u{10ffff}]{1,20}") {
        for name in [name, escaped] {
            let text = serde_json::json!({"routes": [{"clusters": [name]}], "otherwise": "deny"}).to_string();
            let policy = parse(text.as_bytes()).unwrap();
            proptest::prop_assert_eq!(&policy.clusters, &[name]);
        }
    }

    #[test]
    fn escapes_parse_as_in_serde(escapes in r#"(\\["\\/bfnrtu]|\\u[dD][89a-fA-F][0-9a-f]{2}|\\u[0-9a-f]{4}|[a-z]){1,8}"#) {
        let text = format!(r#"{{"routes":[{{"clusters":["{escapes}"]}}],"otherwise":"deny"}}"#);
        let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
        let theirs = theirs.map(|value| value["routes"][0]["clusters"][0].as_str().unwrap().to_owned());
        let ours = parse(text.as_bytes()).ok().map(|policy| policy.clusters[0].clone());
        proptest::prop_assert_eq!(ours, theirs, "{}", text);
    }

    #[test]
    fn utf8_is_checked_as_in_std(bytes in proptest::collection::vec(0x20_u8.., 1..6)) {
        let bytes: std::vec::Vec<u8> = bytes.into_iter().filter(|byte| !b"\"\\".contains(byte)).collect();
        let text = [br#"{"routes":[{"clusters":["x"#, &bytes[..], br#""]}],"otherwise":"deny"}"#].concat();
        proptest::prop_assert_eq!(parse(&text).is_ok(), core::str::from_utf8(&bytes).is_ok());
    }
}
