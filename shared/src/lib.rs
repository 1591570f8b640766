//! The pfnguard ABI: every number and every layout that crosses an exception level.
//!
//! This crate holds no policy. It says which calls exist ([`call`]), what they answer ([`status`],
//! [`rule`]), how a PFNMAP request is written ([`request`]), what a manifest looks like in memory
//! ([`manifest`]), how a kernel module launches the hypervisor ([`launch`]), and which records the trace ring carries ([`trace`]). The C header under
//! `host-interface/include` is generated from the same definitions.
//!
//! # Calling convention
//!
//! `HVC #0` with the SMCCC 1.2 register convention: function id in `x0`, arguments in `x1..=x7`,
//! results in `x0..=x7`. `x0` is a [`Status`]: zero, or negative.
//!
//! On success `x1..` carry what the call documents. On refusal:
//!
//! | register | meaning |
//! |---|---|
//! | `x0` | [`Status`], negative |
//! | `x1` | bits 15:0 the [`Rule`] (0: none), bits 31:16 the [`Subject`] of the two values below |
//! | `x2` | offending PFN, or [`NO_PFN`] |
//! | `x3` | requested value |
//! | `x4` | granted value |
//!
//! A refused call has changed nothing.

#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;
pub mod call;
pub mod device;
// Counts to 65,535 many times: too long for Miri, which has nothing to find in it.
#[cfg(all(test, not(miri)))]
mod exhaustive;
pub mod info;
pub mod launch;
pub mod manifest;
pub mod migration;
pub mod request;
pub mod rule;
pub mod status;
pub mod trace;
pub mod vm;

pub use call::{GuestFunction, HostFunction};
pub use request::{MemType, Mode, Perms, RequestWord};
pub use rule::Rule;
pub use status::{Status, Subject};

/// Bytes in a page; the only granule pfnguard supports is 4 KiB.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// ABI version, major half: changes only when a number or a layout changes its meaning.
pub const ABI_MAJOR: u32 = 0;
/// ABI version, minor half: grows with every call, rule or feature bit that is added.
pub const ABI_MINOR: u32 = 1;
/// `x2` of a refusal that no single page caused.
pub const NO_PFN: u64 = u64::MAX;
/// Most pages that one RAM call accepts (2 MiB): bounds the time spent at EL2.
pub const MAX_RANGE_PAGES: u64 = 512;

/// A field of a wire structure, for generated headers and layout tests.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in Rust and in C.
    pub name: &'static str,
    /// Rust type, as written (`u32`, `[u8; 32]`).
    pub rust_type: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Documentation, one line per string.
    pub docs: &'static [&'static str],
}

/// A structure that crosses the ABI: its layout is asserted here and described for C.
pub trait Wire {
    /// Rust name.
    const NAME: &'static str;
    /// Size in bytes.
    const SIZE: usize;
    /// Documentation, one line per string.
    const DOCS: &'static [&'static str];
    /// Fields in memory order.
    const FIELDS: &'static [Field];
}

/// A named number of the ABI, for generated headers.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// Rust name of the variant or bit.
    pub name: &'static str,
    /// Its value; negative only for [`Status`].
    pub value: i64,
    /// Documentation, one line per string.
    pub docs: &'static [&'static str],
}
