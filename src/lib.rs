//! sluice: a TCP filter for Envoy and Istio that chooses the egress cluster of a connection by its addresses.
//!
//! A configuration is read once ([`config`], by [`json`]) into a table of routes; a connection's addresses are read ([`address`]),
//! the table decides ([`route`]), and the decision is handed to Envoy as filter state ([`filter_state`]).
//! `filter` and `host`, which talk to the proxy, exist in the WebAssembly module only, and so do its two doors: `entry`,
//! the shipped module's own entry points, and `sdk`, the SDK's dispatcher (feature `sdk`, on by default).
//!
//! A table's lists are strings of [`bytes`], read with a [`cursor`] like a document: one kind of list is less code than several.
//! What is `#[inline(never)]` is smaller so.

#![no_std]

extern crate alloc;
#[cfg(not(target_arch = "wasm32"))]
extern crate std; // the native builds, tests and tools, take their allocator and panic handler from it

pub mod address;
pub mod bytes;
pub mod config;
pub mod cursor;
#[cfg(all(target_arch = "wasm32", not(feature = "sdk")))]
mod entry;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod filter_state;
#[cfg(target_arch = "wasm32")]
mod host;
pub mod json;
pub mod line;
pub mod name;
pub mod prefix;
pub mod route;
#[cfg(all(target_arch = "wasm32", feature = "sdk"))]
mod sdk;
