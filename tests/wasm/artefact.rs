//! The shipped module as a file: its imports, exports and size, and its reproducibility from another checkout.

use std::{env, fs, path::Path, process::Command};
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
fn another_checkout_runs_the_demo_and_builds_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (copy, home) = (folder.path().join("elsewhere/sluice"), folder.path().join("another cargo home"));
    copy_tree(&testbed::root(), &copy);
    let our_home =
        env::var_os("CARGO_HOME").map_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cargo"), Into::into);
    fs::create_dir_all(home.join("registry")).unwrap();
    // Both checkouts share downloads. Cargo unpacks the sources again, so it compiles them from another path.
    for shared in ["registry/cache", "registry/index", "config.toml"] {
        if our_home.join(shared).exists() {
            std::os::unix::fs::symlink(our_home.join(shared), home.join(shared)).unwrap();
        }
    }
    let xtask = env::var_os("SLUICE_XTASK").expect("make test sets SLUICE_XTASK");
    let run = |task: &str| {
        let output = Command::new(&xtask).arg(task).current_dir(&copy).env("CARGO_HOME", &home).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{task}: {out}{err}");
        out.into_owned()
    };
    let shown = run("demo");
    assert!(shown.contains("the shipped module without the wasm-opt step"), "{shown}");
    assert!(!copy.join(testbed::DIST).exists(), "the demo built a module in dist that is not the shipped one");
    run("build-wasm");
    assert!(home.join("registry/src").exists(), "the other CARGO_HOME was not used");
    let (ours, theirs) = (fs::read(shipped().unwrap()).unwrap(), fs::read(copy.join(testbed::DIST)).unwrap());
    assert!(ours == theirs, "the two modules differ: {} and {} bytes", ours.len(), theirs.len());
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
