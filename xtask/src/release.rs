//! `make release`: builds the artefacts of a release in `dist/release`. The bytes depend only on the sources and the compiler,
//! not on the folder, the user or the time.

use crate::{module, native, oci, root, sbom};
use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use std::{env, fs, path::Path};

/// The folder of the artefacts, relative to the checkout.
const FOLDER: &str = "dist/release";

/// The contents of the archive of manifests and configurations.
const SHIPPED: [&str; 5] = ["CHANGELOG.md", "LICENSE", "envoy-docker", "istio", "observability"];

/// Builds the artefacts. TAG, if set, must name this version. TARGETS lists further targets of the native module.
pub fn build() -> Result<()> {
    let root = root()?;
    let version = version(&root)?;
    match env::var("TAG") {
        Ok(tag) if !tag.is_empty() => check_tag(&root, &version, &tag)?,
        _ => {}
    }
    let folder = root.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;

    fs::copy(module::shipped()?, folder.join("sluice.wasm"))?;
    let host = native::host()?;
    fs::copy(native::build()?, folder.join(format!("libsluice-{host}.so")))?;
    for target in env::var("TARGETS").unwrap_or_default().split_whitespace() {
        fs::copy(native::build_for_other(target)?, folder.join(format!("libsluice-{target}.so")))?;
    }
    oci::build()?;
    for layout in [oci::ARTIFACT, oci::COMPAT] {
        let name = Path::new(layout.0).file_name().context("a layout without a name")?.to_string_lossy();
        fs::write(folder.join(format!("sluice-{name}.tar")), archive(&root.join(layout.0), &["."], "")?)?;
    }
    let manifests = gzip(&archive(&root, &SHIPPED, &format!("sluice-{version}"))?)?;
    fs::write(folder.join(format!("sluice-manifests-{version}.tar.gz")), manifests)?;
    fs::copy(root.join("schema/sluice.schema.json"), folder.join("sluice.schema.json"))?;
    sbom::write(&root, &folder)?;

    let mut names: Vec<String> = Vec::new();
    for file in fs::read_dir(&folder)? {
        names.push(file?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut sums = String::new();
    for name in names {
        let bytes = fs::read(folder.join(&name))?;
        println!("{FOLDER}/{name}: {} bytes", bytes.len());
        sums += &format!("{}  {name}\n", oci::hash(&bytes));
    }
    fs::write(folder.join("SHA256SUMS"), sums)?;
    println!("{FOLDER}/SHA256SUMS");
    Ok(())
}

/// The version of the workspace, the only place where it is stated.
fn version(root: &Path) -> Result<String> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(version.context("Cargo.toml: no version")?.trim_matches('"').to_owned())
}

/// Fails unless the tag names this version and the changelog has a section with a date for it.
fn check_tag(root: &Path, version: &str, tag: &str) -> Result<()> {
    ensure!(tag == format!("v{version}"), "TAG: {tag:?}, expected v{version}, the version in Cargo.toml");
    let changelog = fs::read_to_string(root.join("CHANGELOG.md"))?;
    let heading = format!("## [{version}] - ");
    if !changelog.lines().any(|line| line.starts_with(&heading)) {
        bail!("CHANGELOG.md: no section {heading}YYYY-MM-DD");
    }
    Ok(())
}

/// Returns an archive of these files and folders below `root`, in a folder with this name. Modules that a user copied into the
/// manifests, and hidden files other than `.env`, are left out.
fn archive(root: &Path, paths: &[&str], prefix: &str) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    for path in paths {
        module::collect(&root.join(path), &mut files)?;
    }
    files.sort();
    let mut archive = tar::Builder::new(Vec::new());
    for file in files.iter().filter(|file| is_shipped(file)) {
        let bytes = fs::read(file)?;
        let mut header = tar::Header::new_ustar(); // the time is 0, the owner is root
        header.set_size(bytes.len().try_into()?);
        header.set_mode(if file.extension().is_some_and(|extension| extension == "sh") { 0o755 } else { 0o644 });
        archive.append_data(&mut header, Path::new(prefix).join(file.strip_prefix(root)?), &bytes[..])?;
    }
    Ok(archive.into_inner()?)
}

fn is_shipped(file: &Path) -> bool {
    let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.') && name != ".env");
    let module = file.extension().is_some_and(|extension| extension == "wasm" || extension == "so");
    !hidden && !module
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut writer, bytes)?;
    Ok(writer.finish()?)
}
