//! How the shipped module is made: what it imports and exports, its size, and that its bytes depend on nothing else
//! than the sources and the compiler.

use crate::{plain, shipped};
use std::{env, fs, path::Path, process::Command};
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
#[ignore = "make test builds the module"]
fn the_shipped_module_imports_and_exports_what_the_goldens_say() {
    let module = load(&shipped());
    let imports = lines(module.imports().map(|import| format!("{}.{}", import.module(), import.name())));
    assert_eq!(imports, golden("imports"));
    let exports = lines(module.exports().map(|export| export.name().to_owned()));
    assert_eq!(exports, golden("exports"));
}

#[test]
fn no_golden_export_is_entered_per_chunk_of_data() {
    for prefix in ["proxy_on_downstream", "proxy_on_upstream", "proxy_on_http", "proxy_on_request", "proxy_on_response"]
    {
        assert!(!golden("exports").contains(prefix), "{prefix}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn the_shipped_module_is_within_its_budget_and_smaller_than_the_plain_one() {
    let (shipped, plain) = (shipped().metadata().unwrap().len(), plain().metadata().unwrap().len());
    let budget: u64 = golden("size-budget").trim().parse().unwrap();
    assert!(shipped <= budget, "{shipped} bytes of {budget}");
    assert!(shipped < plain, "{shipped} and {plain} bytes");
}

#[test]
fn the_bindings_are_the_golden_ones() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/envoy.source.extensions.common.wasm.rs"));
    assert_eq!(generated, golden("set_envoy_filter_state.rs"), "make regen-proto shows the difference");
}

#[test]
#[ignore = "make test says what builds the module"]
fn a_checkout_elsewhere_shows_the_demo_at_once_and_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (copy, home) = (folder.path().join("elsewhere/sluice"), folder.path().join("another cargo home"));
    copy_tree(&testbed::root(), &copy);
    let our_home =
        env::var_os("CARGO_HOME").map_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cargo"), Into::into);
    fs::create_dir_all(home.join("registry")).unwrap();
    // What was downloaded is shared; the sources are unpacked anew, and so compiled from another path.
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
    assert!(shown.contains("the shipped one but for the step wasm-opt"), "{shown}");
    assert!(!copy.join(testbed::DIST).exists(), "the demo made a module that is not the shipped one");
    run("build-wasm");
    assert!(home.join("registry/src").exists(), "the other CARGO_HOME was not used");
    let (ours, theirs) = (fs::read(shipped()).unwrap(), fs::read(copy.join(testbed::DIST)).unwrap());
    assert!(ours == theirs, "{} and {} bytes, which differ", ours.len(), theirs.len());
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
