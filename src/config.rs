//! The plugin configuration's bytes → the table of routes, or an error that names the field.
//!
//! The shape is written down for people and editors in `schema/sluice.schema.json`.

use crate::{
    filter_state,
    json::{Reader, one_of},
    line::Line,
    name,
    prefix::Prefix,
    route::{Action, Cluster, Criterion, Entry, Range, Table},
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
pub fn parse(text: &[u8]) -> Result<Table, Line> {
    let mut table = Table::default();
    let error = read(text, &mut table);
    if error.bytes().is_empty() { Ok(table) } else { Err(error) }
}

/// The same, into a table that is empty: what is wrong, an empty line where nothing is.
#[inline(never)]
pub fn read(text: &[u8], to: &mut Table) -> Line {
    let mut reader = Reader::new(if text.is_empty() { STANDALONE } else { text });
    if text.len() > MAX_SIZE {
        reader.fail("longer than 262144 bytes");
    }
    while let Some(preset) = table(&mut reader, to) {
        reader.begin(preset);
    }
    reader.into_error()
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
fn table(reader: &mut Reader<'_>, to: &mut Table) -> Option<&'static [u8]> {
    if !reader.is_object() {
        let chosen = preset(reader.rest());
        if chosen.is_none() {
            reader.refuse_rest(" is neither a preset (standalone, istio) nor a JSON object");
        }
        return chosen;
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
                chosen = preset(reader.string());
                if chosen.is_none() {
                    reader.refuse(" is not a preset: standalone, istio");
                }
            }
        }
    }
    reader.end();
    if chosen.is_none() {
        if !scope.has(ROUTES) {
            reader.fail("routes is missing");
        }
    } else if scope.count > 1 {
        reader.fail("preset stands alone in its object");
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
        let mut to_action = None;
        let mut scope = reader.object();
        while reader.field(&mut scope, &["match", "clusters", "action"]) {
            match scope.field {
                MATCH => criteria(reader, to),
                CLUSTERS => clusters(reader, to),
                _ => to_action = Some(action(reader)),
            }
        }
        if scope.has(CLUSTERS) == scope.has(ACTION) {
            reader.fail("not exactly one of clusters and action");
        }
        to.entries.push(match to_action {
            Some(action) => Entry::Action(action),
            None => Entry::Clusters(Range { start, end: to.ways.len() }),
        });
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
            let entry = match criterion {
                Criterion::DestinationPorts => Entry::Prefix(criterion, Prefix::of_port(reader.port())),
                Criterion::Sni => Entry::Name(server_name(reader, to)),
                _ => match Prefix::parse(reader.string()) {
                    Some(prefix) => Entry::Prefix(criterion, prefix),
                    None => return reader.refuse(" is not a CIDR"),
                },
            };
            to.entries.push(entry);
        }
    }
}

fn server_name(reader: &mut Reader<'_>, to: &mut Table) -> Range {
    let start = to.texts.len();
    to.texts.extend_from_slice(reader.string());
    if !name::is_pattern(reader.text()) {
        reader.refuse(" is not a server name, nor *. and one");
    }
    Range { start, end: to.texts.len() }
}

#[inline(never)]
fn clusters(reader: &mut Reader<'_>, to: &mut Table) {
    let mut list = reader.list();
    while reader.item(&mut list) {
        if reader.string().is_empty() {
            reader.fail("an empty name");
        }
        if list.count > MAX_CLUSTERS {
            reader.fail("one cluster too many: a last octet reaches 256");
        }
        let index = cluster(reader.text(), to);
        if index >= MAX_ROUTES {
            reader.fail("one cluster too many: a table may name 1024");
        }
        to.ways.push(index);
    }
}

/// The index of the cluster of this name, which becomes the last one where it is not there.
fn cluster(name: &[u8], to: &mut Table) -> usize {
    let count = to.clusters.len();
    if let Some(index) = (0..count).find(|&index| to.name(index) == name) {
        return index;
    }
    let start = to.texts.len();
    filter_state::encode(name, &mut to.texts);
    let end = to.texts.len();
    let start_of_name = end.wrapping_sub(name.len());
    to.clusters.push(Cluster { message: Range { start, end }, name: Range { start: start_of_name, end } });
    count
}

fn action(reader: &mut Reader<'_>) -> Action {
    match one_of(&["continue", "deny"], reader.string()) {
        0 => return Action::Continue,
        1 => {}
        _ => reader.refuse(" is neither continue nor deny"),
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
                proptest::prop_assert_eq!(table.name(0), name.as_bytes());
            }
        }

        #[test]
        fn escapes_are_read_as_serde_reads_them(escapes in r#"(\\["\\/bfnrtu]|\\u[dD][89a-fA-F][0-9a-f]{2}|\\u[0-9a-f]{4}|[a-z]){1,8}"#) {
            let text = format!(r#"{{"routes":[{{"clusters":["{escapes}"]}}]}}"#);
            let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
            let theirs = theirs.map(|value| value["routes"][0]["clusters"][0].as_str().unwrap().as_bytes().to_vec());
            let ours = parse(text.as_bytes()).ok().map(|table| table.name(0).to_vec());
            proptest::prop_assert_eq!(ours, theirs, "{}", text);
        }
    }
}
