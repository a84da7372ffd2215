//! sluice: a TCP filter for Envoy and Istio that selects the egress cluster of a connection or denies it, by its
//! addresses, destination port and server name.
//!
//! ```text
//!            configuration                    new connection
//!                  │                                │
//!   document ──▶ config ──▶ policy ◀── filter ◀── host ◀── proxy
//!   (JSON or               (routes,    (reads, decides,
//!    Struct)                decision)   overrides, counts, logs)
//! ```
//!
//! - [`config`] describes the configuration and turns it into a [`policy`]; [`document`] reads JSON and Struct.
//! - [`policy`] decides about a connection by its [`routes`]. It works on [`address`], [`cidr`] and [`server_name`] and calls no
//!   proxy.
//! - [`filter`] loads a configuration and handles new connections, for any proxy that implements the traits in [`host`].
//! - `src/host/` implements these traits for the proxy-wasm ABI, for Envoy's dynamic modules (feature `native`), and for tests,
//!   which record the calls. It also contains the entry points of both modules, the allocator of the shipped Wasm module, and the
//!   contexts for the SDK's dispatcher (feature `sdk`, on by default).
//! - [`cursor`], [`text`] and [`config_error`] are helpers of the other modules.
//!
//! `#[inline(never)]` and `#[inline(always)]` are used where they make the module smaller.

#![no_std]

#[cfg(target_feature = "atomics")]
compile_error!("the allocator and the entry points need a module with one thread");

extern crate alloc;
#[cfg(not(target_arch = "wasm32"))]
extern crate std; // native builds take their allocator and panic handler from it

pub mod address;
pub mod cidr;
pub mod config;
pub mod config_error;
pub mod cursor;
pub mod document;
pub mod filter;
pub mod host;
pub mod policy;
pub mod routes;
pub mod server_name;
pub mod text;
