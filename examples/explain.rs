//! Shows what a configuration does with a connection, and why. It runs the code of the module on the command line.
//!
//! `explain CONFIG SOURCE DESTINATION [SNI]`, or `explain --table CONFIG CONNECTIONS` for a file of such lines. CONFIG is
//! a file with the plugin configuration, or the name of a preset. The exit code is 2 on any error.

use sluice::{
    address::{Endpoint, parse_endpoint},
    config,
    document::MAX_STRING,
    policy::{Action, ConnectionInfo, Decision, Policy, Side},
    routes::Criterion,
};
use std::{env, fs, process::ExitCode};

const USAGE: &str = "usage: explain CONFIG SOURCE DESTINATION [SNI]
       explain --table CONFIG CONNECTIONS

CONFIG       a file with the plugin configuration, or standalone or istio
SOURCE       10.0.0.2:1234, [2001:db8::2]:1234, or without the port; - for an address that is not an IP address
DESTINATION  likewise; the port is required if a route asks for it
CONNECTIONS  a file with a line SOURCE DESTINATION [SNI] for each connection";

/// The criteria in the order in which they are reported, and their names in the configuration.
const CRITERIA: [(Criterion, &str); 4] = [
    (Criterion::Source, "source"),
    (Criterion::Destination, "destination"),
    (Criterion::DestinationPorts, "destination_ports"),
    (Criterion::Sni, "sni"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let explained = match *arguments {
        ["--table", config, connections] => explain_file(config, connections),
        [config, source, destination] => explain_one(config, source, destination, ""),
        [config, source, destination, server_name] => explain_one(config, source, destination, server_name),
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

fn explain_one(config: &str, source: &str, destination: &str, server_name: &str) -> Result<String, String> {
    let policy = load(config)?;
    let connection = connection(&policy, source, destination, server_name)?;
    let decision = policy.decide(&connection);
    let mut text = String::new();
    if !matches!(decision, Decision::Unreadable(_)) {
        for (index, (unmet, _)) in policy.routes.evaluate(&connection).enumerate() {
            match CRITERIA.iter().find(|(criterion, _)| unmet.contains(*criterion)) {
                Some((_, name)) => text += &format!("routes[{index}]: {name} does not match\n"),
                None => {
                    text += &format!("routes[{index}]: matches\n");
                    break;
                }
            }
        }
    }
    Ok(text + &describe(&policy, decision) + "\n")
}

fn explain_file(config: &str, connections: &str) -> Result<String, String> {
    let policy = load(config)?;
    let lines = fs::read_to_string(connections).map_err(|error| format!("{connections}: {error}"))?;
    let mut text = String::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let connection = match *words {
            [] => continue,
            [source, destination] => connection(&policy, source, destination, ""),
            [source, destination, server_name] => connection(&policy, source, destination, server_name),
            _ => Err("expected SOURCE DESTINATION [SNI]".to_owned()),
        };
        let connection = connection.map_err(|error| format!("{connections}:{number}: {error}"))?;
        let decision = policy.decide(&connection);
        let route = match decision {
            Decision::Unreadable(_) => None,
            _ => policy.routes.evaluate(&connection).position(|(unmet, _)| unmet.is_empty()),
        };
        let route = route.map_or("-".to_owned(), |index| format!("routes[{index}]"));
        text += &format!("{line}\t{route}\t{}\n", describe(&policy, decision));
    }
    Ok(text)
}

fn load(config: &str) -> Result<Box<Policy>, String> {
    let text = match config {
        "standalone" | "istio" => config.as_bytes().to_vec(),
        file => fs::read(file).map_err(|error| format!("{file}: {error}"))?,
    };
    config::parse(&text).map_err(|error| error.to_string())
}

fn connection<'a>(
    policy: &Policy,
    source: &str,
    destination: &str,
    server_name: &'a str,
) -> Result<ConnectionInfo<'a>, String> {
    if server_name.len() > MAX_STRING {
        return Err(format!("SNI: longer than {MAX_STRING} bytes"));
    }
    let reads_port = policy.routes.criteria().contains(Criterion::DestinationPorts);
    Ok(ConnectionInfo {
        source: address("SOURCE", source, true)?,
        destination: address("DESTINATION", destination, !reads_port)?,
        server_name: server_name.as_bytes(),
    })
}

fn address(argument: &str, text: &str, port_is_optional: bool) -> Result<Option<Endpoint>, String> {
    if text == "-" {
        return Ok(None);
    }
    let with_port = [format!("{text}:0"), format!("[{text}]:0")];
    let mut texts = [text].into_iter().chain(with_port.iter().map(String::as_str).filter(|_| port_is_optional));
    let parsed = texts.find_map(|text| parse_endpoint(text.as_bytes()));
    let expected = if port_is_optional { "an IP address" } else { "an IP address and port; a route asks for the port" };
    parsed.map(Some).ok_or_else(|| format!("{argument}: {text} is not {expected}"))
}

fn describe(policy: &Policy, decision: Decision) -> String {
    let description = match decision {
        Decision::Cluster(index) => format!("cluster {}", policy.cluster(index)),
        Decision::Action(action) => describe_action(action).to_owned(),
        Decision::Unreadable(side) => {
            let side = match side {
                Side::Source => "source",
                Side::Destination => "destination",
            };
            format!("on_error: {}, because the {side} is not an IP address", describe_action(policy.on_error))
        }
    };
    description + if policy.observes { " (not applied: mode is observe)" } else { "" }
}

fn describe_action(action: Action) -> &'static str {
    match action {
        Action::Continue => "continue: tcp_proxy's own cluster",
        Action::Deny => "deny",
    }
}
