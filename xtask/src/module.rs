//! The shipped Wasm module: compiled for size, its exports trimmed, optimised by Binaryen, with some calls through a table.

use crate::{compiler, inlining, root};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};
use testbed::DIST;
use xshell::{Shell, cmd};

/// The exports that Envoy calls or needs. Envoy does not call a callback that is not exported, so without the data callbacks
/// it does not enter the VM for data.
const EXPORTS: [&str; 7] = [
    "malloc",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_new_connection",
];

/// The inputs of the build, except the compiler.
const INPUTS: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "build.rs",
    "protos",
    "rust-toolchain.toml",
    "src",
    "xtask/src/compiler.rs",
    "xtask/src/inlining.rs",
    "xtask/src/module.rs",
    "xtask/Cargo.toml",
];

/// The file that records the inputs from which the module in `dist/` was built.
const STAMP: &str = "target/shipped/stamp";

/// The module before the last step. `make bench` compares it with the shipped module.
const DIRECT_CALLS: &str = "target/shipped/direct-calls.wasm";

/// The steps of the build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// All steps. The module is `dist/sluice.wasm`.
    All,
    /// Without the last two steps: Binaryen, whose crate takes minutes to compile, and the calls through a table. The module is
    /// under `target/`.
    WithoutWasmOpt,
}

/// Builds the module and prints its size after each step. Returns its path.
pub fn build(steps: Steps) -> Result<PathBuf> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let path = match steps {
        Steps::All => root.join(DIST),
        Steps::WithoutWasmOpt => root.join("target/shipped/sluice.wasm"),
    };
    ensure!(
        steps == Steps::WithoutWasmOpt || cfg!(feature = "wasm-opt"),
        "to build {DIST}: cargo run --package xtask --features wasm-opt -- build-wasm"
    );
    // A build that fails must not leave an older module in its place.
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let compiler = compiler::find(&sh, &root)?;
    println!("compiler: {}", compiler.describe());
    let inputs = inputs(&root, &compiler)?;
    let compiled = fs::read(compile(&sh, &root, &compiler)?)?;
    println!("{:>7} bytes  compiled, core and alloc rebuilt for size", compiled.len());
    let mut module = trim(&compiled)?;
    println!("{:>7} bytes  exports trimmed to {}", module.len(), EXPORTS.len());
    if steps == Steps::All {
        module = optimise(&module)?;
        println!("{:>7} bytes  wasm-opt", module.len());
        fs::write(root.join(DIRECT_CALLS), &module)?;
        module = inlining::prevent(&module)?;
        println!("{:>7} bytes  calls through a table, which V8 does not inline", module.len());
    }
    fs::create_dir_all(path.parent().context("the module's path has no folder")?)?;
    let aside = path.with_extension("partial");
    fs::write(&aside, &module)?;
    fs::rename(&aside, &path)?;
    if steps == Steps::All {
        fs::write(root.join(STAMP), stamp(inputs, &module))?;
    }
    println!("{}", path.strip_prefix(&root)?.display());
    Ok(path)
}

/// Builds the module with the SDK's dispatcher, as a plain cargo build does.
pub fn plain() -> Result<PathBuf> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let compiler = compiler::find(&sh, &root)?;
    println!("compiler: {}", compiler.describe());
    compiler::cargo(&sh)
        .args(["build", "--locked", "--release", "--lib", "--target-dir", "target"])
        .args(compiler.module_target())
        .envs(compiler.module_environment())
        .run()?;
    Ok(root.join("target/wasm32-unknown-unknown/release/sluice.wasm"))
}

/// Builds the module that fails on purpose, with the entry points of the shipped module, by a plain cargo build.
pub fn faulty() -> Result<PathBuf> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let compiler = compiler::find(&sh, &root)?;
    compiler::cargo(&sh)
        .args(["build", "--locked", "--release", "--lib", "--no-default-features", "--features", "fault"])
        .args(["--target-dir", "target/fault"])
        .args(compiler.module_target())
        .envs(compiler.module_environment())
        .run()?;
    let path = root.join("target/fault/sluice.wasm");
    fs::copy(root.join("target/fault/wasm32-unknown-unknown/release/sluice.wasm"), &path)?;
    Ok(path)
}

/// Returns the shipped module, rebuilt if it is stale.
pub fn shipped() -> Result<PathBuf> {
    match fresh()? {
        Some(path) => Ok(path),
        None => build(Steps::All),
    }
}

/// Returns the shipped module and the module before the last step, rebuilt if they are stale.
pub fn shipped_and_direct() -> Result<[PathBuf; 2]> {
    let direct = root()?.join(DIRECT_CALLS);
    let shipped = if direct.exists() { shipped()? } else { build(Steps::All)? };
    Ok([shipped, direct])
}

/// Returns the shipped module if it is in `dist/`, unchanged, and was built from the current inputs.
pub fn fresh() -> Result<Option<PathBuf>> {
    let root = root()?;
    let path = root.join(DIST);
    let (Ok(module), Ok(written)) = (fs::read(&path), fs::read_to_string(root.join(STAMP))) else { return Ok(None) };
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let now = stamp(inputs(&root, &compiler::find(&sh, &root)?)?, &module);
    Ok((now == written).then_some(path))
}

/// The record that connects inputs and module.
fn stamp(inputs: u64, module: &[u8]) -> String {
    format!("{inputs:016x} {:016x}\n", hash(|hasher| module.hash(hasher)))
}

/// A hash of the compiler and of all inputs.
fn inputs(root: &Path, compiler: &compiler::Compiler) -> Result<u64> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&root.join(input), &mut files)?;
    }
    files.sort();
    let contents: Result<Vec<_>> = files.iter().map(|file| Ok((file.strip_prefix(root)?, fs::read(file)?))).collect();
    let contents = contents?;
    Ok(hash(|hasher| (compiler.describe(), contents).hash(hasher)))
}

fn hash(feed: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(&mut hasher);
    hasher.finish()
}

/// Adds the files in a folder, or the file itself.
pub fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

/// Fails if the shipped module is larger than `tests/data/size-budget`.
pub fn check_size() -> Result<()> {
    let budget = fs::read_to_string(root()?.join("tests/data/size-budget")).context("tests/data/size-budget")?;
    let budget: u64 = budget.trim().parse().context("tests/data/size-budget: not a number of bytes")?;
    let size = shipped()?.metadata()?.len();
    ensure!(size <= budget, "{DIST}: {size} bytes, {} over the budget of {budget}", size - budget);
    println!("{DIST}: {size} bytes, {} below the budget of {budget}", budget - size);
    Ok(())
}

fn compile(sh: &Shell, root: &Path, compiler: &compiler::Compiler) -> Result<PathBuf> {
    let mut flags = vec![
        "-Zunstable-options".to_owned(),
        "-Cpanic=immediate-abort".to_owned(),
        "-Clink-arg=-zstack-size=4096".to_owned(),
        // The linker only warns about two signatures for one function, and the call then traps.
        "-Clink-arg=--fatal-warnings".to_owned(),
    ];
    flags.extend(compiler.linker().iter().map(ToString::to_string));
    // The module contains paths in spite of immediate-abort. Without these flags, the bytes depend on the folder.
    flags.extend(compiler.remap(root)?);
    // Not in target/, because RUSTC_BOOTSTRAP changes what build scripts detect.
    let target = root.join("target/shipped");
    let specification = write_target(sh, &target)?;
    let module = target.join(format!("{TARGET}/release/sluice.wasm"));
    if module.exists() {
        fs::remove_file(&module)?;
    }
    // One crate type only. With an rlib, cargo skips the link-time optimisation of the cdylib.
    compiler::cargo(sh)
        .args(["rustc", "--locked", "--release", "--lib", "--crate-type", "cdylib", "--no-default-features"])
        .args(["-Zjson-target-spec", "--target"])
        .arg(specification)
        .arg("--target-dir")
        .arg(&target)
        .args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=optimize_for_size"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .quiet()
        .run()?;
    Ok(module)
}

/// The name of the target that [`write_target`] describes.
const TARGET: &str = "wasm32-sluice";

/// Writes the description of the module's target and returns its path. It is `wasm32-unknown-unknown`, except that functions
/// return up to two values directly instead of through memory, which WebAssembly supports and which saves 500 bytes.
fn write_target(sh: &Shell, folder: &Path) -> Result<PathBuf> {
    let print = ["-Zunstable-options", "--print", "target-spec-json", "--target", "wasm32-unknown-unknown"];
    let specification = cmd!(sh, "rustc {print...}").env("RUSTC_BOOTSTRAP", "1").quiet().read()?;
    let mut specification: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&specification)?;
    specification.remove("is-builtin");
    specification.insert("features".into(), "+multivalue".into());
    specification.insert("llvm-abiname".into(), "experimental-mv".into());
    let path = folder.join(format!("{TARGET}.json"));
    fs::create_dir_all(folder)?;
    fs::write(&path, serde_json::to_string(&specification)?)?;
    Ok(path)
}

fn trim(module: &[u8]) -> Result<Vec<u8>> {
    let mut config = walrus::ModuleConfig::new();
    config.generate_name_section(false).generate_producers_section(false);
    let mut module = config.parse(module)?;
    for name in EXPORTS {
        ensure!(module.exports.iter().any(|export| export.name == name), "the compiled module does not export {name}");
    }
    let unwanted: Vec<_> =
        module.exports.iter().filter(|e| !EXPORTS.contains(&e.name.as_str())).map(|e| e.id()).collect();
    for export in unwanted {
        module.exports.delete(export);
    }
    let custom: Vec<_> = module.customs.iter().map(|(id, _)| id).collect();
    for section in custom {
        module.customs.delete(section);
    }
    walrus::passes::gc::run(&mut module);
    Ok(module.emit_wasm())
}

#[cfg(feature = "wasm-opt")]
fn optimise(module: &[u8]) -> Result<Vec<u8>> {
    use wasm_opt::{Feature, OptimizationOptions, Pass};

    // Flattening and rebuilding the control flow between the usual passes makes the module smaller.
    let mut anew = OptimizationOptions::new_opt_level_0();
    anew.add_default_passes(false).add_pass(Pass::Flatten).add_pass(Pass::Rereloop);
    let mut small = OptimizationOptions::new_optimize_for_size_aggressively();
    small.set_converge();

    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("input.wasm"), folder.path().join("output.wasm"));
    fs::write(&input, module)?;
    for mut options in [small.clone(), anew.clone(), small.clone(), anew, small] {
        // The features that rustc emits for this target by default. Binaryen refuses others.
        for feature in [Feature::BulkMemory, Feature::Multivalue, Feature::ReferenceTypes, Feature::TruncSat] {
            options.enable_feature(feature);
        }
        options.run(&input, &output)?;
        fs::rename(&output, &input)?;
    }
    Ok(fs::read(&input)?)
}

#[cfg(not(feature = "wasm-opt"))]
fn optimise(_: &[u8]) -> Result<Vec<u8>> {
    anyhow::bail!("xtask was built without its feature wasm-opt")
}
