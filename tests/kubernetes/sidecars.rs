//! Native and classic sidecars: the start of an application, the end of a Job, and the memory of a sidecar.

use crate::{
    cluster::{Cluster, on_cluster},
    conversations,
    module_delivery::{deliver_by, restoring},
    outside,
    pod::{self, Pod, list, manifest, specification, with_applied},
    policies::{BARE, CLIENT_POLICIES, without_policies},
    server,
    shipped::expected_router,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    thread,
    time::Duration,
};
use testbed::Module;

/// Labels of a pod whose connections sluice routes.
pub const WITH_SLUICE: &str = "app: tried, egress: sluice, sidecar.istio.io/inject: \"true\"";
/// The annotation that makes a sidecar a classic one.
pub const CLASSIC: &str = "sidecar.istio.io/nativeSidecar: \"false\"";
/// The annotation of client.yaml.
const HOLD: &str = "proxy.istio.io/config: \"{ \\\"holdApplicationUntilProxyStarts\\\": true }\"";

/// A command that connects to a server of each family, sends its pod's addresses and prints the answers. The servers send first.
/// The command's input exists before it connects and does not end, because a client that half-closes at once may get no answer.
pub const CONNECT: &str = "for to in 198.51.100.7 2001:db8::7; do rm -f /tmp/$to; mkfifo /tmp/$to; \
     (exec 3<>/tmp/$to; echo $IPS >&3; nc -w 5 $to 25 <&3) & done; wait; echo";

/// Checks that every connection since this record came through the router of the pod that opened it. Returns the number of
/// connections by the addresses that the pod sent.
pub fn routed(cluster: &Cluster, since: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    cluster.eventually("the sources of the connections", |cluster| {
        counts = count_routed(cluster, since)?; // fails as long as a connection has not ended
        Ok(())
    })?;
    Ok(counts)
}

fn count_routed(cluster: &Cluster, since: usize) -> Result<BTreeMap<String, usize>> {
    let routers = cluster.routers()?;
    let mut counts = BTreeMap::new();
    for record in &server::records()[since..] {
        let name = String::from_utf8_lossy(&record.received).trim().to_owned();
        let own: Vec<IpAddr> = name
            .split(',')
            .map(|address| Ok(address.parse()?))
            .collect::<Result<_>>()
            .with_context(|| format!("the client did not send its addresses: {record:?}"))?;
        let (from, to) = (record.seen.from, record.seen.to.ip());
        let source = own
            .into_iter()
            .find(|address| address.is_ipv4() == to.is_ipv4())
            .context("the pod has no address of this family")?;
        let router = routers.iter().find(|router| router.addresses.contains(&from)).map_or("no router", Pod::app);
        ensure!(router == expected_router(source), "{name}: {record:?} came from {router}");
        *counts.entry(name).or_default() += 1;
    }
    Ok(counts)
}

/// Returns the addresses of a pod in the format of `$IPS`.
pub fn addresses(pod: &Pod) -> String {
    pod.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// Returns the status of a container or a native sidecar.
fn status(pod: &Value, container: &str) -> Result<Value> {
    let statuses = [list(pod, "/status/initContainerStatuses"), list(pod, "/status/containerStatuses")].concat();
    statuses.into_iter().find(|status| status["name"] == container).with_context(|| format!("no status of {container}"))
}

/// Checks that a sidecar is native, which is an init container that keeps running, or classic, which is a regular container.
fn expect_kind(pod: &Value, native: bool) -> Result<()> {
    let init = list(pod, "/spec/initContainers").into_iter().find(|container| container["name"] == "istio-proxy");
    let own = list(pod, "/spec/containers").iter().any(|container| container["name"] == "istio-proxy");
    let restarts = init.is_some_and(|sidecar| sidecar["restartPolicy"] == "Always");
    ensure!((restarts, own) == (native, !native), "native: {restarts}, classic: {own}, of {}", pod["spec"]);
    Ok(())
}

#[test]
fn the_first_connections_of_an_application_do_not_bypass_its_sidecar() -> Result<()> {
    on_cluster(|cluster| {
        let both = format!("{CLASSIC}, {HOLD}");
        // The name, the annotations, whether the sidecar is native, and whether the application waits for it.
        let kinds = [
            ("native", "", true, true),
            ("native-hold", HOLD, true, true),
            ("classic", CLASSIC, false, false),
            ("classic-hold", &both, false, true),
        ];
        let command = format!("{CONNECT}; echo done; sleep infinity");
        let pods: String =
            kinds.iter().map(|kind| manifest("default", kind.0, WITH_SLUICE, kind.1, &command)).collect();
        let bare = manifest("default", "bare", BARE, "", &command);
        // Without the policies, because they would stop connections that are not redirected.
        without_policies(cluster, "default", &CLIENT_POLICIES, || {
            let mut since = server::records().len();
            with_applied(cluster, &bare, || {
                let bare = cluster.ready_pods("default", "app=tried")?.pop().context("no pod")?;
                cluster.eventually("connections of a pod without a sidecar", |_| {
                    let records = server::records();
                    let own = |record: &&server::Record| bare.addresses.contains(&record.seen.from);
                    ensure!(records[since..].iter().filter(own).count() == 2, "{:?}", &records[since..]);
                    Ok(())
                })
            })?;
            since = server::records().len();
            with_applied(cluster, &pods, || {
                let mut pods = cluster.ready_pods("default", "app=tried")?;
                cluster.eventually("the first connections", |cluster| {
                    pods.iter().try_for_each(|pod| {
                        let log = pod.log(cluster, "app")?;
                        ensure!(log.contains("done"), "{}: {log}", pod.name);
                        Ok(())
                    })
                })?;
                let counts = routed(cluster, since)?;
                pods = cluster.pods("default", "app=tried")?;
                ensure!(pods.len() == kinds.len(), "{} pods", pods.len());
                println!("sidecar       node   started after the sidecar  first connections routed");
                for (name, _, native, waits) in kinds {
                    let pod = pods.iter().find(|pod| pod.name == name).context("no pod")?;
                    expect_kind(&pod.object, native)?;
                    let count = counts.get(&addresses(pod)).copied().unwrap_or(0);
                    let started = |container: &str| -> Result<u32> {
                        let status = status(&pod.object, container)?;
                        seconds(pod::text(&status, "/state/running/startedAt")?)
                    };
                    let after = (86_400 + started("app")? - started("istio-proxy")?) % 86_400;
                    println!("{name:<12}  {:<5}  {after:>2} s                       {count} of 2", pod.node);
                    ensure!(!waits || count == 2, "{name}: {count} of 2: {}", pod.log(cluster, "app")?);
                    for (port, says) in conversations()? {
                        for family in [0, 1] {
                            cluster.expect_routed(pod, outside(family, port), &says)?;
                        }
                    }
                }
                Ok(())
            })
        })
    })
}

/// Returns the second of the day of a timestamp such as 2026-11-25T03:42:09Z.
fn seconds(timestamp: &str) -> Result<u32> {
    let (_, time) = timestamp.trim_end_matches('Z').split_once('T').context("no time in the timestamp")?;
    time.split(':').try_fold(0, |sum, part| Ok(sum * 60 + part.parse::<u32>()?))
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_job_completes_if_its_sidecar_is_native_or_the_job_stops_it() -> Result<()> {
    on_cluster(|cluster| {
        let classic = format!("{CLASSIC}, {HOLD}");
        let stops = format!("{CONNECT}; wget -q -O - --post-data= http://127.0.0.1:15020/quitquitquit");
        let jobs = [("native", "", CONNECT), ("classic", &classic, CONNECT), ("classic-stopped", &classic, &stops)];
        let job = |(name, annotations, command): (&str, &str, &str)| {
            format!(
                "---\napiVersion: batch/v1\nkind: Job\nmetadata: {{ namespace: default, name: {name} }}\nspec:\n  \
                 backoffLimit: 0\n  template:\n    metadata:\n      labels: {{ {WITH_SLUICE} }}\n      \
                 annotations: {{ {annotations} }}\n    spec: {}\n",
                specification(command)
            )
        };
        let since = server::records().len();
        with_applied(cluster, &jobs.map(job).concat(), || {
            let complete = "--for=condition=Complete";
            cluster.kubectl(&["wait", complete, "job/native", "job/classic-stopped", "--timeout=60s"])?;
            let pod = || -> Result<Value> {
                let pods = list(&cluster.get(&["pods", "--selector=job-name=classic"])?, "/items");
                pods.into_iter().next().context("no pod")
            };
            cluster.eventually("the end of the classic job's application", |_| {
                let status = status(&pod()?, "app")?;
                ensure!(status["state"]["terminated"]["exitCode"] == 0, "{status}");
                Ok(())
            })?;
            thread::sleep(Duration::from_secs(5));
            let sidecar = status(&pod()?, "istio-proxy")?;
            ensure!(sidecar["state"].get("running").is_some(), "{sidecar}");
            let job = cluster.get(&["job", "classic"])?;
            ensure!(job["status"].get("completionTime").is_none(), "{}", job["status"]);
            for (name, native) in [("native", true), ("classic", false), ("classic-stopped", false)] {
                let pods = list(&cluster.get(&["pods", &format!("--selector=job-name={name}")])?, "/items");
                expect_kind(pods.first().context("no pod")?, native)?;
            }
            let counts = routed(cluster, since)?;
            println!("{counts:?}");
            ensure!(counts.values().eq(&[2; 3]), "{counts:?}");
            Ok(())
        })
    })
}

/// Starts a sidecar with this memory limit and one worker, and holds connections open. Returns the bytes that it used when idle and
/// with connections, or `None` if it was killed for its memory.
fn memory(cluster: &Cluster, mebibytes: u32, annotations: &str, config: &str) -> Result<Option<[u64; 2]>> {
    let limit = format!("{mebibytes}Mi");
    let annotations = format!(
        "sidecar.istio.io/proxyMemoryLimit: {limit}, sidecar.istio.io/proxyMemory: {limit}, \
         proxy.istio.io/config: \"{{ concurrency: 1{config} }}\"{annotations}"
    );
    let pod = manifest("default", "limited", WITH_SLUICE, &annotations, "sleep infinity");
    let mut used = None;
    with_applied(cluster, &pod, || {
        let mut killed = false;
        cluster.eventually("a sidecar that runs or was killed", |_| {
            let pod = cluster.get(&["pod", "limited"])?;
            let status = status(&pod, "istio-proxy")?;
            killed = status.to_string().contains("OOMKilled");
            ensure!(killed || status["ready"] == true, "{status}");
            Ok(())
        })?;
        if killed {
            return Ok(());
        }
        let pod = cluster.ready_pods("default", "app=tried")?.pop().context("no pod")?;
        let group = pod.cgroup(cluster, &status(&pod.object, "istio-proxy")?)?;
        let read = |file: &str| -> Result<u64> { Ok(fs::read_to_string(group.join(file))?.trim().parse()?) };
        let v2 = group.join("memory.current").exists();
        let usage = if v2 { "memory.current" } else { "memory.usage_in_bytes" };
        let set = read(if v2 { "memory.max" } else { "memory.limit_in_bytes" })?;
        ensure!(set == u64::from(mebibytes) << 20, "the limit is {set}");
        let idle = read(usage)?;
        let connections = pod.host.run(|| (0..200).map(|_| held()).collect::<Result<Vec<_>>>())?;
        let busy = read(usage)?;
        drop(connections);
        let status = status(&cluster.get(&["pod", "limited"])?, "istio-proxy")?;
        ensure!(status["restartCount"] == 0 && status["ready"] == true, "{status}");
        used = Some([idle, busy]);
        Ok(())
    })?;
    Ok(used)
}

/// Opens a connection through a router, which carries 20,000 bytes in each direction and stays open.
fn held() -> Result<TcpStream> {
    let mut stream = TcpStream::connect(outside(0, 7))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let bytes = [b'x'; 20_000];
    stream.write_all(&bytes)?;
    stream.read_exact(&mut [0; 20_000])?;
    Ok(stream)
}

/// Prints the effect of these limits in MiB. Expects that the first one is too small and the others are not.
fn expect_limits(cluster: &Cluster, limits: &[u32], annotations: &str, config: &str) -> Result<()> {
    for (number, mebibytes) in limits.iter().copied().enumerate() {
        let enough = number > 0;
        let used = memory(cluster, mebibytes, annotations, config)?;
        match used {
            Some([idle, busy]) => {
                let mebi = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                println!("{mebibytes} Mi: {:.1} MiB when idle, {:.1} MiB with 200 connections", mebi(idle), mebi(busy));
            }
            None => println!("{mebibytes} Mi: OOMKilled"),
        }
        if used.is_some() != enough {
            bail!("unexpected effect of a limit of {mebibytes} Mi: {used:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_sidecar_with_the_wasm_module_runs_within_64_mebibytes() -> Result<()> {
    on_cluster(|cluster| expect_limits(cluster, &[24, 64], "", ""))
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_sidecar_with_the_native_module_runs_within_64_mebibytes() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            deliver_by(cluster, "native")?;
            fs::copy(Module::Native.path()?, cluster.manifests.join("module/native/libsluice.so"))?;
            cluster.apply()?;
            let volume = r#", sidecar.istio.io/userVolume: '{"sluice": {"configMap": {"name": "sluice-module"}}}', "#;
            let mount =
                r#"sidecar.istio.io/userVolumeMount: '{"sluice": {"mountPath": "/etc/sluice", "readOnly": true}}'"#;
            let config = r#", proxyMetadata: { ENVOY_DYNAMIC_MODULES_SEARCH_PATH: /etc/sluice }"#;
            expect_limits(cluster, &[16, 64, 128], &[volume, mount].concat(), config)
        })
    })
}
