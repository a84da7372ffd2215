//! `make test-matrix` and `make test-oldest`: the tests on a real Envoy, with each module and all supported releases.

use crate::{compiler, root, tests, tools::shell};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, ffi::OsString, fs, path::Path, process::Command, time::Instant};
use testbed::{Config, Module, envoy};

/// The source modules of the test target `envoy` whose tests run. They are the columns of the table.
const GROUPS: [&str; 6] = ["scenarios", "configuration", "routing", "logs", "replacement", "failures"];

/// The skipped tests: the demo, which does not test Envoy, and a bound on the CPU time of the newest release.
const SKIPPED: [&str; 4] = ["--skip", "demo::", "--skip", "the_largest_table_loads"];

/// The document that contains the table, and the marks around the table.
const DOCUMENT: &str = "docs/envoy-versions.md";
const MARKS: [&str; 2] = ["<!-- make test-matrix writes this -->\n", "<!-- to here -->"];

/// Runs the tests on all releases and writes the table, or runs them on the oldest release only.
pub fn run(oldest_only: bool) -> Result<()> {
    let root = root()?;
    let (_, environment) = tests::ready()?;
    let started = Instant::now();
    let newest = fs::read_to_string(root.join(".envoy-version"))?;
    let mut releases: Vec<&str> = envoy::OLDER.to_vec();
    if oldest_only {
        releases.truncate(1);
    } else {
        releases.push(newest.trim());
    }
    let mut table = format!("| Envoy | module | {} | tests passed |\n", GROUPS.join(" | "));
    table += &format!("| --- | --- |{} ---: |\n", " ---: |".repeat(GROUPS.len()));
    for release in releases {
        for module in [Module::Wasm, Module::Native] {
            if module == Module::Native && envoy::WITHOUT_NATIVE.contains(&release) {
                let config = Config::shipped("standalone.yaml")?.with_module(&module.path()?)?;
                let (valid, log) = envoy::validate(&envoy::release(release)?, &config)?;
                ensure!(!valid, "Envoy {release} accepts the native module: {log}");
                table += &format!("| {release} | `libsluice.so` |{} refused at start |\n", " |".repeat(GROUPS.len()));
                continue;
            }
            let counts = tests_of(module, release, &environment)?;
            let passed: usize = counts.values().sum();
            println!("Envoy {release}, {module:?}: {passed} tests passed");
            let counts: Vec<String> =
                GROUPS.map(|group| counts.get(group).copied().unwrap_or_default().to_string()).to_vec();
            let file = module.path()?;
            let file = file.file_name().context("the module's path has no name")?.to_string_lossy();
            table += &format!("| {release} | `{file}` | {} | {passed} |\n", counts.join(" | "));
        }
    }
    print!("{table}");
    if oldest_only {
        return Ok(());
    }
    let date = Command::new("date").args(["--utc", "+%F"]).output()?;
    let date = String::from_utf8(date.stdout)?;
    let took = started.elapsed().as_secs();
    write(&root, &format!("{table}\nRun on {} by `make test-matrix`, in {took} seconds.\n", date.trim()))
}

/// Runs the tests of one module on a release. Returns how many passed in each group.
fn tests_of(module: Module, release: &str, environment: &[(&str, OsString)]) -> Result<BTreeMap<String, usize>> {
    let sh = shell()?;
    let filters: &[&str] = match module {
        Module::Wasm => &["wasm::", "a_trapping_wasm_module"],
        Module::Native => &["native::", "a_native_module"],
    };
    let test = compiler::cargo(&sh).args(["test", "--locked", "--test", "envoy", "--"]).args(filters).args(SKIPPED);
    let environment = environment.iter().map(|(name, value)| (name, value));
    let test = test.envs(environment).env("ENVOY", envoy::release(release)?);
    let output = test.ignore_status().output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "Envoy {release}, {module:?}: {shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let passed: Vec<&str> =
        shown.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok")).collect();
    for filter in filters {
        ensure!(passed.iter().any(|test| test.contains(filter)), "no test matches {filter}: {shown}");
    }
    let mut counts = BTreeMap::new();
    for test in passed {
        let group = test.split("::").next().unwrap_or(test);
        ensure!(GROUPS.contains(&group), "{test} is in no column of the table");
        *counts.entry(group.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn write(root: &Path, table: &str) -> Result<()> {
    let path = root.join(DOCUMENT);
    let text = fs::read_to_string(&path).context(DOCUMENT)?;
    let [start, end] = MARKS;
    let (head, rest) = text.split_once(start).with_context(|| format!("{DOCUMENT}: no mark where the table begins"))?;
    let (_, tail) = rest.split_once(end).with_context(|| format!("{DOCUMENT}: no mark where the table ends"))?;
    fs::write(path, format!("{head}{start}\n{table}\n{end}{tail}"))?;
    Ok(())
}
