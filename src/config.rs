//! The plugin configuration's bytes → the table of routes, or an error that names the field.
//!
//! The shape is written down for people and editors in `schema/sluice.schema.json`.

use crate::{
    filter_state::Override,
    json::{Reader, one_of},
    line::Line,
    name,
    prefix::Prefix,
    route::{Action, Criterion, Entry, Range, Table, Way},
};

/// A configuration is at most this long, in bytes.
pub const MAX_SIZE: usize = 256 * 1_024;
/// A table has at most so many routes, and so many clusters of different names.
pub const MAX_ROUTES: usize = 1_024;
/// A route has at most so many clusters: a last octet reaches no more.
pub const MAX_CLUSTERS: usize = 256;

const STANDALONE: &[u8] = br#"{"routes":[{"clusters":["egress1","egress2"]}],"on_error":"continue"}"#;

/// An egress router's port 8081 takes what was meant for port 80, its port 8080 all the rest.
const ISTIO: &[u8] = br#"{"routes":[
{"match":{"destination_ports":[80]},"clusters":["outbound|8081||egress-router1.default.svc.cluster.local","outbound|8081||egress-router2.default.svc.cluster.local"]},
{"clusters":["outbound|8080||egress-router1.default.svc.cluster.local","outbound|8080||egress-router2.default.svc.cluster.local"]}
],"on_error":"continue"}"#;

/// The table that a plugin configuration asks for, or what is wrong with it as a line of the log. Nothing at all means
/// the preset `standalone`.
#[inline(never)]
pub fn parse(text: &[u8]) -> Result<Table, Line> {
    let mut text = if text.is_empty() { STANDALONE } else { preset(text).unwrap_or(text) };
    loop {
        let mut reader = Reader::new(text);
        let mut table = Table::default();
        let preset = read(&mut reader, text, &mut table);
        match (reader.into_error(), preset) {
            (Some(error), _) => return Err(error),
            (None, Some(preset)) => text = preset,
            (None, None) => return Ok(table),
        }
    }
}

fn preset(name: &[u8]) -> Option<&'static [u8]> {
    match one_of(&["standalone", "istio"], name) {
        0 => Some(STANDALONE),
        1 => Some(ISTIO),
        _ => None,
    }
}

/// Reads into the table, or gives the preset that is asked for.
#[inline(never)]
fn read(reader: &mut Reader<'_>, text: &[u8], to: &mut Table) -> Option<&'static [u8]> {
    if text.len() > MAX_SIZE {
        reader.fail("longer than 262144 bytes");
    }
    if !reader.is_object() {
        reader.fail_at(text, " is neither a preset (standalone, istio) nor a JSON object");
    }
    const ROUTES: usize = 0;
    const OTHERWISE: usize = 1;
    const ON_ERROR: usize = 2;
    let mut chosen = None;
    let mut scope = reader.object();
    while reader.field(&mut scope, &["routes", "otherwise", "on_error", "preset"]) {
        match scope.field {
            ROUTES => routes(reader, to),
            OTHERWISE => to.otherwise = action(reader),
            ON_ERROR => to.on_error = action(reader),
            _ => {
                let name = reader.string();
                chosen = preset(name.as_bytes());
                if chosen.is_none() {
                    reader.fail_at(name.as_bytes(), " is not a preset: standalone, istio");
                }
            }
        }
    }
    reader.end();
    if chosen.is_some() && scope.count > 1 {
        reader.fail("preset stands alone in its object");
    }
    if chosen.is_none() && !scope.has(ROUTES) {
        reader.fail("routes is missing");
    }
    chosen
}

fn routes(reader: &mut Reader<'_>, to: &mut Table) {
    const MATCH: usize = 0;
    const CLUSTERS: usize = 1;
    const ACTION: usize = 2;
    let mut list = reader.list();
    while reader.item(&mut list) {
        if list.count > MAX_ROUTES {
            reader.fail("one route too many: there may be 1024");
        }
        let start = to.ways.len();
        let mut way = None;
        let mut scope = reader.object();
        while reader.field(&mut scope, &["match", "clusters", "action"]) {
            match scope.field {
                MATCH => criteria(reader, to),
                CLUSTERS => clusters(reader, to),
                _ => way = Some(Way::Action(action(reader))),
            }
        }
        if scope.has(CLUSTERS) == scope.has(ACTION) {
            reader.fail("not exactly one of clusters and action");
        }
        let clusters = Way::Clusters(Range { start, end: to.ways.len() });
        to.entries.push(Entry::End(way.unwrap_or(clusters)));
    }
}

#[inline(never)]
fn criteria(reader: &mut Reader<'_>, to: &mut Table) {
    const CRITERIA: [Criterion; 4] =
        [Criterion::Source, Criterion::Destination, Criterion::DestinationPorts, Criterion::Sni];
    let mut scope = reader.object();
    while reader.field(&mut scope, &["source", "destination", "destination_ports", "sni"]) {
        let Some(&criterion) = CRITERIA.get(scope.field) else { return };
        to.needs |= criterion.bit();
        let mut list = reader.list();
        while reader.item(&mut list) {
            if criterion == Criterion::DestinationPorts {
                to.entries.push(Entry::Port(reader.port()));
                continue;
            }
            let text = reader.string();
            let text = text.as_bytes();
            if criterion == Criterion::Sni {
                if !name::is_pattern(text) {
                    reader.fail_at(text, " is not a server name, nor *. and one");
                }
                let start = to.names.len();
                to.names.extend_from_slice(text);
                to.entries.push(Entry::Name(Range { start, end: to.names.len() }));
                continue;
            }
            match Prefix::parse(text) {
                Some(prefix) => to.entries.push(Entry::Prefix(criterion, prefix)),
                None => reader.fail_at(text, " is not a CIDR"),
            }
        }
    }
}

#[inline(never)]
fn clusters(reader: &mut Reader<'_>, to: &mut Table) {
    let mut list = reader.list();
    while reader.item(&mut list) {
        let name = reader.string();
        if name.is_empty() {
            reader.fail("an empty name");
        }
        if list.count > MAX_CLUSTERS {
            reader.fail("one cluster too many: a last octet reaches 256");
        }
        let index = to.clusters.iter().position(|known| known.cluster == name).unwrap_or(to.clusters.len());
        if index == to.clusters.len() {
            to.clusters.push(Override::new(name));
        }
        match u16::try_from(index) {
            Ok(index) if usize::from(index) < MAX_ROUTES => to.ways.push(index),
            _ => reader.fail("one cluster too many: a table may name 1024"),
        }
    }
}

fn action(reader: &mut Reader<'_>) -> Action {
    let text = reader.string();
    match one_of(&["continue", "deny"], text.as_bytes()) {
        0 => return Action::Continue,
        1 => {}
        _ => reader.fail_at(text.as_bytes(), " is neither continue nor deny"),
    }
    Action::Deny
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        format,
        string::{String, ToString},
    };

    fn refusal(text: &[u8]) -> String {
        String::from_utf8(parse(text).unwrap_err().bytes().to_vec()).unwrap()
    }

    #[test]
    fn nothing_means_standalone() {
        let standalone = parse(b"standalone").unwrap();
        assert_eq!(parse(b"").unwrap(), standalone);
        assert_eq!(parse(br#"{"preset": "standalone"}"#).unwrap(), standalone);
        assert_ne!(parse(b"istio").unwrap(), standalone);
        assert_eq!(parse(br#"{"preset": "istio"}"#), parse(b"istio"));
    }

    #[test]
    fn the_presets_continue_where_nothing_else_is_said() {
        for preset in [&b"standalone"[..], b"istio"] {
            let table = parse(preset).unwrap();
            assert_eq!((table.otherwise, table.on_error), (Action::Continue, Action::Continue));
        }
    }

    #[test]
    fn fields_that_are_not_given_have_their_written_meaning() {
        let table = parse(br#"{"routes":[{"clusters":["a"]}]}"#).unwrap();
        assert_eq!((table.otherwise, table.on_error), (Action::Continue, Action::Deny));
        assert_eq!(table.needs, 0);
    }

    #[test]
    fn a_text_that_is_no_preset_is_named_in_one_short_line() {
        for text in ["Standalone", " istio", "istio\n", "istio\0", "standalon", "standalone1", "[]", "\u{feff}{}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(
            refusal(b"Standalone"),
            "sluice: plugin configuration: \"Standalone\" is neither a preset (standalone, istio) nor a JSON object"
        );
        let line = refusal(&[b'x'; 70_000]);
        assert!(line.contains("xxxx\"... (70000 bytes) is neither a preset"), "{line}");
        assert!(line.len() < 250, "{line}");
    }

    #[test]
    fn each_limit_is_reached_and_not_passed() {
        let routes = |count: usize| {
            let route = r#"{"clusters":["a"]},"#.repeat(count);
            format!(r#"{{"routes":[{}]}}"#, route.trim_end_matches(','))
        };
        assert_eq!(parse(routes(1_024).as_bytes()).unwrap().entries.len(), 1_024);
        assert!(refusal(routes(1_025).as_bytes()).ends_with(" routes[1024]: one route too many: there may be 1024"));

        let clusters = |count: usize| {
            let names: String = (0..count).map(|index| format!(r#""c{index}","#)).collect();
            format!(r#"{{"clusters":[{}]}}"#, names.trim_end_matches(','))
        };
        let text = format!(r#"{{"routes":[{}]}}"#, clusters(256));
        assert_eq!(parse(text.as_bytes()).unwrap().clusters.len(), 256);
        let text = format!(r#"{{"routes":[{}]}}"#, clusters(257));
        assert!(
            refusal(text.as_bytes())
                .ends_with(" routes[0].clusters[256]: one cluster too many: a last octet reaches 256")
        );

        let distinct = |count: usize| {
            let routes: String = (0..count).map(|index| format!(r#"{{"clusters":["c{index}"]}},"#)).collect();
            format!(r#"{{"routes":[{}]}}"#, routes.trim_end_matches(','))
        };
        assert_eq!(parse(distinct(1_024).as_bytes()).unwrap().clusters.len(), 1_024);

        let name = |length: usize| format!(r#"{{"routes":[{{"clusters":["{}"]}}]}}"#, "n".repeat(length));
        assert!(parse(name(1_024).as_bytes()).is_ok());
        assert!(refusal(name(1_025).as_bytes()).ends_with(" routes[0].clusters[0]: longer than 1024 bytes"));

        let sized = |size: usize| {
            let text = r#"{"routes":[{"clusters":["a"]}]}"#;
            String::from(text) + &" ".repeat(size - text.len())
        };
        assert!(parse(sized(262_144).as_bytes()).is_ok());
        assert_eq!(refusal(sized(262_145).as_bytes()), "sluice: plugin configuration: longer than 262144 bytes");
    }

    #[test]
    fn more_clusters_than_a_table_may_name_are_refused() {
        let names: String = (0..5)
            .map(|route| {
                let names: String = (0..250).map(|index| format!(r#""{route}c{index}","#)).collect();
                format!(r#"{{"clusters":[{}]}},"#, names.trim_end_matches(','))
            })
            .collect();
        let text = format!(r#"{{"routes":[{}]}}"#, names.trim_end_matches(','));
        assert!(
            refusal(text.as_bytes()).ends_with("routes[4].clusters[24]: one cluster too many: a table may name 1024")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: std::vec::Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn no_damage_makes_the_parser_panic(at in 0_usize..200, byte: u8, cut in 0_usize..200) {
            let mut text = std::vec::Vec::from(ISTIO);
            let (at, cut) = (at.min(text.len().saturating_sub(1)), cut.min(text.len()));
            text[at] = byte;
            let _ = parse(&text);
            let _ = parse(&text[..cut]);
        }

        #[test]
        fn every_string_is_read_as_serde_reads_it(name in "\\PC{1,40}", escaped in "[\u{0}-\u{10ffff}]{1,20}") {
            for name in [name, escaped] {
                let text = serde_json::json!({"routes": [{"clusters": [name]}]}).to_string();
                let table = parse(text.as_bytes()).unwrap();
                proptest::prop_assert_eq!(&table.clusters[0].cluster, &name);
            }
        }

        #[test]
        fn escapes_are_read_as_serde_reads_them(escapes in r#"(\\["\\/bfnrtu]|\\u[dD][89a-fA-F][0-9a-f]{2}|\\u[0-9a-f]{4}|[a-z]){1,8}"#) {
            let text = format!(r#"{{"routes":[{{"clusters":["{escapes}"]}}]}}"#);
            let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
            let theirs = theirs.map(|value| String::from(value["routes"][0]["clusters"][0].as_str().unwrap()));
            let ours = parse(text.as_bytes()).ok().map(|table| table.clusters[0].cluster.clone());
            proptest::prop_assert_eq!(ours, theirs, "{}", text);
        }
    }
}
