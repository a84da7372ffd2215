//! A hostile application against its own sidecar: the files that it can read, and the settings that it can change at the ports of
//! Envoy and Istio's agent on the pod's loopback interface.

use crate::{
    cluster::Cluster,
    hostile_pods::Pods,
    identity::{connect, hear},
    pod::{list, text},
    server,
    shipped::ROUTERS,
    sidecar_admin::admin,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

/// The arguments of a command that finds keys, certificates, tokens and sockets in a container.
const FIND: [&str; 18] = [
    "find", "/", "(", "-path", "/proc", "-o", "-path", "/sys", ")", "-prune", "-o", "(", "-type", "s", "-o", "-name",
    "*.pem", "-o",
];
const FIND_TOKENS: [&str; 6] = ["-name", "*token*", "-o", "-name", "*.key", ")"];

/// Expects that the application's container has no key, token or socket, and sees no process of the sidecar.
pub fn expect_no_credentials(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let find = [&FIND[..], &FIND_TOKENS, &["-print"]].concat();
    let found = pods.client.exec(cluster, "app", &find)?;
    ensure!(found.is_empty(), "the application found credentials or sockets: {found}");
    let control = pods.manifest.exec(cluster, "app", &find)?;
    ensure!(
        control.contains("/certs/key.pem"),
        "the control failed, the same command did not find an existing key: {control}"
    );
    // Abstract sockets belong to the network namespace, which the sidecar shares. Envoy's hot restart would open one.
    let sockets = pods.client.exec(cluster, "app", &["cat", "/proc/net/unix"])?;
    ensure!(sockets.lines().count() > 1 && !sockets.contains('@'), "abstract sockets: {sockets}");
    let processes = pods.client.exec(cluster, "app", &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr \"\\0\" \" \""])?;
    ensure!(
        processes.contains("sleep") && !processes.contains("envoy"),
        "the application sees the processes {processes}"
    );

    Ok(())
}

/// Expects that neither the application's account nor an anonymous user may read or change security-relevant resources.
pub fn expect_no_permissions(cluster: &Cluster) -> Result<()> {
    let mut reviews = Vec::new();
    for (user, group) in [
        ("system:serviceaccount:tenant-a:client", "system:authenticated"),
        ("system:anonymous", "system:unauthenticated"),
        ("administrator", "system:masters"), // as a control
    ] {
        for (verb, group_of, resource, subresource, namespace) in [
            ("create", "", "serviceaccounts", "token", "tenant-a"),
            ("create", "networking.istio.io", "envoyfilters", "", "tenant-a"),
            ("delete", "networking.k8s.io", "networkpolicies", "", "tenant-a"),
            ("create", "", "pods", "", "tenant-a"),
            ("create", "", "pods", "", "egress-routers"),
            ("create", "", "pods", "exec", "egress-routers"),
            ("update", "", "configmaps", "", "egress-routers"),
            ("get", "", "secrets", "", "istio-system"),
        ] {
            let what = json!({ "verb": verb, "group": group_of, "resource": resource, "subresource": subresource,
                "namespace": namespace });
            let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": { "user": user, "groups": [group], "resourceAttributes": what } });
            reviews.push(review);
        }
    }
    let reviews = json!({ "apiVersion": "v1", "kind": "List", "items": reviews }).to_string();
    let answered = cluster.kubectl_with(&["create", "--output=json", "--filename", "-"], &reviews)?;
    let mut counts = BTreeMap::<String, [usize; 2]>::new();
    for review in serde_json::Deserializer::from_str(&answered).into_iter::<Value>() {
        let review = review?;
        for review in if review["kind"] == "List" { list(&review, "/items") } else { vec![review] } {
            let count = counts.entry(text(&review, "/spec/user")?.to_owned()).or_default();
            count[0] += 1;
            count[1] += usize::from(review["status"]["allowed"] == true);
        }
    }
    println!("\npermissions asked for and granted: {counts:?}");
    let expected =
        [("administrator", [8, 8]), ("system:anonymous", [8, 0]), ("system:serviceaccount:tenant-a:client", [8, 0])];
    ensure!(counts.iter().map(|(user, count)| (user.as_str(), *count)).eq(expected), "{counts:?}");
    Ok(())
}

/// Returns the ports with listening sockets in the application's network namespace, all of which it can reach.
fn listening(cluster: &Cluster, pods: &Pods) -> Result<BTreeSet<u16>> {
    let sockets = pods.client.exec(cluster, "app", &["cat", "/proc/net/tcp", "/proc/net/tcp6"])?;
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        (*fields.get(3)? == "0A").then(|| u16::from_str_radix(port, 16).ok())?
    };
    Ok(sockets.lines().filter_map(port).collect())
}

/// A request to a port of the sidecar, and the expected status.
struct Request {
    method: &'static str,
    port: u16,
    path: &'static str,
    /// The status, or `None` if the answer may be lost with the process.
    status: Option<u16>,
}

const fn get(port: u16, path: &'static str, status: u16) -> Request {
    Request { method: "GET", port, path, status: Some(status) }
}

const fn post(port: u16, path: &'static str, status: Option<u16>) -> Request {
    Request { method: "POST", port, path, status }
}

/// The requests, from those that only read to those that end the sidecar.
const REQUESTS: [Request; 13] = [
    get(15000, "/config_dump", 200),
    get(15000, "/certs", 200),
    get(15020, "/stats/prometheus", 200),
    get(15021, "/healthz/ready", 200),
    get(15090, "/stats/prometheus", 200),
    post(15000, "/logging?level=warning", Some(200)),
    post(15000, "/runtime_modify?tried=1", Some(200)),
    post(15000, "/healthcheck/fail", Some(200)),
    post(15000, "/drain_listeners?inboundonly", Some(200)),
    post(15000, "/reset_counters", Some(200)),
    post(15000, "/drain_listeners", Some(200)),
    post(15000, "/quitquitquit", None),
    post(15020, "/quitquitquit", None),
];

/// Sends each request as the application, then connects to a destination of its own, and prints a table of the results. Returns
/// the rows of unexpected results and of connections that did not go through the tenant's router.
pub fn ask_the_sidecar(cluster: &Cluster, pods: &Pods) -> Result<Vec<String>> {
    let mut table = format!(
        "{:<58}  {:<6}  {:<28}  beginning of the answer\n",
        "request to its sidecar", "status", "connections then"
    );
    let mut wrong = Vec::new();
    let listening = listening(cluster, pods)?;
    for (request, last) in REQUESTS.iter().zip(200_u8..) {
        let to = SocketAddr::new(Ipv4Addr::new(198, 51, 100, last).into(), 5432);
        let url = format!("http://127.0.0.1:{}{}", request.port, request.path);
        if request.path == "/quitquitquit" {
            cluster.eventually("the restarted sidecar", |_| admin(&pods.client, "/server_info").map(drop))?;
        }
        let before = server::records().len();
        let (status, body) =
            pods.client.host.run(|| send(request.method, &url)).unwrap_or_else(|error| (0, format!("{error:#}")));
        let counts = connections(
            pods,
            to,
            if request.path.ends_with("quitquitquit") || request.path == "/drain_listeners" { 10 } else { 1 },
        );
        let seen: Vec<IpAddr> = server::records()[before..]
            .iter()
            .filter(|record| record.seen.to == to)
            .map(|record| record.seen.from)
            .collect();
        let shown: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let begin: String = body.chars().take(60).collect();
        let name = format!("{} :{}{}", request.method, request.port, request.path);
        let row = format!("{name:<58}  {status:<6}  {:<28}  {}", shown.join(", "), begin.escape_default());
        writeln!(table, "{row}")?;
        for from in seen {
            let by = pods.name_of(cluster, from)?;
            if by != ROUTERS[0] {
                wrong.push(format!("{row}: {to} was reached by {by}"));
            }
        }
        if request.status.is_some_and(|expected| expected != status) {
            wrong.push(format!("{row}: unexpected status"));
        }
        ensure!(!body.contains("PRIVATE KEY"), "{name} returned a private key");
    }
    println!("\n{table}listening: {listening:?}");
    Ok(wrong)
}

fn send(method: &str, url: &str) -> Result<(u16, String)> {
    let timeout = Some(Duration::from_secs(5));
    let mut answer = if method == "GET" {
        ureq::get(url).config().timeout_global(timeout).http_status_as_error(false).build().call()?
    } else {
        ureq::post(url).config().timeout_global(timeout).http_status_as_error(false).build().send_empty()?
    };
    let status = answer.status().as_u16();
    Ok((status, answer.body_mut().read_to_string().context("no body")?))
}

/// Connects `times` times, ten times a second, and counts the answered and refused connections.
fn connections(pods: &Pods, to: SocketAddr, times: u32) -> BTreeMap<&'static str, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let started = Instant::now();
        let answered = pods.client.host.run(|| hear(connect(to)?, b"hello")).is_ok();
        *counts.entry(if answered { "answered" } else { "refused" }).or_default() += 1;
        thread::sleep(Duration::from_millis(100).saturating_sub(started.elapsed()));
    }
    counts
}
