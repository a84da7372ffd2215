//! A Wasm module that traps.

use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Accepts two connections and traps at the third.
const TEXT: &str = r#"(module
  (memory (export "memory") 1)
  (global $connections (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (global.set $connections (i32.add (global.get $connections) (i32.const 1)))
    (if (i32.eq (global.get $connections) (i32.const 3)) (then unreachable))
    (i32.const 0)))"#;

/// Writes the module into this folder and returns its path.
pub fn trapping_module(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("traps.wasm");
    fs::write(&path, wat::parse_str(TEXT)?)?;
    Ok(path)
}
