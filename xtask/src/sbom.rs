//! The software bills of materials of the modules, from cargo-cyclonedx: the crates that are compiled into them, including macros.
//! The standard library is not listed.

use crate::{native, tools};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

/// The name of the files of cargo-cyclonedx, without the extension.
const NAME: &str = "partial-sbom";

/// Writes the bills for the Wasm module and for the native module into a folder.
pub fn write(root: &Path, folder: &Path) -> Result<()> {
    let host = native::host()?;
    for (module, target, features) in
        [("sluice.wasm", "wasm32-unknown-unknown", &[][..]), ("libsluice", &host, &["--features", "native"])]
    {
        let text = generate(root, target, features);
        for file in leftovers(root)? {
            fs::remove_file(file)?;
        }
        fs::write(folder.join(format!("{module}.cdx.json")), reproducible(&text?)?)?;
    }
    Ok(())
}

fn generate(root: &Path, target: &str, features: &[&str]) -> Result<String> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let program = tools::tool(&sh, tools::CARGO_CYCLONEDX)?;
    let options = ["--quiet", "--format", "json", "--spec-version", "1.5", "--no-build-deps", "--no-default-features"];
    let command = cmd!(sh, "{program} cyclonedx {options...} --override-filename {NAME} --target {target}");
    command.args(features).env("SOURCE_DATE_EPOCH", "0").quiet().run()?;
    let path = root.join(format!("{NAME}.json"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The files that cargo-cyclonedx wrote. It writes one for each package of the workspace.
fn leftovers(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root.to_owned()];
    for entry in fs::read_dir(root)? {
        folders.push(entry?.path());
    }
    Ok(folders.iter().map(|folder| folder.join(format!("{NAME}.json"))).filter(|path| path.is_file()).collect())
}

/// Removes what differs between two runs: the time, and the reference of the package, which contains the path of the checkout.
fn reproducible(text: &str) -> Result<String> {
    let document: Value = serde_json::from_str(text)?;
    let package = document.pointer("/metadata/component/bom-ref").and_then(Value::as_str);
    let text = text.replace(package.context("the SBOM does not name its package")?, "sluice");
    let mut document: Value = serde_json::from_str(&text)?;
    let metadata = document.get_mut("metadata").and_then(Value::as_object_mut).context("the SBOM has no metadata")?;
    metadata.remove("timestamp").context("the SBOM has no time")?;
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Cargo omits the name of a package in its reference if the folder has the same name.
#[test]
fn the_folder_and_the_time_do_not_change_an_sbom() -> Result<()> {
    let bill = |package: &str, time: &str| {
        reproducible(&format!(
            r#"{{"metadata":{{"timestamp":"{time}","component":{{"bom-ref":"{package}"}}}},"dependencies":[{{"ref":"{package}"}}]}}"#
        ))
    };
    let here = bill("path+file:///work/main#sluice@0.2.0", "2026-01-01T00:00:00Z")?;
    assert_eq!(here, bill("path+file:///else%20where/sluice#0.2.0", "2026-01-02T00:00:00Z")?);
    assert!(!here.contains("path+file"), "{here}");
    Ok(())
}
