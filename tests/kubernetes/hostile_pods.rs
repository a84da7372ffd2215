//! The pods for hostile.rs and limits.rs: those of a hostile tenant, and those of its victims.

use crate::{
    cluster::Cluster,
    conversations, outside,
    pod::{Pod, text, with_applied},
    server,
    shipped::ROUTERS,
    tls::Identity,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};
use testbed::Host;

/// The address that the hostile manifest excludes from the redirection.
pub const EXCLUDED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);

const LABELS: &str = "egress: sluice, sidecar.istio.io/inject: \"true\"";
const LABELLED: &str = "egress: sluice, sidecar.istio.io/inject: \"false\"";
const BARE: &str = "sidecar.istio.io/inject: \"false\"";
const SQUATTER: &str = "app: egress-router1, egress: sluice, sidecar.istio.io/inject: \"false\"";

/// Annotations by which the sidecar writes its certificate and key into a volume that the application shares, and by which a port
/// and an address are not redirected.
const MANIFEST: &str = r#"
    traffic.sidecar.istio.io/excludeOutboundPorts: "25"
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 198.51.100.250/32
    proxy.istio.io/config: "{ proxyMetadata: { OUTPUT_CERTS: /certs } }"
    sidecar.istio.io/userVolumeMount: '{"certs": {"mountPath": "/certs"}}'"#;

/// The namespace, name, service account, labels and annotations of each pod.
const PODS: [[&str; 5]; 8] = [
    ["tenant-a", "client", "client", LABELS, " {}"],
    ["tenant-a", "manifest", "client", LABELS, MANIFEST],
    ["tenant-a", "labelled", "client", LABELLED, " {}"],
    ["tenant-a", "bare", "client", BARE, " {}"],
    ["tenant-a", "squatter", "client", SQUATTER, " {}"],
    ["tenant-a", "other-account", "default", LABELS, " {}"],
    ["tenant-b", "other-tenant", "client", LABELS, " {}"],
    ["foreign", "foreign", "client", SQUATTER, " {}"],
];

const FOREIGN: &str = "apiVersion: v1\nkind: Namespace\nmetadata: { name: foreign }\n---\n\
     apiVersion: v1\nkind: ServiceAccount\nmetadata: { name: client, namespace: foreign }\n";

fn manifest([namespace, name, account, labels, annotations]: [&str; 5]) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  \
         labels: {{ hostile: test, {labels} }}\n  annotations:{annotations}\nspec:\n  serviceAccountName: {account}\n  \
         automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 1\n  \
         volumes: [{{ name: certs, emptyDir: {{}} }}]\n  containers:\n    - name: app\n      \
         image: docker.io/library/busybox\n      command: [sleep, infinity]\n      \
         volumeMounts: [{{ name: certs, mountPath: /certs }}]\n"
    )
}

pub struct Pods {
    /// A pod of the hostile tenant, with a sidecar and without further settings.
    pub client: Pod,
    /// With a sidecar and with all annotations that help an attacker.
    pub manifest: Pod,
    /// Without a sidecar, so that no connection is redirected, and with the label of clients, which the routers' policies admit.
    pub labelled: Pod,
    /// Without a sidecar and without the label of clients.
    pub bare: Pod,
    /// Without a sidecar, with the label of clients and that of a router.
    pub squatter: Pod,
    /// With a sidecar and another service account.
    pub other_account: Pod,
    /// A pod of tenant-b, with a sidecar.
    pub other_tenant: Pod,
    /// A pod in a namespace without a tenant, with the label of clients and that of a router.
    pub foreign: Pod,
}

/// Creates the tenants' namespaces and these pods, runs `test`, and deletes them.
pub fn with_pods(cluster: &Cluster, test: impl FnOnce(&Pods) -> Result<()>) -> Result<()> {
    let made = cluster.kubectl(&["kustomize", &cluster.manifests.join("tenants").to_string_lossy()])?;
    let tenants = |line: &str| ["  namespace: tenant-", "  name: tenant-"].iter().any(|begin| line.starts_with(begin));
    let wanted = |one: &&str| one.lines().any(tenants) && !one.contains("\nkind: Deployment\n");
    let mut manifests: Vec<String> = made.split("\n---\n").filter(wanted).map(|one| format!("{one}\n")).collect();
    manifests.push(FOREIGN.into());
    manifests.extend(PODS.map(|pod| manifest(pod).trim_start_matches("---\n").to_owned()));
    with_applied(cluster, &manifests.join("---\n"), || {
        let mut pods = Vec::new();
        for namespace in ["tenant-a", "tenant-b", "foreign"] {
            pods.extend(cluster.ready_pods(namespace, "hostile=test")?);
        }
        let named = |name: &str| pods.iter().find(|pod| pod.name == name).cloned().context(name.to_owned());
        let pods = Pods {
            client: named("client")?,
            manifest: named("manifest")?,
            labelled: named("labelled")?,
            bare: named("bare")?,
            squatter: named("squatter")?,
            other_account: named("other-account")?,
            other_tenant: named("other-tenant")?,
            foreign: named("foreign")?,
        };
        let hello = &conversations()?[0].1;
        cluster.eventually("routed connections of the tenants and enforced policies", |cluster| {
            for (pod, router) in [(&pods.client, ROUTERS[0]), (&pods.other_tenant, ROUTERS[1])] {
                let seen = server::ask(&pod.host, outside(0, 443), hello).with_context(|| pod.name.clone())?;
                ensure!(cluster.router(seen.from)? == router, "{}: {seen:?}", pod.name);
            }
            let seen = server::ask(&pods.bare.host, outside(0, 443), hello);
            ensure!(seen.is_err(), "the policies are not enforced: {seen:?}");
            Ok(())
        })?;
        test(&pods)
    })
}

impl Pods {
    /// Returns the certificate that the sidecar of `manifest` wrote, read in its application's container.
    pub fn own_certificate(&self, cluster: &Cluster) -> Result<Identity> {
        let read = |file: &str| self.manifest.exec(cluster, "app", &["cat", &format!("/certs/{file}")]);
        Identity::from_pem(&read("cert-chain.pem")?, &read("key.pem")?)
    }

    /// Returns the name of the router or pod that has this address, or else the address.
    pub fn name_of(&self, cluster: &Cluster, address: IpAddr) -> Result<String> {
        let router = cluster.router(address)?;
        if router != "none" {
            return Ok(router);
        }
        let pods = [
            &self.client,
            &self.manifest,
            &self.labelled,
            &self.bare,
            &self.squatter,
            &self.other_account,
            &self.other_tenant,
            &self.foreign,
        ];
        let pod = pods.iter().find(|pod| pod.addresses.contains(&address));
        Ok(pod.map_or_else(|| address.to_string(), |pod| pod.name.clone()))
    }
}

/// Returns the node of a pod as a host, and its address.
pub fn node(cluster: &Cluster, pod: &Pod) -> Result<(Host, IpAddr)> {
    let config = format!("--kubeconfig={}/kubeconfig/{}", cluster.folder.display(), pod.node);
    let kubelet = fs::read_dir("/proc")?.flatten().find_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.split('\0').any(|argument| argument == config).then(|| entry.file_name().to_str()?.parse().ok())?
    });
    let address = text(&pod.object, "/status/hostIP")?.parse()?;
    Ok((Host::of_process(kubelet.with_context(|| format!("no process with {config}"))?)?, address))
}
