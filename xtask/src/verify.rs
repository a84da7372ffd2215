//! `make verify`: inspects a cluster with kubectl and prints where the clients' connections leave, and what is wrong.

mod kubectl;
mod routers;
mod sidecar;

use anyhow::{Context, Result, ensure};
use kubectl::{addresses, exec, list, log, name, pods};
use serde_json::Value;
use sidecar::Sidecar;
use std::{
    collections::BTreeSet,
    env,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// The time that the routers may take to log a connection: they log it when it has ended, and write once a second.
const LOGGED: Duration = Duration::from_secs(10);

/// The maximum length of a printed line, in characters.
const LINE: usize = 1_000;

/// Checks all pods that SELECTOR matches (default: `egress=sluice`) and the egress routers. Connects from each pod to
/// `HOST:PORT`, if given. ROUTERS_NAMESPACE is the routers' namespace (default: `egress-routers`), MANIFESTS the folder of
/// the manifests that should be in force (default: `istio`). Fails if something is wrong.
pub fn run(to: Option<&str>) -> Result<()> {
    let variable = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.into());
    let selector = variable("SELECTOR", "egress=sluice");
    let clients = pods(&selector)?;
    ensure!(!clients.is_empty(), "no pod has the labels {selector}");
    let started = Instant::now();
    let routers = routers::Routers::of(&variable("ROUTERS_NAMESPACE", "egress-routers"))?;
    let mut wrong = routers.wrong(&variable("MANIFESTS", "istio"));
    for pod in &clients {
        let name = name(pod)?;
        say(name);
        let found = check(pod, to, &routers).unwrap_or_else(|error| vec![format!("{error:#}")]);
        wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    if let Some(to) = to {
        for pod in missing(&clients, &routers.pods, to, started)? {
            wrong.push(format!("{}: its connection to {to} is not in the routers' logs", name(pod)?));
        }
    }
    let (rows, unread) = seen(&routers.pods, &clients, "10m");
    wrong.extend(unread);
    say("");
    let heading = ["source", "identity", "egress router"];
    say(&format!("{:<39} {:<48} {:<16} destination (last ten minutes)", heading[0], heading[1], heading[2]));
    for Row { source, identity, router, destination } in &rows {
        say(&format!("{source:<39} {identity:<48} {router:<16} {destination}"));
    }
    for pod in clients.iter().filter(|pod| to.is_none() && !rows.iter().any(|row| addresses(pod).contains(&row.source)))
    {
        say(&format!("{}: no connection in the routers' logs; set TO=HOST:PORT to make one", name(pod)?));
    }
    for what in &wrong {
        say(&format!("WRONG: {what}"));
    }
    ensure!(wrong.is_empty(), "{} problems found", wrong.len());
    Ok(())
}

/// Prints a line. Escapes control characters and cuts long lines, because parts of the text come from tenants.
fn say(line: &str) {
    println!("{}", printable(line));
}

fn printable(line: &str) -> String {
    let mut text: String = line
        .chars()
        .take(LINE)
        // Characters that move the cursor, and characters that reorder text.
        .map(|letter| match letter {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                letter.escape_unicode().to_string()
            }
            letter if letter.is_control() => letter.escape_default().to_string(),
            letter => letter.into(),
        })
        .collect();
    if line.chars().nth(LINE).is_some() {
        text.push('…');
    }
    text
}

/// Connects from a pod, prints its sidecar's counters and the listeners that are not covered, and returns what is wrong with it.
fn check(pod: &Value, to: Option<&str>, routers: &routers::Routers) -> Result<Vec<String>> {
    if let Some(to) = to {
        connect(pod, to)?;
    }
    let Some(sidecar) = Sidecar::of(pod)? else {
        return Ok(vec!["no container istio-proxy: without a sidecar there is no filter".into()]);
    };
    for (counter, value) in sidecar.counters() {
        say(&format!("  {counter}: {value}"));
    }
    for listener in sidecar.not_covered() {
        say(&format!("  not covered: plain HTTP to the outside on {listener}"));
    }
    sidecar.wrong(pod, routers)
}

fn connect(pod: &Value, to: &str) -> Result<()> {
    let (host, port) = to.rsplit_once(':').context("TO: expected HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let containers = list(&pod["spec"]["containers"]);
    let names = containers.iter().filter_map(|container| container["name"].as_str());
    let container = names.into_iter().find(|name| *name != "istio-proxy").context("no container but the sidecar")?;
    // Keeps the sending side open: Envoy may drop a client that closes it at once. The routers' logs decide, not nc's status.
    let script = "sleep 2 | nc -w 3 \"$0\" \"$1\"";
    match exec(pod, container, &["sh", "-c", script, host, port]) {
        Ok(answer) => say(&format!("  tried {to} from the container {container}: received {} bytes", answer.len())),
        Err(error) => say(&format!("  tried {to} from the container {container}: {error:#}")),
    }
    Ok(())
}

/// Returns the clients whose connection since `started` no router has logged.
fn missing<'a>(clients: &'a [Value], routers: &[Value], to: &str, started: Instant) -> Result<Vec<&'a Value>> {
    let port = &to[to.rfind(':').context("TO: expected HOST:PORT")?..];
    // The name in TO may have any address.
    let is_wanted = |destination: &str| match to.parse::<SocketAddr>() {
        Ok(to) => destination == to.to_string(),
        Err(_) => destination.ends_with(port),
    };
    let waiting = Instant::now();
    loop {
        let since = format!("{}s", started.elapsed().as_secs() + 1);
        let (rows, _) = seen(routers, clients, &since);
        let of = |pod: &Value| {
            let addresses = addresses(pod);
            rows.iter().any(|row| addresses.contains(&row.source) && is_wanted(&row.destination))
        };
        let missing: Vec<&Value> = clients.iter().filter(|pod| !of(pod)).collect();
        if missing.is_empty() || waiting.elapsed() > LOGGED {
            return Ok(missing);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// A connection that a router forwarded.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    /// The address that the PROXY header claims.
    source: String,
    /// The SPIFFE ID in the client's certificate.
    identity: String,
    router: String,
    destination: String,
}

/// Returns the clients' connections that the routers forwarded, according to their access logs, and why a log cannot be read.
fn seen(routers: &[Value], clients: &[Value], since: &str) -> (BTreeSet<Row>, Vec<String>) {
    let sources: Vec<String> = clients.iter().flat_map(addresses).collect();
    let (mut rows, mut unread) = (BTreeSet::new(), Vec::new());
    for router in routers {
        let log = log(router, "envoy", &format!("--since={since}")).unwrap_or_else(|error| {
            unread.push(format!("{}: {error:#}", name(router).unwrap_or_default()));
            String::new()
        });
        for line in log.lines() {
            // kubectl's timestamp, then a JSON object. Envoy's own messages are not JSON.
            let Some(Ok(entry)) = line.split_once(' ').map(|(_, entry)| serde_json::from_str::<Value>(entry)) else {
                continue;
            };
            let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let source = field("source");
            let source = source.rsplit_once(':').map_or(&*source, |(address, _)| address);
            let source = source.trim_start_matches('[').trim_end_matches(']').to_owned();
            // A connection without an upstream was refused.
            if sources.contains(&source) && entry["upstream"].is_string() {
                let (identity, destination) = (field("identity"), field("destination"));
                rows.insert(Row { source, identity, router: routers::app(router), destination });
            }
        }
    }
    (rows, unread)
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn lines_of_a_tenant_cannot_move_the_cursor_or_fill_the_screen() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nWRONG: c\u{202e}d é"), "a\\u{1b}[2Jb\\r\\nWRONG: c\\u{202e}d é");
        assert_eq!(printable(&"x".repeat(5_000)).chars().count(), super::LINE + 1);
    }
}
