//! The shipped module: compiled for size, its exports trimmed, optimised by Binaryen.

use crate::{compiler, root};
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};
use testbed::DIST;
use xshell::{Shell, cmd};

/// What Envoy calls or needs. What is not exported is not called: without the data callbacks the VM is not entered per
/// chunk of data.
const EXPORTS: [&str; 7] = [
    "malloc",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_new_connection",
];

/// What the module is made from; `dist/` is stale where one of these is younger.
const INPUTS: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "build.rs",
    "protos",
    "rust-toolchain.toml",
    "src",
    "xtask/src/compiler.rs",
    "xtask/src/module.rs",
    "xtask/Cargo.toml",
];

/// How far to build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// As it ships, at `dist/sluice.wasm`.
    All,
    /// Without Binaryen, whose crate takes minutes to compile, under `target/`.
    AllButWasmOpt,
}

/// Builds the module, prints its size after each step and gives its path.
pub fn build(steps: Steps) -> Result<PathBuf> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let path = match steps {
        Steps::All => root.join(DIST),
        Steps::AllButWasmOpt => root.join("target/shipped/sluice.wasm"),
    };
    // A build that fails must not leave an older module in its place.
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let compiler = compiler::find(&sh, &root)?;
    println!("compiler: {}", compiler.describe());
    let compiled = fs::read(compile(&sh, &root, &compiler)?)?;
    println!("{:>7} bytes  compiled, core and alloc rebuilt for size", compiled.len());
    let mut module = trim(&compiled)?;
    println!("{:>7} bytes  exports trimmed to {}", module.len(), EXPORTS.len());
    if steps == Steps::All {
        module = optimise(&module)?;
        println!("{:>7} bytes  wasm-opt", module.len());
    }
    fs::create_dir_all(path.parent().context("the module's path has no folder")?)?;
    fs::write(&path, module)?;
    println!("{}", path.strip_prefix(&root)?.display());
    Ok(path)
}

/// The shipped module, built anew if it is stale.
pub fn shipped() -> Result<PathBuf> {
    match fresh()? {
        Some(path) => Ok(path),
        None => build(Steps::All),
    }
}

/// The shipped module if it stands in `dist/` and nothing that it is made from is younger.
pub fn fresh() -> Result<Option<PathBuf>> {
    let root = root()?;
    let path = root.join(DIST);
    if !path.exists() {
        return Ok(None);
    }
    let built = path.metadata()?.modified()?;
    for input in INPUTS {
        if youngest(&root.join(input))? > built {
            return Ok(None);
        }
    }
    Ok(Some(path))
}

/// Fails where the shipped module is larger than tests/data/size-budget allows.
pub fn check_size() -> Result<()> {
    let budget = fs::read_to_string(root()?.join("tests/data/size-budget"))?;
    let budget: u64 = budget.trim().parse().context("tests/data/size-budget: not a number of bytes")?;
    let size = shipped()?.metadata()?.len();
    ensure!(size <= budget, "{DIST}: {size} bytes, {} over the budget of {budget}", size - budget);
    println!("{DIST}: {size} bytes, {} below the budget of {budget}", budget - size);
    Ok(())
}

fn youngest(path: &Path) -> Result<SystemTime> {
    let mut time = path.metadata()?.modified()?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            time = time.max(youngest(&entry?.path())?);
        }
    }
    Ok(time)
}

fn compile(sh: &Shell, root: &Path, compiler: &compiler::Compiler) -> Result<PathBuf> {
    let cargo = compiler::cargo();
    let cargo_home = match env::var("CARGO_HOME") {
        Ok(home) => home,
        Err(_) => format!("{}/.cargo", env::var("HOME").context("neither CARGO_HOME nor HOME is set")?),
    };
    let mut flags = vec![
        "-Zunstable-options".to_owned(),
        "-Cpanic=immediate-abort".to_owned(),
        "-Clink-arg=-zstack-size=16384".to_owned(),
    ];
    flags.extend(compiler.linker().iter().map(ToString::to_string));
    // Paths stay in the module in spite of immediate-abort: without these, two folders give two files.
    for (from, to) in [
        (cargo_home.as_str(), "/cargo"),
        (compiler.sysroot.as_str(), "/rust"),
        (root.to_str().context("the checkout's path is not UTF-8")?, "/sluice"),
    ] {
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    // Apart from target/: RUSTC_BOOTSTRAP changes what build scripts find out about the compiler.
    let target = root.join("target/shipped");
    let module = target.join("wasm32-unknown-unknown/release/sluice.wasm");
    if module.exists() {
        fs::remove_file(&module)?;
    }
    // One crate type only: beside an rlib, cargo leaves out the link-time optimisation of the cdylib.
    cmd!(sh, "{cargo} rustc --locked --release --lib --crate-type cdylib --no-default-features")
        .args(["--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&target)
        .args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=optimize_for_size"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .quiet()
        .run()?;
    Ok(module)
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
    use wasm_opt::{Feature, OptimizationOptions};

    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("trimmed.wasm"), folder.path().join("optimised.wasm"));
    fs::write(&input, module)?;
    let mut options = OptimizationOptions::new_optimize_for_size_aggressively();
    // What rustc emits for this target by default; Binaryen refuses what it was not told of.
    for feature in [Feature::BulkMemory, Feature::Multivalue, Feature::ReferenceTypes, Feature::TruncSat] {
        options.enable_feature(feature);
    }
    options.set_converge().run(&input, &output)?;
    Ok(fs::read(&output)?)
}

#[cfg(not(feature = "wasm-opt"))]
fn optimise(_: &[u8]) -> Result<Vec<u8>> {
    anyhow::bail!("this task is built by: cargo run --package xtask --features wasm-opt -- build-wasm")
}
