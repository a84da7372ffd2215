//! The plugin configuration's bytes → the table of routes, or an error that names the field.
//!
//! The shape is written down for people and editors in `schema/sluice.schema.json`.

use crate::{
    json::{Reader, one_of},
    line::Line,
    name,
    prefix::Prefix,
    route::{Action, Criterion, Table},
};

/// A configuration is at most this long, in bytes.
pub const MAX_SIZE: usize = 256 * 1_024;
/// A table has at most so many routes, and so many clusters of different names.
pub const MAX_ROUTES: usize = 1_024;
/// A route has at most so many clusters: a last octet reaches no more.
pub const MAX_CLUSTERS: usize = 256;

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
    let mut reader = Reader::new(text);
    if text.len() > MAX_SIZE {
        reader.fail("longer than 262144 bytes");
    }
    if reader.is_object() {
        table(&mut reader, to);
    } else if !preset(if text.is_empty() { b"standalone" } else { text }, to) {
        reader.refuse_rest(" is neither a preset (standalone, istio) nor a JSON object");
    }
    reader.into_error()
}

/// Fills the table as the preset of this name says; whether there is one.
#[inline(never)]
fn preset(name: &[u8], to: &mut Table) -> bool {
    to.on_error = Action::Continue;
    match one_of("standalone istio", name) {
        0 => pair(&mut { *b"egress1" }, 6, to),
        1 => {
            let mut name = *b"outbound|8081||egress-router1.default.svc.cluster.local";
            // An egress router's port 8081 takes what was meant for port 80, its port 8080 all the rest.
            to.needs = Criterion::DestinationPorts as u8;
            to.add_port(80);
            pair(&mut name, 28, to);
            name[12] = b'0';
            pair(&mut name, 28, to);
        }
        _ => return false,
    }
    true
}

/// Ends a route, to two clusters: of this name, and of that with 2 where this has 1.
#[inline(never)]
fn pair(name: &mut [u8], place: usize, to: &mut Table) {
    let start = to.next_way();
    for _ in 0..2 {
        let cluster = to.add_cluster(name);
        to.add_way(cluster);
        if let Some(digit) = name.get_mut(place) {
            *digit ^= b'1' ^ b'2';
        }
    }
    to.end_with_clusters(start);
}

fn table(reader: &mut Reader<'_>, to: &mut Table) {
    const ROUTES: usize = 0;
    const OTHERWISE: usize = 1;
    const ON_ERROR: usize = 2;
    const PRESET: usize = 3;
    let mut scope = reader.object();
    while reader.field(&mut scope, "routes otherwise on_error preset") {
        match scope.field {
            ROUTES => routes(reader, to),
            OTHERWISE => to.otherwise = action(reader),
            ON_ERROR => to.on_error = action(reader),
            _ => {
                if !preset(reader.string(), to) {
                    reader.refuse(" is not a preset: standalone, istio");
                }
            }
        }
    }
    reader.end();
    if !scope.has(PRESET) {
        if !scope.has(ROUTES) {
            reader.fail("routes is missing");
        }
    } else if scope.count > 1 {
        reader.fail("preset stands alone");
    }
}

fn routes(reader: &mut Reader<'_>, to: &mut Table) {
    const MATCH: usize = 0;
    const CLUSTERS: usize = 1;
    const ACTION: usize = 2;
    let mut list = reader.list();
    while reader.item(&mut list) {
        if list.count > MAX_ROUTES {
            reader.fail("more than 1024 routes");
        }
        let start = to.next_way();
        let mut to_action = None;
        let mut scope = reader.object();
        while reader.field(&mut scope, "match clusters action") {
            match scope.field {
                MATCH => criteria(reader, to),
                CLUSTERS => clusters(reader, to),
                _ => to_action = Some(action(reader)),
            }
        }
        if scope.has(CLUSTERS) == scope.has(ACTION) {
            reader.fail("not exactly one of clusters and action");
        }
        match to_action {
            Some(action) => to.end_with_action(action),
            None => to.end_with_clusters(start),
        }
    }
}

#[inline(never)]
fn criteria(reader: &mut Reader<'_>, to: &mut Table) {
    const CRITERIA: [Criterion; 4] =
        [Criterion::Source, Criterion::Destination, Criterion::DestinationPorts, Criterion::Sni];
    let mut scope = reader.object();
    while reader.field(&mut scope, "source destination destination_ports sni") {
        let Some(&criterion) = CRITERIA.get(scope.field) else { return };
        to.needs |= criterion as u8;
        let mut list = reader.list();
        while reader.item(&mut list) {
            match criterion {
                Criterion::DestinationPorts => to.add_port(reader.port()),
                Criterion::Sni => {
                    if !name::is_pattern(reader.string()) {
                        reader.refuse(" is not a server name, nor *. and one");
                    }
                    to.add_name(reader.text());
                }
                _ => match Prefix::parse(reader.string()) {
                    Some(prefix) => to.add_prefix(criterion, &prefix),
                    None => reader.refuse(" is not a CIDR"),
                },
            }
        }
    }
}

#[inline(never)]
fn clusters(reader: &mut Reader<'_>, to: &mut Table) {
    let mut list = reader.list();
    while reader.item(&mut list) {
        if reader.string().is_empty() {
            reader.fail("an empty name");
        }
        if list.count > MAX_CLUSTERS {
            reader.fail("more than 256 clusters");
        }
        let cluster = cluster(reader, to);
        to.add_way(cluster);
    }
}

/// The place of the cluster whose name was read, which becomes the last one where it is not there.
fn cluster(reader: &mut Reader<'_>, to: &mut Table) -> usize {
    let (mut place, mut count) = (0, 0_usize);
    while place < to.end_of_clusters() {
        let known = to.cluster(place);
        if known.name == reader.text() {
            return place;
        }
        place = known.next;
        count = count.wrapping_add(1);
    }
    if count >= MAX_ROUTES {
        reader.fail("more than 1024 clusters in the table");
    }
    to.add_cluster(reader.text())
}

fn action(reader: &mut Reader<'_>) -> Action {
    match one_of("continue deny", reader.string()) {
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
    fn the_presets_are_tables_that_one_can_write() {
        let standalone = br#"{"routes":[{"clusters":["egress1","egress2"]}],"on_error":"continue"}"#;
        assert_eq!(parse(b"standalone"), parse(standalone));
        let istio = br#"{"routes":[
            {"match":{"destination_ports":[80]},"clusters":[
                "outbound|8081||egress-router1.default.svc.cluster.local",
                "outbound|8081||egress-router2.default.svc.cluster.local"]},
            {"clusters":[
                "outbound|8080||egress-router1.default.svc.cluster.local",
                "outbound|8080||egress-router2.default.svc.cluster.local"]}
        ],"on_error":"continue"}"#;
        assert_eq!(parse(b"istio"), parse(istio));
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
        assert!(parse(routes(1_024).as_bytes()).is_ok());
        assert!(refusal(routes(1_025).as_bytes()).ends_with(" routes[1024]: more than 1024 routes"));

        let clusters = |count: usize| {
            let names: String = (0..count).map(|index| format!(r#""c{index}","#)).collect();
            format!(r#"{{"clusters":[{}]}}"#, names.trim_end_matches(','))
        };
        let text = format!(r#"{{"routes":[{}]}}"#, clusters(256));
        assert!(parse(text.as_bytes()).is_ok());
        let text = format!(r#"{{"routes":[{}]}}"#, clusters(257));
        assert!(refusal(text.as_bytes()).ends_with(" routes[0].clusters[256]: more than 256 clusters"));

        let distinct = |count: usize| {
            let routes: String = (0..count).map(|index| format!(r#"{{"clusters":["c{index}"]}},"#)).collect();
            format!(r#"{{"routes":[{}]}}"#, routes.trim_end_matches(','))
        };
        assert!(parse(distinct(1_024).as_bytes()).is_ok());

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
        assert!(refusal(text.as_bytes()).ends_with("routes[4].clusters[24]: more than 1024 clusters in the table"));
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
        fn every_string_is_read_as_serde_reads_it(name in "\\PC{1,40}", escaped in "[\u{0}-\u{10ffff}]{1,20}") {
            for name in [name, escaped] {
                let text = serde_json::json!({"routes": [{"clusters": [name]}]}).to_string();
                let table = parse(text.as_bytes()).unwrap();
                proptest::prop_assert_eq!(table.cluster(0).name, name.as_bytes());
            }
        }

        #[test]
        fn escapes_are_read_as_serde_reads_them(escapes in r#"(\\["\\/bfnrtu]|\\u[dD][89a-fA-F][0-9a-f]{2}|\\u[0-9a-f]{4}|[a-z]){1,8}"#) {
            let text = format!(r#"{{"routes":[{{"clusters":["{escapes}"]}}]}}"#);
            let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
            let theirs = theirs.map(|value| value["routes"][0]["clusters"][0].as_str().unwrap().as_bytes().to_vec());
            let ours = parse(text.as_bytes()).ok().map(|table| table.cluster(0).name.to_vec());
            proptest::prop_assert_eq!(ours, theirs, "{}", text);
        }
    }
}
