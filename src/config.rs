//! The plugin configuration's bytes → the table of routes, or an error that names the field.
//!
//! The shape is written down for people and editors in `schema/sluice.schema.json`.

use crate::{
    address,
    filter_state::Override,
    json::{Failed, Reader},
    line::Line,
    name::Pattern,
    prefix::Prefix,
    route::{Action, Route, Table},
    structure,
};
use alloc::vec::Vec;

/// A configuration is at most this long, in bytes.
pub const MAX_SIZE: usize = 256 * 1_024;
/// A table has at most so many routes, and so many clusters of different names.
pub const MAX_ROUTES: usize = 1_024;
/// A route has at most so many clusters: a last octet reaches no more.
pub const MAX_CLUSTERS: usize = 256;

const STANDALONE: &[u8] =
    br#"{"routes":[{"clusters":["egress1","egress2"]}],"otherwise":"continue","on_error":"continue"}"#;

/// An egress router's port 8081 takes what was meant for port 80, its port 8080 all the rest.
const ISTIO: &[u8] = br#"{"routes":[
{"match":{"destination_ports":[80]},"clusters":["outbound|8081||egress-router1.default.svc.cluster.local","outbound|8081||egress-router2.default.svc.cluster.local"]},
{"clusters":["outbound|8080||egress-router1.default.svc.cluster.local","outbound|8080||egress-router2.default.svc.cluster.local"]}
],"otherwise":"continue","on_error":"continue"}"#;

/// The table that a plugin configuration asks for, or what is wrong with it as a line of the log. Nothing at all means
/// the preset `standalone`.
pub fn parse(text: &[u8]) -> Result<Table, Line> {
    // Bytes that are too many are not made into a text that may be six times as long.
    let json = if text.len() > MAX_SIZE { None } else { structure::to_json(text) };
    let text = preset(text).or(json.as_deref()).unwrap_or(text);
    let mut reader = Reader::new(text);
    let mut table = Table::default();
    match read(&mut reader, text, &mut table) {
        Ok(()) => Ok(table),
        Err(Failed) => Err(reader.into_error()),
    }
}

fn preset(name: &[u8]) -> Option<&'static [u8]> {
    match name {
        b"" | b"standalone" => Some(STANDALONE),
        b"istio" => Some(ISTIO),
        _ => None,
    }
}

fn read(reader: &mut Reader<'_>, text: &[u8], to: &mut Table) -> Result<(), Failed> {
    if text.len() > MAX_SIZE {
        return Err(reader.fail("longer than 262144 bytes"));
    }
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(reader.fail_at(text, " is neither a preset (standalone, istio) nor a JSON object"));
    }
    table(reader, to)
}

fn table(reader: &mut Reader<'_>, to: &mut Table) -> Result<(), Failed> {
    let mut chosen = None;
    let mut scope = reader.object()?;
    while let Some(field) = reader.field(&mut scope, &["routes", "otherwise", "on_error", "preset"])? {
        match field {
            0 => {
                let mut list = reader.list()?;
                while reader.item(&mut list)? {
                    route(reader, to)?;
                }
            }
            1 => to.otherwise = action(reader)?,
            2 => to.on_error = action(reader)?,
            _ => {
                let name = reader.string()?;
                chosen = preset(name.as_bytes()).filter(|_| !name.is_empty());
                if chosen.is_none() {
                    return Err(reader.fail_at(name.as_bytes(), " is not a preset: standalone, istio"));
                }
            }
        }
    }
    reader.end()?;
    if let Some(preset) = chosen {
        if scope.count() > 1 {
            return Err(reader.fail("preset stands alone in its object"));
        }
        return table(&mut Reader::new(preset), to);
    }
    if scope.has(0) { Ok(()) } else { Err(reader.fail("routes is missing")) }
}

fn route(reader: &mut Reader<'_>, to: &mut Table) -> Result<(), Failed> {
    if to.routes.len() == MAX_ROUTES {
        return Err(reader.fail("one route too many: there may be 1024"));
    }
    let mut route = Route::default();
    let mut scope = reader.object()?;
    while let Some(field) = reader.field(&mut scope, &["match", "clusters", "action"])? {
        match field {
            0 => criteria(reader, &mut route)?,
            1 => clusters(reader, &mut route, &mut to.clusters)?,
            _ => route.action = action(reader)?,
        }
    }
    if scope.has(1) == scope.has(2) {
        return Err(reader.fail("not exactly one of clusters and action"));
    }
    to.needs_destination |= !route.destinations.is_empty() || !route.ports.is_empty();
    to.needs_name |= !route.names.is_empty();
    to.routes.push(route);
    Ok(())
}

fn criteria(reader: &mut Reader<'_>, route: &mut Route) -> Result<(), Failed> {
    let mut scope = reader.object()?;
    while let Some(field) = reader.field(&mut scope, &["source", "destination", "destination_ports", "sni"])? {
        let mut list = reader.list()?;
        while reader.item(&mut list)? {
            if field == 2 {
                let digits = reader.digits()?;
                match address::number(digits, 10) {
                    Some(port) if port > 0 => route.ports.push(port),
                    _ => return Err(reader.fail_at(digits, " is not a port")),
                }
                continue;
            }
            let text = reader.string()?;
            let text = text.as_bytes();
            if field == 3 {
                match Pattern::parse(text) {
                    Some(name) => route.names.push(name),
                    None => return Err(reader.fail_at(text, " is not a server name, nor *. and one")),
                }
                continue;
            }
            let prefixes = if field == 0 { &mut route.sources } else { &mut route.destinations };
            match Prefix::parse(text) {
                Some(prefix) => prefixes.push(prefix),
                None => return Err(reader.fail_at(text, " is not a CIDR")),
            }
        }
    }
    Ok(())
}

fn clusters(reader: &mut Reader<'_>, route: &mut Route, known: &mut Vec<Override>) -> Result<(), Failed> {
    let mut list = reader.list()?;
    while reader.item(&mut list)? {
        let name = reader.string()?;
        if name.is_empty() {
            return Err(reader.fail("an empty name"));
        }
        if route.clusters.len() == MAX_CLUSTERS {
            return Err(reader.fail("one cluster too many: a last octet reaches 256"));
        }
        let index = known.iter().position(|known| known.cluster == name).unwrap_or(known.len());
        if index == known.len() {
            known.push(Override::new(name));
        }
        match u16::try_from(index) {
            Ok(index) if usize::from(index) < MAX_ROUTES => route.clusters.push(index),
            _ => return Err(reader.fail("one cluster too many: a table may name 1024")),
        }
    }
    Ok(())
}

fn action(reader: &mut Reader<'_>) -> Result<Action, Failed> {
    let text = reader.string()?;
    match text.as_bytes() {
        b"continue" => Ok(Action::Continue),
        b"deny" => Ok(Action::Deny),
        other => Err(reader.fail_at(other, " is neither continue nor deny")),
    }
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
        assert!(!table.needs_destination && !table.needs_name);
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
        assert_eq!(parse(routes(1_024).as_bytes()).unwrap().routes.len(), 1_024);
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
