//! The shipped module as a file: its imports, exports and size. The bytes of a release depend only on the sources and the
//! compiler.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};
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
fn the_shipped_module_is_within_its_budget_and_smaller_than_that_of_a_plain_build() {
    let [shipped, sdk] = [shipped(), sdk()].map(|path| path.unwrap().metadata().unwrap().len());
    let budget: u64 = golden("size-budget").trim().parse().unwrap();
    assert!(shipped <= budget, "{shipped} bytes of {budget}");
    assert!(shipped < sdk, "{shipped} and {sdk} bytes");
}

#[test]
fn another_checkout_runs_the_demo_and_makes_the_same_release() {
    let folder = tempfile::tempdir().unwrap();
    let (copy, home) = (folder.path().join("elsewhere/sluice"), folder.path().join("another cargo home"));
    copy_tree(&testbed::root(), &copy);
    let our_home =
        env::var_os("CARGO_HOME").map_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cargo"), Into::into);
    fs::create_dir_all(home.join("registry")).unwrap();
    // Downloads are shared. The sources are unpacked again, so they are compiled from another path.
    for shared in ["registry/cache", "registry/index", "config.toml"] {
        if our_home.join(shared).exists() {
            std::os::unix::fs::symlink(our_home.join(shared), home.join(shared)).unwrap();
        }
    }
    let xtask = env::var_os("SLUICE_XTASK").expect("make test sets SLUICE_XTASK");
    let run = |task: &str, folder: &Path, home: &Path| {
        let output = Command::new(&xtask).arg(task).current_dir(folder).env("CARGO_HOME", home).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{task}: {out}{err}");
        out.into_owned()
    };
    let shown = run("demo", &copy, &home);
    assert!(shown.contains("the shipped one but for the step wasm-opt"), "{shown}");
    assert!(!copy.join(testbed::DIST).exists(), "the demo built a module in dist that is not the shipped one");
    // The tool that makes the SBOMs takes minutes to compile.
    fs::create_dir_all(testbed::root().join("target/tools")).unwrap();
    std::os::unix::fs::symlink(testbed::root().join("target/tools"), copy.join("target/tools")).unwrap();
    run("release", &testbed::root(), &our_home);
    run("release", &copy, &home);
    assert!(home.join("registry/src").exists(), "the other CARGO_HOME was not used");
    let [ours, theirs] = [testbed::root(), copy].map(|root| files(&root.join("dist/release")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{name}: {} and {} bytes that differ", ours.len(), theirs.len());
    }
    let sums = String::from_utf8_lossy(&ours["SHA256SUMS"]);
    for name in ours.keys().filter(|name| *name != "SHA256SUMS") {
        assert!(sums.lines().any(|line| line.ends_with(&format!("  {name}"))), "{name} is not in SHA256SUMS:\n{sums}");
    }
    assert!(ours.contains_key("sluice.wasm") && ours.len() == 9, "{:?}", ours.keys());
    assert!(ours["sluice.wasm"] == fs::read(shipped().unwrap()).unwrap(), "the release has another module than dist");
}

/// Returns the names and contents of the files in a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), bytes)
    };
    fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect()
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
