//! `make oci` and `make oci-push`: the shipped module as OCI images, in the two forms that Istio's sidecars pull. The same
//! module gives the same bytes.

use crate::{module, root};
use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, OciLayoutBuilder, Os, RootFsBuilder, SCHEMA_VERSION,
};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

/// The media types that Istio requires, from pkg/wasm/imagefetcher.go of its repository.
const CONTENT: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
const CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const IN_TAR: &str = "plugin.wasm";

/// The folders of the image layouts, relative to the checkout, and the suffixes of their tags.
pub const ARTIFACT: (&str, &str) = ("dist/oci", "");
pub const COMPAT: (&str, &str) = ("dist/oci-compat", "-compat");

/// Writes both image layouts.
pub fn build() -> Result<()> {
    let root = root()?;
    let module = fs::read(module::shipped()?)?;
    for ((path, _), image) in [(ARTIFACT, artifact as fn(&Layout, &[u8]) -> _), (COMPAT, compat)] {
        let layout = Layout::new(root.join(path))?;
        let manifest = image(&layout, &module)?;
        println!("{path}: {}", layout.finish(manifest)?);
    }
    Ok(())
}

/// Pushes both with crane: the artefact with the tag of the reference, the image with `-compat` appended to that tag.
pub fn push(reference: &str) -> Result<()> {
    ensure!(!reference.contains('@'), "REF: {reference}, expected a tag and no digest; the push prints the digest");
    let tagged = reference.rsplit_once('/').context("REF: expected REGISTRY/NAME:TAG")?.1.contains(':');
    ensure!(tagged, "REF: {reference} has no tag, expected REGISTRY/NAME:TAG");
    build()?;
    let root = root()?;
    let sh = Shell::new()?;
    for (path, suffix) in [ARTIFACT, COMPAT] {
        let path = root.join(path);
        let reference = format!("{reference}{suffix}");
        let pushed = match cmd!(sh, "crane version").quiet().ignore_stdout().ignore_stderr().run() {
            Ok(()) => cmd!(sh, "crane push {path} {reference}").read()?,
            Err(_) => {
                let tools = root.join("tests/kubernetes/tools/istio");
                cmd!(sh, "go -C {tools} tool crane push {path} {reference}").read()?
            }
        };
        println!("oci://{}", pushed.trim());
    }
    Ok(())
}

/// The artefact: the module and an empty layer.
fn artifact(layout: &Layout, module: &[u8]) -> Result<Descriptor> {
    let nothing = layout.add(MediaType::Other(CONFIG.into()), b"{}")?;
    let content = layout.add(MediaType::Other(CONTENT.into()), module)?;
    layout.manifest(nothing.clone(), vec![nothing, content])
}

/// The image: one layer, an archive that contains the module. Every registry accepts it.
fn compat(layout: &Layout, module: &[u8]) -> Result<Descriptor> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar(); // time 0, no owner
    header.set_size(module.len().try_into()?);
    header.set_mode(0o644);
    archive.append_data(&mut header, IN_TAR, module)?;
    let archive = archive.into_inner()?;
    let mut layer = GzBuilder::new().write(Vec::new(), Compression::best());
    layer.write_all(&archive)?;
    let layer = layout.add(MediaType::ImageLayerGzip, &layer.finish()?)?;
    let root = RootFsBuilder::default().typ("layers").diff_ids(vec![format!("sha256:{}", hash(&archive))]).build()?;
    let config = ImageConfigurationBuilder::default()
        .architecture(Arch::Wasm)
        .os(Os::Other("wasi".into()))
        .config(ConfigBuilder::default().build()?)
        .rootfs(root)
        .build()?;
    let config = layout.add(MediaType::ImageConfig, config.to_string()?.as_bytes())?;
    layout.manifest(config, vec![layer])
}

/// An image layout: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
struct Layout(PathBuf);

impl Layout {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(path.join("blobs/sha256"))?;
        Ok(Self(path))
    }

    fn add(&self, kind: MediaType, bytes: &[u8]) -> Result<Descriptor> {
        let hash = hash(bytes);
        fs::write(self.0.join("blobs/sha256").join(&hash), bytes)?;
        let digest: Digest = format!("sha256:{hash}").parse()?;
        Ok(Descriptor::new(kind, bytes.len().try_into()?, digest))
    }

    fn manifest(&self, config: Descriptor, layers: Vec<Descriptor>) -> Result<Descriptor> {
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()?;
        self.add(MediaType::ImageManifest, manifest.to_string()?.as_bytes())
    }

    /// Returns the digest of the manifest.
    fn finish(self, manifest: Descriptor) -> Result<String> {
        let digest = manifest.digest().to_string();
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .manifests(vec![manifest])
            .build()?
            .to_string()?;
        fs::write(self.0.join("index.json"), index)?;
        let marker = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        fs::write(self.0.join(Path::new("oci-layout")), marker.to_string()?)?;
        Ok(digest)
    }
}

/// Returns the SHA-256 of these bytes in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
