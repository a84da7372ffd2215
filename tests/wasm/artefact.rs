//! The shipped module as a file: its imports, exports and size, and its reproducibility from another checkout.

use std::{env, fs, os::unix::fs::symlink, path::Path, process::Command};
use testbed::module::{sdk, shipped};
use wasmi::{Engine, Module};

fn golden(name: &str) -> String {
    fs::read_to_string(testbed::root().join("tests/data").join(name)).unwrap()
}

fn load(path: &Path) -> Module {
    Module::new(&Engine::default(), fs::read(path).unwrap()).unwrap()
}

fn lines(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.join("\n") + "\n"
}

#[test]
fn imports_and_exports_match_the_goldens() {
    let module = load(&shipped().unwrap());
    let imports = lines(module.imports().map(|import| format!("{}.{}", import.module(), import.name())));
    assert_eq!(imports, golden("imports"));
    let exports = lines(module.exports().map(|export| export.name().to_owned()));
    assert_eq!(exports, golden("exports"));
}

#[test]
fn the_shipped_module_is_within_its_size_budget_and_smaller_than_a_plain_build() {
    let [shipped, sdk] = [shipped(), sdk()].map(|path| path.unwrap().metadata().unwrap().len());
    let budget: u64 = golden("size-budget").trim().parse().unwrap();
    assert!(shipped <= budget, "{shipped} bytes exceed the budget of {budget}");
    assert!(shipped < sdk, "the shipped module has {shipped} bytes, a plain build {sdk}");
}

#[test]
fn another_checkout_runs_the_demo_and_builds_the_same_release() {
    let folder = tempfile::tempdir().unwrap();
    let (root, copy, home) =
        (testbed::root(), folder.path().join("elsewhere/copy"), folder.path().join("another cargo home"));
    copy_tree(&root, &copy);
    let our_home =
        env::var_os("CARGO_HOME").map_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cargo"), Into::into);
    fs::create_dir_all(home.join("registry")).unwrap();
    // Both checkouts share downloads. Cargo unpacks the sources again, so it compiles them from another path.
    for shared in ["registry/cache", "registry/index", "config.toml"] {
        if our_home.join(shared).exists() {
            symlink(our_home.join(shared), home.join(shared)).unwrap();
        }
    }
    let run = |folder: &Path, home: &Path, task: &str| {
        let xtask = env::var_os("SLUICE_XTASK").expect("make test sets SLUICE_XTASK");
        let output = Command::new(xtask).arg(task).current_dir(folder).env("CARGO_HOME", home).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{task}: {out}{err}");
        out.into_owned()
    };
    let shown = run(&copy, &home, "demo");
    assert!(shown.contains("This module was not optimised by wasm-opt"), "{shown}");
    assert!(!copy.join(testbed::DIST).exists(), "the demo built a module in dist that is not the shipped one");
    run(&root, &our_home, "release");
    symlink(root.join("target/tools"), copy.join("target/tools")).unwrap(); // cargo-cyclonedx
    run(&copy, &home, "release");
    assert!(home.join("registry/src").exists(), "the other CARGO_HOME was not used");
    let [ours, theirs] =
        [&root, &copy].map(|folder| fs::read_to_string(folder.join("dist/release/SHA256SUMS")).unwrap());
    assert!(ours.contains("  sluice.wasm\n") && ours.contains("  libsluice.cdx.json\n"), "{ours}");
    assert_eq!(ours, theirs);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "target" || name == "dist" || name == ".git" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to.join(name));
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}
