//! The one room for unsafe and assembly: boot, vectors, world switch, page tables, TLB, caches.
//!
//! Modules that only compute are built everywhere and tested on the developer's machine; those that
//! execute privileged instructions exist on aarch64 only.

#![no_std]
// In the payload `{:?}` prints nothing (`-Zfmt-debug=none`): what a person is to read is `Display`.
#![cfg_attr(not(test), warn(clippy::use_debug))]

#[cfg(test)]
extern crate std;

pub mod arg_slot;
mod attempt;
pub mod attrs;
pub mod barrier;
pub mod cache;
pub mod el2;
pub mod features;
pub mod fixmap;
pub mod frames;
pub mod inject;
pub mod pool;
pub mod stage1;
pub mod stage2;
pub mod syndrome;
#[cfg(test)]
mod testing;
pub mod tlb;
pub mod walk;

#[cfg(target_arch = "aarch64")]
pub mod boot;
#[cfg(target_arch = "aarch64")]
pub mod console;
#[cfg(target_arch = "aarch64")]
pub mod fault;
#[cfg(target_arch = "aarch64")]
pub mod firmware;
#[cfg(target_arch = "aarch64")]
pub mod host;
#[cfg(target_arch = "aarch64")]
pub mod late;
#[cfg(target_arch = "aarch64")]
pub mod launch;
#[cfg(target_arch = "aarch64")]
pub mod layout;
#[cfg(target_arch = "aarch64")]
pub mod machine;
#[cfg(target_arch = "aarch64")]
pub mod percpu;
#[cfg(target_arch = "aarch64")]
mod plan;
#[cfg(target_arch = "aarch64")]
pub mod secondary;
#[cfg(target_arch = "aarch64")]
pub mod sysreg;
#[cfg(target_arch = "aarch64")]
pub mod vectors;
#[cfg(target_arch = "aarch64")]
pub mod world;

pub use pfnguard_core::addr::PhysAddr;
