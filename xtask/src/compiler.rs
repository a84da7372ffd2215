//! The compiler: the one that rust-toolchain.toml pins, or Debian's if rustup cannot fetch that one (setup.sh decides
//! which of them comes first in PATH).

use anyhow::{Context, Result};
use std::{env, fs, path::Path};
use xshell::{Cmd, Shell, cmd};

/// Debian's compiler includes neither a linker nor a std for WebAssembly.
const DEBIAN_LINKER: [&str; 2] = ["-Clinker-flavor=wasm-ld", "-Clinker=wasm-ld-22"];

/// The compiler in PATH.
pub struct Compiler {
    /// The folder of its own libraries.
    pub sysroot: String,
    version: String,
    pinned: bool,
    debian: bool,
}

/// Returns the cargo that started this program, or else the one in PATH, without the variables that describe xtask's package. Build
/// scripts that watch these variables would run again, which takes minutes.
pub fn cargo(sh: &Shell) -> Cmd<'_> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let ours = env::vars().map(|(name, _)| name);
    let ours = ours.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
    ours.fold(cmd!(sh, "{cargo}"), |command, name| command.env_remove(name))
}

/// Identifies the compiler.
pub fn find(sh: &Shell, root: &Path) -> Result<Compiler> {
    let toolchain = fs::read_to_string(root.join("rust-toolchain.toml")).context("rust-toolchain.toml")?;
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = "));
    let channel = channel.context("rust-toolchain.toml: no channel")?.trim_matches('"');
    let version = cmd!(sh, "rustc --version").quiet().read()?;
    let sysroot = cmd!(sh, "rustc --print sysroot").quiet().read()?;
    let debian = sysroot == "/usr";
    let pinned = !debian && version.split(' ').nth(1) == Some(channel);
    Ok(Compiler { sysroot, version, pinned, debian })
}

impl Compiler {
    /// A description of the compiler.
    pub fn describe(&self) -> String {
        let origin = match (self.pinned, self.debian) {
            (true, _) => "pinned by rust-toolchain.toml",
            (_, true) => "Debian's; the module's bytes differ from those of the pinned compiler",
            _ => "not the pinned one; the bytes may differ",
        };
        format!("{} ({origin})", self.version)
    }

    /// The flags that keep the paths of this machine out of a module. Without them, the bytes depend on the folder.
    pub fn remap(&self, root: &Path) -> Result<Vec<String>> {
        let cargo_home = match env::var("CARGO_HOME") {
            Ok(home) if !home.is_empty() => home,
            _ => format!("{}/.cargo", env::var("HOME").context("neither CARGO_HOME nor HOME is set")?),
        };
        let root = root.to_str().context("the path of the checkout is not UTF-8")?;
        let paths = [(cargo_home.as_str(), "/cargo"), (&self.sysroot, "/rust"), (root, "/sluice")];
        Ok(paths.map(|(from, to)| format!("--remap-path-prefix={from}={to}")).into())
    }

    /// The flags of rustc that link the shipped module.
    pub fn linker(&self) -> &'static [&'static str] {
        if self.debian { &DEBIAN_LINKER } else { &[] }
    }

    /// The arguments that make a plain cargo command build for the module's target.
    pub fn module_target(&self) -> &'static [&'static str] {
        if self.debian {
            &["--target", "wasm32-unknown-unknown", "-Zbuild-std=std,panic_abort"]
        } else {
            &["--target", "wasm32-unknown-unknown"]
        }
    }

    /// The environment that goes with [`Self::module_target`].
    pub fn module_environment(&self) -> Vec<(&'static str, String)> {
        if !self.debian {
            return Vec::new();
        }
        let flags = DEBIAN_LINKER.join(" ");
        vec![("RUSTC_BOOTSTRAP", "1".into()), ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags)]
    }
}
