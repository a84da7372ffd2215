//! `make regen-proto`: compares the generated bindings with their golden, and the proto file with the Envoy binary.

use crate::root;
use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use std::{fs, path::Path};
use testbed::envoy;
use xshell::{Shell, cmd};

const PROTO: &str = "set_envoy_filter_state.proto";
const MESSAGE: &str = "SetEnvoyFilterStateArguments";

/// Generates the bindings. Fails with the difference if they differ from the golden file. Then compares package,
/// fields and enum values with the descriptors inside the Envoy binary.
pub fn regenerate() -> Result<()> {
    let root = root()?;
    let ours = protox::compile([PROTO], [root.join("protos")])?;
    let folder = tempfile::tempdir()?;
    prost_build::Config::new().out_dir(folder.path()).compile_fds(ours.clone())?;
    let generated = fs::read_dir(folder.path())?.next().context("no bindings were generated")??.path();
    compare_with_golden(&generated, &root.join("tests/data/set_envoy_filter_state.rs"))?;

    let program = envoy::program()?;
    compare_with_envoy(&ours, &fs::read(&program)?)?;
    println!("{PROTO}: bindings as in tests/data, fields as in Envoy {}", envoy::version(&program)?);
    Ok(())
}

fn compare_with_golden(generated: &Path, golden: &Path) -> Result<()> {
    let sh = Shell::new()?;
    let difference = cmd!(sh, "diff --unified {golden} {generated}").quiet().ignore_status().output()?;
    if difference.status.success() {
        return Ok(());
    }
    print!("{}", String::from_utf8_lossy(&difference.stdout));
    eprint!("{}", String::from_utf8_lossy(&difference.stderr));
    if std::env::var_os("UPDATE").is_some() {
        fs::copy(generated, golden)?;
        println!("{} was rewritten", golden.display());
        return Ok(());
    }
    bail!("the bindings differ from {}, UPDATE=1 accepts them", golden.display());
}

fn compare_with_envoy(ours: &FileDescriptorSet, program: &[u8]) -> Result<()> {
    let [ours] = ours.file.as_slice() else { bail!("{PROTO} has imports") };
    let theirs = ["set_envoy_filter_state", "declare_property"].map(|name| {
        let path = format!("source/extensions/common/wasm/ext/{name}.proto");
        embedded(program, &path).with_context(|| format!("no descriptor of {path} in Envoy"))
    });
    let [arguments, spans] = theirs;
    let (arguments, spans) = (arguments?, spans?);

    ensure!(
        ours.package() == arguments.package(),
        "package: {} here, {} in Envoy",
        ours.package(),
        arguments.package()
    );
    let fields = |file: &FileDescriptorProto| {
        let message = file.message_type.iter().find(|message| message.name() == MESSAGE)?;
        let field = |field: &prost_types::FieldDescriptorProto| {
            (field.name().to_owned(), field.number(), field.r#type(), field.type_name().to_owned())
        };
        Some(message.field.iter().map(field).collect::<Vec<_>>())
    };
    let (here, there) = (fields(ours), fields(&arguments));
    ensure!(here.is_some() && here == there, "{MESSAGE}: {here:?} here, {there:?} in Envoy");
    let values = |file: &FileDescriptorProto| {
        let span = file.enum_type.iter().find(|value| value.name() == "LifeSpan")?;
        Some(span.value.iter().map(|value| (value.name().to_owned(), value.number())).collect::<Vec<_>>())
    };
    let (here, there) = (values(ours), values(&spans));
    ensure!(here.is_some() && here == there, "LifeSpan: {here:?} here, {there:?} in Envoy");
    Ok(())
}

/// Finds the serialized descriptor of a proto file in code that protoc generated for C++. The fields are in the order of
/// their numbers: the name is first, `syntax` is last.
fn embedded(program: &[u8], path: &str) -> Option<FileDescriptorProto> {
    let mut name = vec![0x0a, u8::try_from(path.len()).ok()?];
    name.extend_from_slice(path.as_bytes());
    let start = program.windows(name.len()).position(|window| window == name)?;
    let text = program.get(start..)?;
    const SYNTAX: &[u8] = b"\x62\x06proto3";
    let end = text.windows(SYNTAX.len()).position(|window| window == SYNTAX)? + SYNTAX.len();
    FileDescriptorProto::decode(text.get(..end)?).ok()
}
