//! `make fuzz` and `make sanitize`.
//!
//! Both use the pinned compiler, which instruments code if `RUSTC_BOOTSTRAP` is set. Only Miri needs a nightly compiler.

use crate::{
    compiler::{self, cargo},
    module, native, root,
    tools::{shell, tool},
};
use anyhow::{Context, Result, bail, ensure};
use std::{env, fs, path::Path};
use xshell::{Shell, cmd};

const CARGO_FUZZ: (&str, &str) = ("cargo-fuzz", "0.13.2");
const MANIFEST: &str = "fuzz/Cargo.toml";

/// Replays the committed corpora, then fuzzes each target for `seconds`. libFuzzer stores new inputs in `fuzz/target/corpus`, and
/// failing inputs in `fuzz/artifacts`.
pub fn run(seconds: &str) -> Result<()> {
    ensure!(seconds.parse::<u32>().is_ok(), "SECONDS={seconds}: expected a number");
    let sh = shell()?;
    module::shipped()?;
    cargo(&sh).args(["test", "--locked", "--manifest-path", MANIFEST]).run()?;

    let fuzz = tool(&sh, CARGO_FUZZ)?;
    let compiler = compiler::find(&sh, &root()?)?;
    let host = native::host()?;
    let sanitizer = match env::var("SANITIZER") {
        Ok(name) => name,
        Err(_) if has_address_sanitizer(Path::new(&compiler.sysroot), &host)? => "address".into(),
        Err(_) => "none".into(),
    };
    let _bootstrap = sh.push_env("RUSTC_BOOTSTRAP", "1");
    cmd!(sh, "{fuzz} fuzz build --dev --sanitizer {sanitizer} --features libfuzzer").run()?;
    println!("{seconds} seconds for each target, sanitizer: {sanitizer}");
    println!("| target | executions | cov | ft |\n| --- | ---: | ---: | ---: |");
    for target in targets(&sh)? {
        fuzz_target(&sh, &host, &target, seconds)?;
    }
    Ok(())
}

/// Returns the names of all targets, which are the names of their files.
fn targets(sh: &Shell) -> Result<Vec<String>> {
    let files = sh.read_dir("fuzz/fuzz_targets")?;
    let names = files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()));
    let names: Vec<String> = names.collect();
    ensure!(!names.is_empty(), "fuzz/fuzz_targets has no targets");
    Ok(names)
}

fn fuzz_target(sh: &Shell, host: &str, target: &str, seconds: &str) -> Result<()> {
    let program = format!("fuzz/target/{host}/debug/{target}");
    let [found, seeds] = ["fuzz/target/corpus", "fuzz/corpus"].map(|folder| format!("{folder}/{target}"));
    let artifacts = format!("fuzz/artifacts/{target}/");
    sh.create_dir(&found)?;
    sh.create_dir(&artifacts)?;
    let mut command = cmd!(sh, "{program} {found} {seeds} -timeout=10");
    command = command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={artifacts}"));
    if target.starts_with("config") {
        command = command.arg("-dict=fuzz/config.dict");
    }
    let output = command.quiet().ignore_status().output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{target} failed:\n{log}");
    }
    // "#1234	DONE   cov: 56 ft: 78 corp: …"
    let done = log.lines().rfind(|line| line.contains("DONE")).context("libFuzzer printed no line with DONE")?;
    let words: Vec<&str> = done.split_whitespace().collect();
    let after = |name| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied();
    let executions = words.first().map_or("", |word| word.trim_start_matches('#'));
    println!("| {target} | {executions} | {} | {} |", after("cov:").unwrap_or("?"), after("ft:").unwrap_or("?"));
    Ok(())
}

/// Runs the unit tests under AddressSanitizer with leak detection, and those of the host files under Miri. If one of the two is not
/// available, says so.
pub fn sanitize() -> Result<()> {
    let sh = shell()?;
    let host = native::host()?;
    let compiler = compiler::find(&sh, &root()?)?;
    let tests = ["test", "--locked", "--lib", "--no-default-features", "--features", "native"];
    if has_address_sanitizer(Path::new(&compiler.sysroot), &host)? {
        let test = cargo(&sh).args(tests).args(["--target", &host, "--target-dir", "target/sanitize"]);
        test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address").run()?;
    } else {
        println!("AddressSanitizer: skipped, the compiler in {} comes without it", compiler.sysroot);
    }
    if cmd!(sh, "cargo +nightly miri --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("Miri: skipped, to install it: rustup toolchain install nightly --component miri,rust-src");
        return Ok(());
    }
    // The address of a block is a number until it is allocated, as in WebAssembly.
    let miri = cmd!(sh, "cargo +nightly miri").args(tests).args(["--target-dir", "target/miri", "--", "host::"]);
    miri.env("MIRIFLAGS", "-Zmiri-permissive-provenance").run()?;
    Ok(())
}

fn has_address_sanitizer(sysroot: &Path, host: &str) -> Result<bool> {
    let folder = sysroot.join("lib/rustlib").join(host).join("lib");
    let mut files = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    Ok(files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().ends_with("_rt.asan.a"))))
}
