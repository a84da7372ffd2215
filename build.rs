//! Generates the bindings of `protos/` into OUT_DIR. The compiler is a Rust crate, so the machine needs no protoc.

use std::{env, error::Error, path::PathBuf};

const PROTO: &str = "set_envoy_filter_state.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let descriptors = protox::compile([PROTO], ["protos"])?;
    prost_build::Config::new().out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
