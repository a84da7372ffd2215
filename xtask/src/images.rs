//! The container images of the Kubernetes tests, made from programs of this machine under the names that the manifests use.
//! They hold a program, the libraries that it loads, and no shell, like the official ones.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use xshell::{Shell, cmd};

/// The tag of images whose tag the tests are free to choose.
const TAG: &str = "tests";

/// The root folder of an image in the making.
pub struct Root<'a> {
    sh: &'a Shell,
    folder: TempDir,
}

impl<'a> Root<'a> {
    /// Makes an empty root in a folder below `parent`.
    pub fn new(sh: &'a Shell, parent: &Path) -> Result<Self> {
        let folder = TempDir::new_in(parent)?;
        sh.create_dir(folder.path().join("tmp"))?;
        fs::set_permissions(folder.path().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
        Ok(Self { sh, folder })
    }

    /// Copies a file to this absolute path.
    pub fn file(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.path(to)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// Copies a program and the libraries that it loads.
    pub fn program(&self, from: &Path, to: &str) -> Result<()> {
        self.file(from, to)?;
        let (sh, root) = (self.sh, self.folder.path());
        let libraries = cmd!(sh, "ldd {from}").quiet().ignore_status().ignore_stderr().read()?; // fails for static programs
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            cmd!(sh, "cp --parents --dereference {library} {root}").quiet().run()?;
        }
        Ok(())
    }

    /// Makes a symbolic link.
    pub fn link(&self, at: &str, target: &str) -> Result<()> {
        Ok(symlink(target, self.path(at)?)?)
    }

    /// Writes an archive of the root.
    pub fn archive(&self, to: &Path) -> Result<()> {
        let (sh, root) = (self.sh, self.folder.path());
        Ok(cmd!(sh, "tar --create --file {to} --owner 0 --group 0 --directory {root} .").quiet().run()?)
    }

    fn path(&self, path: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a path below the root")?)?;
        Ok(path)
    }
}

/// A registry on the loopback interface whose storage is a folder.
struct Registry {
    process: Child,
    address: String,
    _configuration: TempDir,
}

impl Registry {
    fn start(storage: &Path) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string();
        let configuration = TempDir::new()?;
        let file = configuration.path().join("registry.yaml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '{address}' }}\n",
            storage.display()
        );
        fs::write(&file, text)?;
        let process = Command::new("docker-registry").arg("serve").arg(file).stdout(Stdio::null()).spawn()?;
        Ok(Self { process, address, _configuration: configuration })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Makes all images from the programs in `programs` and stores them in `folder`, as docker-registry keeps them.
pub fn build(sh: &Shell, programs: &Path, kubernetes: &Path, envoy: &Path, folder: &Path) -> Result<()> {
    let envoy_tag = format!("distroless-v{}", include_str!("../../.envoy-version").trim());
    let made = TempDir::new_in(programs)?;
    let registry = Registry::start(folder)?;
    let crane = programs.join("crane");
    let push = |root: Root, name: &str, user: &str, command: &[&str]| -> Result<()> {
        let archive = made.path().join("layer.tar");
        root.archive(&archive)?;
        let reference = format!("{}/{name}", registry.address);
        cmd!(sh, "{crane} append --oci-empty-base --new_layer {archive} --new_tag {reference}")
            .quiet()
            .ignore_stdout()
            .ignore_stderr()
            .run()?;
        let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        cmd!(sh, "{crane} mutate {reference} --set-platform {platform} --env {path} --user {user} --entrypoint")
            .arg(command.join(","))
            .args(["--tag", &reference])
            .quiet()
            .ignore_stdout()
            .ignore_stderr()
            .run()?;
        println!("  {name}");
        Ok(())
    };
    let image = || Root::new(sh, made.path());
    let bootstrap = programs.join("envoy_bootstrap.json");
    let bootstrap_place = "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json";

    let root = image()?;
    let (source, program) = (kubernetes.join("build/pause/linux/pause.c"), made.path().join("pause"));
    cmd!(sh, "cc -Os -static -DVERSION=tests -o {program} {source}").quiet().run()?;
    root.program(&program, "/pause")?;
    push(root, &format!("library/pause:{TAG}"), "65535:65535", &["/pause"])?;

    let root = image()?;
    let busybox = which(sh, "busybox")?;
    root.program(&busybox, "/bin/busybox")?;
    let applets = cmd!(sh, "{busybox} --list").quiet().read()?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        root.link(&format!("/bin/{applet}"), "busybox")?;
    }
    push(root, "library/busybox:latest", "0:0", &["/bin/sh"])?;

    let root = image()?;
    root.program(envoy, "/usr/local/bin/envoy")?;
    push(root, &format!("envoyproxy/envoy:{envoy_tag}"), "101:101", &["/usr/local/bin/envoy"])?;

    let root = image()?;
    root.program(&programs.join("coredns"), "/coredns")?;
    push(root, &format!("coredns/coredns:{TAG}"), "65532:65532", &["/coredns"])?;

    let root = image()?;
    root.program(&programs.join("pilot-discovery"), "/usr/local/bin/pilot-discovery")?;
    root.file(&bootstrap, bootstrap_place)?;
    push(root, &format!("istio/pilot:{TAG}"), "1337:1337", &["/usr/local/bin/pilot-discovery"])?;

    let root = image()?;
    root.program(envoy, "/usr/local/bin/envoy")?;
    root.program(&programs.join("pilot-agent"), "/usr/local/bin/pilot-agent")?;
    root.file(&bootstrap, bootstrap_place)?;
    iptables(sh, &root)?;
    push(root, &format!("istio/proxyv2:{TAG}"), "1337:1337", &["/usr/local/bin/pilot-agent"])?;

    let root = image()?;
    root.program(&programs.join("install-cni"), "/usr/local/bin/install-cni")?;
    root.program(&programs.join("istio-cni"), "/opt/cni/bin/istio-cni")?;
    iptables(sh, &root)?;
    push(root, &format!("istio/install-cni:{TAG}"), "0:0", &["/usr/local/bin/install-cni"])
}

/// The iptables of this machine, by the names that Istio calls, with its extensions.
fn iptables(sh: &Shell, root: &Root) -> Result<()> {
    root.program(&which(sh, "xtables-nft-multi")?, "/usr/sbin/xtables-nft-multi")?;
    for family in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            for variant in ["", "-nft"] {
                root.link(&format!("/usr/sbin/{family}{variant}{action}"), "xtables-nft-multi")?;
            }
        }
    }
    let mut extensions = 0;
    for library in fs::read_dir("/usr/lib")? {
        let folder = library?.path().join("xtables");
        for file in fs::read_dir(&folder).into_iter().flatten() {
            let file = file?.path();
            root.program(&file, &file.to_string_lossy())?;
            extensions += 1;
        }
    }
    ensure!(extensions > 0, "no extensions of iptables in /usr/lib/*/xtables");
    Ok(())
}

/// The path of a program, which may be one that only root has in PATH.
fn which(sh: &Shell, program: &str) -> Result<PathBuf> {
    let found = cmd!(sh, "sh -c").arg(format!("PATH=$PATH:/usr/sbin command -v {program}")).quiet().read();
    Ok(fs::canonicalize(found.with_context(|| format!("{program} is not installed"))?)?)
}
