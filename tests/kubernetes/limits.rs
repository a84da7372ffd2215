//! A tenant that scans and holds connections, while a client of another tenant uses the same routers.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, on_cluster},
    get,
    hostile_pods::{Pods, with_pods},
    identity::{authenticate, connect, hear, proxy_header},
    module_delivery::restoring,
    outside,
    pod::{Pod, list},
    server,
    shipped::{ROUTERS, ROUTERS_NAMESPACE, expected_router},
    tls,
};
use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use socket2::{Domain, Socket, Type};
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Read,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The attacking tenant's port on its router.
const PORT: u16 = 8090;
/// The minimum duration of an attack.
const ATTACK: Duration = Duration::from_secs(15);
/// The number of connections that an attack holds open.
const HELD: usize = 2_000;
/// The numbers of connections that strangers open at once: those that the NetworkPolicy stops, and those that reach the routers. On
/// this cluster a process in user space decides about the first packet of each connection, so larger numbers would delay all other
/// connections. The test of the Docker example has 2,000.
const STOPPED: usize = 200;
const STRANGERS: usize = 500;
/// The port of a server that accepts connections and sends nothing.
const SILENT: u16 = 7008;

/// Generates destinations that refuse connections. Each destination is used only once.
#[derive(Default)]
struct Refusing(AtomicU32);

impl Refusing {
    fn next(&self) -> SocketAddr {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let host = 140 + u8::try_from(number / 40_000 % 60).expect("less than 60");
        SocketAddr::new([198, 51, 100, host].into(), 10_000 + u16::try_from(number % 40_000).expect("less than 40,000"))
    }
}

/// The port and path of the operator's queries.
const ADMIN: &str = "15000/stats?filter=server.live";
const READY: &str = "8082/ready";
/// The timeout of the operator's queries.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The results of the good client and of the operator of the attacked routers during an attack.
#[derive(Default)]
struct Seen {
    answered: usize,
    lost: BTreeMap<String, usize>,
    /// The slowest answers: to the good client, of the admin interface, of the readiness probe, and of the readiness probe of a
    /// router that is not attacked, which shows the load of the machine itself.
    slowest: [Duration; 4],
}

/// Runs an attack while a client of another tenant connects and an operator queries the routers. Prints and checks their results.
fn during_attack<T: Send>(
    cluster: &Cluster,
    routers: &[Pod],
    what: &str,
    attack: impl FnOnce() -> Result<T> + Send,
    show: impl FnOnce(&T) -> String,
) -> Result<T> {
    let client = cluster.clients.iter().find(|client| expected_router(client.addresses[0]) == ROUTERS[0]);
    let client = client.context("no client of the attacked router")?;
    let control = cluster.pods(ROUTERS_NAMESPACE, &format!("app={}", ROUTERS[1]))?.pop().context("no other router")?;
    let (hello, ended) = (client_hello("a.example.com")?, AtomicBool::new(false));
    let (seen, done) = thread::scope(|scope| {
        let goes_on = || !ended.load(Ordering::Relaxed);
        let good = scope.spawn(move || {
            let mut seen = Seen::default();
            while goes_on() {
                let began = Instant::now();
                match server::ask(&client.host, outside(0, 443), &hello) {
                    Ok(_) => seen.answered += 1,
                    Err(error) => *seen.lost.entry(format!("{error:#}")).or_default() += 1,
                }
                seen.slowest[0] = seen.slowest[0].max(began.elapsed());
                thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        let asked = routers.iter().flat_map(|router| [(router, ADMIN, 1), (router, READY, 2)]);
        let operators: Vec<_> = asked
            .chain([(&control, READY, 3)])
            .map(|(router, path, index)| {
                let slowest = scope.spawn(move || {
                    let mut slowest = Duration::ZERO;
                    while goes_on() {
                        let began = Instant::now();
                        let answer = router.host.run(|| get(&format!("http://127.0.0.1:{path}")));
                        // A failed query counts as the timeout.
                        slowest = slowest.max(if answer.is_ok() { began.elapsed() } else { QUERY_TIMEOUT });
                        thread::sleep(Duration::from_millis(50));
                    }
                    slowest
                });
                (index, slowest)
            })
            .collect();
        let done = attack();
        thread::sleep(Duration::from_secs(2)); // includes the aftermath of the attack
        ended.store(true, Ordering::Relaxed);
        let mut seen = good.join().expect("a thread panicked");
        for (index, slowest) in operators {
            let slowest = slowest.join().expect("a thread panicked");
            seen.slowest[index] = seen.slowest[index].max(slowest);
        }
        (seen, done)
    });
    let done = done.with_context(|| what.to_owned())?;
    let lost = seen.lost.values().sum::<usize>();
    let [client, admin, ready, other] = seen.slowest.map(|slowest| slowest.as_secs_f32());
    println!(
        "{what:<48} {:<44} {:>5} {lost:>5} {client:>9.2} {admin:>7.2} {ready:>7.2} {other:>7.2}",
        show(&done),
        seen.answered + lost
    );
    ensure!(lost == 0 && seen.answered >= 20, "{what}: {} answered, lost {:?}", seen.answered, seen.lost);
    ensure!(seen.slowest[1] < Duration::from_secs(1), "{what}: the admin interface took {:?}", seen.slowest[1]);
    // The kubelet waits a second for the answer to a probe.
    ensure!(seen.slowest[2] < Duration::from_secs(1), "{what}: a readiness probe took {:?}", seen.slowest[2]);
    Ok(done)
}

/// The number of connections that a scan tries to open per second: more than a sidecar admits, and as many as possible.
const BY_SIDECAR: u32 = 500;
const DIRECTLY: u32 = 4_000;
/// How long a scan keeps each connection open.
const KEPT: Duration = Duration::from_secs(3);

/// Opens connections from several threads in a pod, at most at this rate. Returns the number of attempts.
fn scan<T>(pod: &Pod, rate: u32, open: impl Fn(usize) -> Result<T> + Sync) -> usize {
    const THREADS: u32 = 8;
    let (count, until) = (AtomicUsize::new(0), Instant::now() + ATTACK);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                pod.host.run(|| {
                    let mut kept = VecDeque::new();
                    let mut next = Instant::now();
                    while next < until {
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                        next =
                            next.max(Instant::now() - Duration::from_secs(1)) + Duration::from_secs(1) * THREADS / rate;
                        kept.push_back((next, open(count.fetch_add(1, Ordering::Relaxed))));
                        while kept.front().is_some_and(|(since, _)| since.elapsed() > KEPT) {
                            kept.pop_front();
                        }
                    }
                });
            });
        }
    });
    count.into_inner()
}

/// Returns the sum of a counter over these routers.
fn counted(routers: &[Pod], name: &str) -> Result<u64> {
    let mut sum = 0;
    for router in routers {
        let stats = router.host.run(|| get(&format!("http://127.0.0.1:15000/stats?filter=^{name}$")))?;
        let (_, count) = stats.trim().rsplit_once(": ").with_context(|| format!("no {name}: {stats}"))?;
        sum += count.parse::<u64>()?;
    }
    Ok(sum)
}

/// Starts connections from a pod to these addresses without waiting. Returns the sockets, and the number of connections that are
/// established after a second.
fn start_connections(pod: &Pod, to: &[SocketAddr], count: usize) -> Result<(Vec<Socket>, usize)> {
    pod.host.run(|| {
        let mut sockets = Vec::new();
        for address in to.iter().cycle().take(count) {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            _ = socket.connect(&(*address).into()); // in progress
            sockets.push(socket);
        }
        thread::sleep(Duration::from_secs(1));
        let established = sockets.iter().filter(|socket| socket.peer_addr().is_ok()).count();
        Ok((sockets, established))
    })
}

/// Repeatedly opens connections without a certificate, which the router closes. Returns the average number of established ones.
fn hold_strangers(pod: &Pod, to: &[SocketAddr], count: usize, say: &[u8]) -> Result<usize> {
    let (until, mut open) = (Instant::now() + ATTACK, Vec::new());
    while Instant::now() < until {
        let (sockets, established) = start_connections(pod, to, count)?;
        sockets.iter().for_each(|socket| _ = socket.send(say));
        open.push(established);
        thread::sleep(Duration::from_secs(2));
    }
    Ok(open.iter().sum::<usize>() / open.len().max(1))
}

/// Holds authenticated connections to the silent server. Returns the number of connections that stayed open to the end.
fn hold_authenticated(pod: &Pod, to: SocketAddr, header: &[u8], own: &Arc<ClientConfig>) -> Result<usize> {
    let began = Instant::now();
    let mut held = Vec::new();
    for _ in 0..HELD {
        held.extend(pod.host.run(|| authenticate(to, header, own)));
    }
    thread::sleep(ATTACK.saturating_sub(began.elapsed()));
    let mut open = 0;
    for connection in &mut held {
        connection.sock.set_nonblocking(true)?;
        let ended = connection.read(&mut [0; 16]);
        open += usize::from(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    Ok(open)
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_tenant_that_scans_or_holds_connections_does_not_disturb_others() -> Result<()> {
    on_cluster(|cluster| {
        cluster.outside.call("ip", "route replace local 198.51.100.128/25 dev lo")?;
        let silent = cluster.outside.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, SILENT)))?;
        thread::spawn(move || silent.incoming().collect::<Vec<_>>());
        with_pods(cluster, |pods| attack(cluster, pods))
    })
}

fn attack(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let routers = cluster.pods(ROUTERS_NAMESPACE, &format!("app={}", ROUTERS[0]))?;
    let ports: Vec<SocketAddr> = routers.iter().map(|router| SocketAddr::new(router.addresses[0], PORT)).collect();
    let own = tls::client(Some(&pods.own_certificate(cluster)?))?;
    let (labelled, refusing) = (&pods.labelled, Refusing::default());
    let source = labelled.addresses[0];
    println!(
        "\n{:<48} {:<44} {:>5} {:>5} {:>9} {:>7} {:>7} {:>7}",
        "attack by another tenant, or by a stranger",
        "extent",
        "good",
        "lost",
        "slowest s",
        "admin s",
        "ready s",
        "other s"
    );
    let rest = || {
        thread::sleep(ATTACK);
        Ok(())
    };
    during_attack(cluster, &routers, "none", rest, |()| String::new())?;

    let report = |count: &(usize, u64)| format!("{} attempts, {} reached the routers", count.0, count.1);
    let refused = || counted(&routers, "cluster.tenant-a.upstream_cx_connect_fail");
    let by_sidecar = || {
        let before = refused()?;
        let attempts = scan(&pods.client, BY_SIDECAR, |_| connect(refusing.next()));
        Ok((attempts, refused()? - before))
    };
    let (attempts, reached) = during_attack(cluster, &routers, "scan through its sidecar", by_sidecar, report)?;
    ensure!(
        reached > 300 && attempts as u64 > reached,
        "the sidecar must limit the scan: {attempts} attempts, {reached} reached the routers"
    );

    let directly = || {
        let before = refused()?;
        let attempts = scan(labelled, DIRECTLY, |number| {
            authenticate(ports[number % ports.len()], &proxy_header(source, refusing.next()), &own)
        });
        Ok((attempts, refused()? - before))
    };
    let (_, reached) =
        during_attack(cluster, &routers, "scan with its certificate, past the sidecar", directly, report)?;
    ensure!(reached > 300, "only {reached} connections reached the routers: too small a scan");

    for (name, pod) in [("a pod without the label", &pods.bare), ("a pod of a foreign namespace", &pods.foreign)] {
        let what = format!("{STOPPED} connections of {name}");
        let show = |open: &usize| format!("{open} established");
        let open = during_attack(cluster, &routers, &what, || hold_strangers(pod, &ports, STOPPED, b""), show)?;
        ensure!(open == 0, "{what}: {open} established");
    }

    let header = proxy_header(source, outside(0, SILENT));
    let show = |open: &usize| format!("{open} established on average");
    for (what, say) in [("connections without a header", &b""[..]), ("with a header, without TLS", &header[..])] {
        let what = format!("{STRANGERS} {what}");
        let open = during_attack(cluster, &routers, &what, || hold_strangers(labelled, &ports, STRANGERS, say), show)?;
        ensure!(open > STRANGERS / 2, "{what}: {open} established");
    }
    let what = format!("{HELD} with its certificate, idle, to one pod");
    let hold = || hold_authenticated(labelled, ports[0], &header, &own);
    let open = during_attack(cluster, &routers, &what, hold, |open| format!("{open} open to the end"))?;
    // The router's pod admits up to 2,000 connections of a tenant, so all of them may stay open. At least half of them must.
    ensure!(open >= 1_000, "{what}: only {open} stayed open");

    for router in cluster.pods(ROUTERS_NAMESPACE, &format!("app={}", ROUTERS[0]))? {
        let statuses = list(&router.object, "/status/containerStatuses");
        ensure!(statuses.iter().all(|one| one["ready"] == true && one["restartCount"] == 0), "{statuses:?}");
        ensure!(routers.iter().any(|before| before.name == router.name), "{} is new", router.name);
    }
    Ok(())
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn refused_and_allowed_destinations_share_the_rate_limit_of_a_tenant() -> Result<()> {
    on_cluster(|cluster| {
        let outcome = restoring(cluster, |cluster| {
            let file = cluster.manifests.join("egress-routers/common/egress-router.yaml");
            let (text, usual) =
                (fs::read_to_string(&file)?, "max_tokens: 1000, tokens_per_fill: 500, fill_interval: 1s");
            ensure!(text.matches(usual).count() == 3, "not one rate limit for each tenant");
            fs::write(&file, text.replace(usual, "max_tokens: 10, tokens_per_fill: 1, fill_interval: 60s"))?;
            cluster.apply()?;
            cluster.routers_rolled_out()?;
            with_pods(cluster, |pods| expect_shared_limit(cluster, pods))
        });
        cluster.routers_rolled_out()?;
        outcome
    })
}

fn expect_shared_limit(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let routers = cluster.pods(ROUTERS_NAMESPACE, &format!("app={}", ROUTERS[0]))?;
    let router = SocketAddr::new(routers[0].addresses[0], PORT);
    let own = tls::client(Some(&pods.own_certificate(cluster)?))?;
    let ask = |to: SocketAddr| {
        let header = proxy_header(pods.labelled.addresses[0], to);
        pods.labelled.host.run(|| hear(authenticate(router, &header, &own)?, b"hello"))
    };
    ask(outside(0, 5432))?;
    for _ in 0..20 {
        ensure!(ask("10.0.0.1:80".parse()?).is_err(), "a private destination answered");
    }
    let limited = counted(&routers[..1], "local_rate_limit.tenant-a.rate_limited")?;
    println!("{limited} of 20 refused connections were over the limit");
    ensure!(limited >= 5, "only {limited} connections over the limit");
    ensure!(ask(outside(0, 5432)).is_err(), "refused connections did not count");
    Ok(())
}
