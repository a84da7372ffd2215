//! Runs `xtask/setup.sh` on a machine with only a few programs. A fake `apt-get` records its calls, and a fake `curl` downloads a
//! file with a wrong hash.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A folder that serves as PATH, HOME and TMPDIR of the script.
struct Machine(TempDir);

impl Machine {
    fn new(user: u32) -> Self {
        let machine = Self(TempDir::new().unwrap());
        for program in ["cat", "chmod", "cut", "dirname", "mktemp", "rm", "sed", "sh", "sha256sum"] {
            let path = ["/usr/bin", "/bin"].map(|folder| format!("{folder}/{program}"));
            let path = path.iter().find(|path| fs::exists(path).unwrap()).unwrap();
            symlink(path, machine.0.path().join(program)).unwrap();
        }
        machine.program("id", &format!("echo {user}"));
        machine.program("uname", "echo Linux x86_64");
        machine.program("apt-get", "echo \"$*\" >>\"$HOME/apt-get.log\"");
        machine
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn set_up(&self, goals: &[&str]) -> (Output, String) {
        let mut command = Command::new(self.0.path().join("sh"));
        command.arg(testbed::root().join("xtask/setup.sh")).args(goals);
        let output = command
            .env_clear()
            .env("PATH", self.0.path())
            .env("HOME", self.0.path())
            .env("TMPDIR", self.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        (output, said)
    }

    /// Returns the arguments of the calls to `apt-get`, one call per line.
    fn installed(&self) -> String {
        fs::read_to_string(self.0.path().join("apt-get.log")).unwrap_or_default()
    }
}

#[test]
fn a_target_that_does_not_install_lists_the_missing_packages() {
    let machine = Machine::new(0);
    for goals in [&["lint"][..], &["build-wasm"], &["fmt", "audit"]] {
        let (output, said) = machine.set_up(goals);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty());
        assert!(
            said.starts_with(&format!("make {}: missing: gcc libc6-dev (Rust's linker)", goals.join(" "))),
            "{said}"
        );
        assert!(said.contains("apt-get install --yes --no-install-recommends gcc libc6-dev"), "{said}");
        assert_eq!(said.contains("g++ (compiles Binaryen)"), goals == ["build-wasm"], "{said}");
    }
    assert_eq!(machine.installed(), "");
}

#[test]
fn a_target_that_installs_prints_the_command_for_root() {
    let machine = Machine::new(1000);
    let (output, said) = machine.set_up(&["demo"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Please run: sudo sh -c 'apt-get update && apt-get install --yes"), "{said}");
    assert_eq!(machine.installed(), "");
}

#[test]
fn a_target_that_installs_lists_its_packages_and_does_not_run_a_download_with_a_wrong_hash() {
    let machine = Machine::new(0);
    machine.program("curl", "while [ \"$1\" != --output ]; do shift; done; echo 'echo >\"$HOME/ran\"' >\"$2\"");
    let (output, said) = machine.set_up(&["demo"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("make demo: installing gcc libc6-dev (Rust's linker), "), "{said}");
    let installed = machine.installed();
    let calls: Vec<&str> = installed.lines().collect();
    assert!(calls.len() == 2 && calls[1].contains("--no-install-recommends gcc libc6-dev"), "{installed}");
    assert!(said.contains("rustup-init: the SHA-256 is "), "{said}");
    assert!(!fs::exists(machine.0.path().join("ran")).unwrap(), "the download was run");
}

#[test]
fn debians_compiler_is_used_if_rustup_lacks_the_pinned_one() {
    let machine = Machine::new(0);
    for program in ["c++", "cc", "curl", "ip", "python3"] {
        machine.program(program, "exit 0");
    }
    machine.program("rustup", "exit 1");
    let (output, said) = machine.set_up(&["demo"]);
    assert!(output.status.success(), "{said}");
    assert_eq!(output.stdout, b"/usr/bin\n");
    assert!(said.contains("using Debian's"), "{said}");
    // Setup installs Debian's packages unless this machine has them already.
    assert!(
        fs::exists("/usr/bin/wasm-ld-22").unwrap() || machine.installed().contains("cargo-web rustc-web"),
        "{said}"
    );
}
