//! What a configuration does with a connection, and why: the module's own code, on the command line.
//!
//! `explain CONFIG SOURCE DESTINATION [SNI]`, or `explain --table CONFIG CONNECTIONS` for a file of such lines. CONFIG is
//! a file with the plugin configuration, or a preset's name. Exit code: 2 for a configuration, an address or a line that
//! is refused.

use sluice::{
    address::{self, Endpoint},
    config,
    json::MAX_STRING,
    route::{self, Action, Connection, Criterion, Decision, Table},
};
use std::{env, fs, process::ExitCode};

const USAGE: &str = "usage: explain CONFIG SOURCE DESTINATION [SNI]
       explain --table CONFIG CONNECTIONS

CONFIG       a file with the plugin configuration, or standalone or istio
SOURCE       10.0.0.2:1234, [2001:db8::2]:1234, or without the port; - for no IP address
DESTINATION  likewise; the port is needed where some route asks for it
CONNECTIONS  a file with a line SOURCE DESTINATION [SNI] for each connection";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let explained = match *arguments {
        ["--table", config, connections] => explain_file(config, connections),
        [config, source, destination] => explain_one(config, source, destination, ""),
        [config, source, destination, name] => explain_one(config, source, destination, name),
        _ => Err(USAGE.to_owned()),
    };
    match explained {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn explain_one(config: &str, source: &str, destination: &str, name: &str) -> Result<String, String> {
    let table = load(config)?;
    let connection = connection(&table, source, destination, name)?;
    let decision = table.decide(&connection);
    let mut text = String::new();
    if !matches!(decision, Decision::Unreadable(_)) {
        for (index, unmet) in unmet(&table, &connection).enumerate() {
            match unmet {
                Some(criterion) => text += &format!("routes[{index}]: {} does not match\n", field(criterion)),
                None => {
                    text += &format!("routes[{index}]: matches\n");
                    break;
                }
            }
        }
    }
    Ok(text + &outcome(&table, decision) + "\n")
}

fn explain_file(config: &str, connections: &str) -> Result<String, String> {
    let table = load(config)?;
    let lines = fs::read_to_string(connections).map_err(|error| format!("{connections}: {error}"))?;
    let mut text = String::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let connection = match *words {
            [] => continue,
            [source, destination] => connection(&table, source, destination, ""),
            [source, destination, name] => connection(&table, source, destination, name),
            _ => Err("not SOURCE DESTINATION [SNI]".to_owned()),
        };
        let connection = connection.map_err(|error| format!("{connections}:{number}: {error}"))?;
        let decision = table.decide(&connection);
        let route = match decision {
            Decision::Unreadable(_) => None,
            _ => unmet(&table, &connection).position(|criterion| criterion.is_none()),
        };
        let route = route.map_or("-".to_owned(), |index| format!("routes[{index}]"));
        text += &format!("{line}\t{route}\t{}\n", outcome(&table, decision));
    }
    Ok(text)
}

/// Of each route the first criterion that the connection does not meet; none where the route matches.
fn unmet<'a>(table: &'a Table, connection: &'a Connection<'_>) -> impl Iterator<Item = Option<Criterion>> + 'a {
    let mut rest = table.routes();
    std::iter::from_fn(move || {
        let (_, unmet) = route::route(&mut rest, connection)?;
        let criteria = [Criterion::Source, Criterion::Destination, Criterion::DestinationPorts, Criterion::Sni];
        Some(criteria.into_iter().find(|criterion| unmet & *criterion as u8 != 0))
    })
}

fn load(config: &str) -> Result<Table, String> {
    let text = match config {
        "standalone" | "istio" => config.as_bytes().to_vec(),
        file => fs::read(file).map_err(|error| format!("{file}: {error}"))?,
    };
    config::parse(&text).map_err(|line| String::from_utf8_lossy(line.bytes()).into_owned())
}

fn connection<'a>(table: &Table, source: &str, destination: &str, name: &'a str) -> Result<Connection<'a>, String> {
    let asks_for_port = table.needs & Criterion::DestinationPorts as u8 != 0;
    if name.len() > MAX_STRING {
        return Err(format!("SNI: longer than {MAX_STRING} bytes"));
    }
    Ok(Connection {
        source: address("SOURCE", source, true)?,
        destination: address("DESTINATION", destination, !asks_for_port)?,
        name: name.as_bytes(),
    })
}

fn address(argument: &str, text: &str, may_lack_port: bool) -> Result<Option<Endpoint>, String> {
    if text == "-" {
        return Ok(None);
    }
    let with_port = [format!("{text}:0"), format!("[{text}]:0")];
    let mut texts = [text].into_iter().chain(with_port.iter().map(String::as_str).filter(|_| may_lack_port));
    let parsed = texts.find_map(|text| address::parse(text.as_bytes()));
    let wanted = if may_lack_port { "IP address" } else { "IP address and port, and a route asks for the port" };
    parsed.map(Some).ok_or_else(|| format!("{argument}: {text} is no {wanted}"))
}

fn outcome(table: &Table, decision: Decision) -> String {
    match decision {
        Decision::Cluster(place) => format!("cluster {}", String::from_utf8_lossy(table.cluster(place).name)),
        Decision::Action(action) => word(action).to_owned(),
        Decision::Unreadable(criterion) => {
            format!("on_error: {}, as the {} is no IP address", word(table.on_error), field(criterion))
        }
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Continue => "continue: tcp_proxy's own cluster",
        Action::Deny => "deny",
    }
}

fn field(criterion: Criterion) -> &'static str {
    match criterion {
        Criterion::Source => "source",
        Criterion::Destination => "destination",
        Criterion::DestinationPorts => "destination_ports",
        Criterion::Sni => "sni",
    }
}
