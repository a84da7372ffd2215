//! The native module: the filter as a shared library for Envoy's dynamic modules.

use crate::{compiler, root, tools::shell};
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

/// The path of the module. Envoy looks for `lib` + the name in its configuration + `.so`.
const PATH: &str = testbed::module::DIST_NATIVE;

/// The flags of the compiler.
///
/// - `-z now`: with lazy binding, a function that this Envoy lacks would end Envoy at the first connection.
/// - `gcc_eh`: linked statically, because Envoy's image has no libgcc_s.
const FLAGS: [&str; 2] = ["-Clink-arg=-Wl,-z,now", "-lstatic:-bundle=gcc_eh"];

/// The functions that Envoy calls.
const EXPORTS: [&str; 9] = [
    "envoy_dynamic_module_on_network_filter_config_destroy",
    "envoy_dynamic_module_on_network_filter_config_new",
    "envoy_dynamic_module_on_network_filter_destroy",
    "envoy_dynamic_module_on_network_filter_event",
    "envoy_dynamic_module_on_network_filter_new",
    "envoy_dynamic_module_on_network_filter_new_connection",
    "envoy_dynamic_module_on_network_filter_read",
    "envoy_dynamic_module_on_network_filter_write",
    "envoy_dynamic_module_on_program_init",
];

/// Builds the module for the target that TARGET names, or for this machine.
pub fn build_for_target() -> Result<PathBuf> {
    match env::var("TARGET") {
        Ok(target) if !target.is_empty() => build_for_other(&target),
        _ => build(),
    }
}

/// Builds the module for this target, by a cross compiler, and returns its path.
pub fn build_for_other(target: &str) -> Result<PathBuf> {
    build_for(target, &format!("dist/{target}/libsluice.so"), "native")
}

/// Builds the module for this machine, prints its size and returns its path. Cargo does nothing if it is up to date.
pub fn build() -> Result<PathBuf> {
    build_for(&host()?, PATH, "native")
}

/// Builds the module that fails on purpose, for this machine.
pub fn build_faulty() -> Result<PathBuf> {
    build_for(&host()?, "target/fault/libsluice_fault.so", "native,fault")
}

/// Returns the name of this machine's target.
pub fn host() -> Result<String> {
    let sh = shell()?;
    let version = cmd!(sh, "rustc --version --verbose").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_owned())
}

fn build_for(target: &str, path: &str, features: &str) -> Result<PathBuf> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let folder = root.join("target/shipped");
    let mut linker = Vec::new();
    if path.starts_with("dist") && path != PATH {
        // The name of Debian's cross compilers.
        let (architecture, _) = target.split_once('-').with_context(|| format!("TARGET: {target}: not a target"))?;
        linker.push(format!("-Clinker={architecture}-linux-gnu-gcc"));
    }
    // Rebuilds std for size and without function names for backtraces: 74 KB instead of 313 KB.
    compiler::cargo(&sh)
        .args(["rustc", "--locked", "--profile", "native", "--lib", "--crate-type", "cdylib", "--no-default-features"])
        .args(["--features", features, "--target", target, "--target-dir"])
        .arg(&folder)
        .args(["-Zbuild-std=std,panic_unwind", "-Zbuild-std-features=optimize_for_size", "--"])
        .args(FLAGS)
        .args(linker)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", compiler::find(&sh, &root)?.remap(&root)?.join("\x1f"))
        .quiet()
        .run()?;
    let built = folder.join(format!("{target}/native/libsluice.so"));
    check(&sh, &built)?;
    let path = root.join(path);
    fs::create_dir_all(path.parent().context("the module's path has no folder")?)?;
    // Replaces the file, because a process may have mapped the old one.
    let aside = path.with_extension("partial");
    fs::copy(&built, &aside)?;
    fs::rename(&aside, &path)?;
    println!("{}: {} bytes", path.strip_prefix(&root)?.display(), path.metadata()?.len());
    Ok(path)
}

/// Checks that the module exports what Envoy calls, needs nothing but the C library, and is bound at load.
fn check(sh: &Shell, module: &Path) -> Result<()> {
    let symbols = cmd!(sh, "nm --dynamic --defined-only {module}").quiet().read()?;
    let exports: Vec<&str> = symbols.lines().filter_map(|line| line.split_once(" T ")).map(|(_, name)| name).collect();
    ensure!(exports == EXPORTS, "{}: exports {exports:?}", module.display());
    let dynamic = cmd!(sh, "readelf --dynamic {module}").quiet().read()?;
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let is_libc = ["[libc.so.", "[ld-linux"].iter().any(|library| line.contains(library));
        ensure!(is_libc, "{}: needs another library:{line}", module.display());
    }
    ensure!(dynamic.contains("BIND_NOW"), "{}: symbols are bound lazily", module.display());
    Ok(())
}
