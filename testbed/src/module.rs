//! The modules that the tests and the demos run.

use crate::root;
use anyhow::{Context, Result, bail};
use std::{env, path::PathBuf};

/// The shipped Wasm module, relative to the checkout.
pub const DIST: &str = "dist/sluice.wasm";

/// The native module, relative to the checkout.
pub const DIST_NATIVE: &str = "dist/libsluice.so";

/// A shipped form of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// The module for Envoy's Wasm filter.
    Wasm,
    /// The module for Envoy's dynamic modules.
    Native,
}

impl Module {
    /// Returns the module that the environment variable MODULE names, or [`Self::Wasm`] if it is absent or empty.
    pub fn from_environment() -> Result<Self> {
        match env::var("MODULE").as_deref() {
            Err(env::VarError::NotPresent) | Ok("" | "wasm") => Ok(Self::Wasm),
            Ok("native") => Ok(Self::Native),
            Ok(other) => bail!("MODULE: {other:?}, expected one of: wasm native"),
            Err(error) => bail!("MODULE: {error}"),
        }
    }

    /// Returns the path of the module. Fails if it is not built.
    pub fn path(self) -> Result<PathBuf> {
        match self {
            Self::Wasm => shipped(),
            Self::Native => built(DIST_NATIVE),
        }
    }
}

/// Defines each of these functions, which take a [`Module`], as a test with every module. A test is named
/// `wasm::NAME` or `native::NAME`.
#[macro_export]
macro_rules! for_each_module {
    ($($test:ident),+ $(,)?) => {
        mod wasm {
            $(#[test]
            fn $test() -> ::anyhow::Result<()> {
                super::$test($crate::Module::Wasm)
            })+
        }

        mod native {
            $(#[test]
            fn $test() -> ::anyhow::Result<()> {
                super::$test($crate::Module::Native)
            })+
        }
    };
}

/// Returns the path of the shipped Wasm module. Fails if it is not built.
pub fn shipped() -> Result<PathBuf> {
    built(DIST)
}

/// Returns the path of the module of a plain `cargo build`, which uses the SDK's dispatcher. Fails if it is not built.
pub fn sdk() -> Result<PathBuf> {
    built("target/wasm32-unknown-unknown/release/sluice.wasm")
}

fn built(path: &str) -> Result<PathBuf> {
    root().join(path).canonicalize().with_context(|| format!("{path} is not built: run make test"))
}
