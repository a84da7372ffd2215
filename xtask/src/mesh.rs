//! `make test-mesh` and `make test-mesh-full`: build Kubernetes, Istio and the container images once, then run the tests on a
//! cluster of their own.

use crate::{go, images::Images, root, tests};
use anyhow::{Context, Result};
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};
use testbed::{envoy, network};
use xshell::{Shell, cmd};

/// The folder of the Go modules that pin the tools, and the modules. Each is built with the versions that it names.
const TOOLS: &str = "tests/kubernetes/tools";
const MODULES: [&str; 3] = ["cluster", "istio", "kubernetes"];
const PREVIOUS: &str = "istio-previous";

/// Programs that come from Debian's packages.
const PROGRAMS: [&str; 11] = [
    "busybox",
    "cc",
    "containerd",
    "docker-registry",
    "etcd",
    "ip6tables",
    "iptables",
    "nft",
    "openssl",
    "runc",
    "xtables-nft-multi",
];

/// Runs the tests, also the slow ones if `full`. If they cannot run here, lists them as skipped with the reason.
pub fn run(full: bool) -> Result<()> {
    if let Some(hindrance) = hindrance() {
        println!("{} tests skipped", tests::target("kubernetes", &[], Some(&hindrance), &[])?);
        return Ok(());
    }
    let (envoy, mut environment) = tests::ready()?;
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    environment.push(("SLUICE_CLUSTER_TOOLS", tools(&sh, &root, &envoy, full)?.into()));
    if !full {
        return tests::target("kubernetes", &[], None, &environment).map(drop);
    }
    tests::target("kubernetes", &["--include-ignored"], None, &environment)?;
    // Other Istios on clusters of their own: the tests that the choice matters to.
    for istio in ["previous", "cni"] {
        println!("the same with SLUICE_ISTIO={istio}");
        let environment = [&environment[..], &[("SLUICE_ISTIO", istio.into())]].concat();
        tests::target("kubernetes", &["connections::", "policies::", "sidecars::"], None, &environment)?;
    }
    Ok(())
}

/// Returns why a cluster cannot run here, or `None` if it can.
fn hindrance() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|program| !folders.iter().any(|folder| folder.join(program).is_file())).collect();
    if !missing.is_empty() {
        return Some(format!("not installed: {}", missing.join(", ")));
    }
    if !Path::new("/usr/lib/cni/ptp").is_file() {
        return Some("not installed: containernetworking-plugins".into());
    }
    network::hindrance()
}

/// Builds the tools and images unless those of the same sources exist, with an older Istio too if `previous`. Returns their
/// folder, with the programs in `bin` and `previous`, and a registry's files in `images`.
fn tools(sh: &Shell, root: &Path, envoy: &Path, previous: bool) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (include_str!("images.rs"), include_str!("mesh.rs"), envoy::version(envoy)?).hash(&mut hasher);
    for module in MODULES.iter().chain([&PREVIOUS]) {
        for file in ["go.mod", "go.sum"] {
            let path = root.join(TOOLS).join(module).join(file);
            fs::read(&path).with_context(|| path.display().to_string())?.hash(&mut hasher);
        }
    }
    let folder = root.join("target/kubernetes").join(format!("tools-{:016x}", hasher.finish()));
    let go = go::program(sh, &root.join(TOOLS).join(MODULES[0]))?;
    let sources = |module: &str, dependency: &str| -> Result<PathBuf> {
        let (module, format) = (root.join(TOOLS).join(module), "{{.Dir}}");
        // Without the download, the folder is empty on a machine that has not built the module before.
        cmd!(sh, "{go} -C {module} mod download {dependency}").env("GOFLAGS", "").quiet().run()?;
        Ok(cmd!(sh, "{go} -C {module} list -m -f {format} {dependency}").env("GOFLAGS", "").quiet().read()?.into())
    };
    // Everything is built under another name and renamed at the end, so that an interrupted build is not taken for a finished one.
    let partial = root.join("target/kubernetes/partial");
    let build = |modules: &[&str], stamp: &str| -> Result<()> {
        sh.remove_path(&partial)?;
        let programs = sh.create_dir(partial.join("bin"))?;
        for module in modules {
            let (path, output) = (root.join(TOOLS).join(module), programs.join(""));
            cmd!(sh, "{go} -C {path} build -o {output} -ldflags {stamp} tool").env("GOFLAGS", "").run()?;
            if module.starts_with("istio") {
                let bootstrap = sources(module, "istio.io/istio")?.join("tools/packaging/common/envoy_bootstrap.json");
                fs::write(programs.join("envoy_bootstrap.json"), fs::read(bootstrap)?)?;
            }
        }
        Ok(())
    };
    if !folder.exists() {
        println!("building Kubernetes, Istio and the container images, which takes 15 minutes on two cores");
        let kubernetes = sources("kubernetes", "k8s.io/kubernetes")?;
        let version = kubernetes.to_string_lossy().rsplit_once('@').context("a module with its version")?.1.to_owned();
        // Istio decides by the kubelets' version, which Kubernetes' own builds stamp.
        build(&MODULES, &format!("-X k8s.io/component-base/version.gitVersion={version}"))?;
        let programs = partial.join("bin");
        fs::rename(programs.join("cmd"), programs.join("kube-network-policies"))?;
        let images = Images::new(sh, &programs, &partial.join("images"))?;
        images.cluster(&programs, &kubernetes, envoy)?;
        images.istio(&programs, envoy, "tests")?;
        drop(images);
        fs::rename(&partial, &folder)?;
    }
    if previous && !folder.join("previous").exists() {
        println!("building an older Istio");
        build(&[PREVIOUS], "")?;
        Images::new(sh, &folder.join("bin"), &folder.join("images"))?.istio(&partial.join("bin"), envoy, "previous")?;
        fs::rename(partial.join("bin"), folder.join("previous"))?;
    }
    Ok(folder)
}
