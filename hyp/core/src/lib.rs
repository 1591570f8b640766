//! pfnguard's policy: who owns which page, who may map which region with which type, and why not.
//!
//! No unsafe, no assembly, no statics, no pointers: hardware is reached through the role traits of
//! [`machine`]. The door is [`Hypervisor::host_call`], [`Hypervisor::host_abort`] and
//! [`Hypervisor::smc`]; everything that comes in there is a claim, decoded once ([`call`]).
//!
//! Rules are named by the ids of the specification ([`pfnguard_shared::Rule`]).

#![no_std]
#![forbid(unsafe_code)]
// In the payload `{:?}` prints nothing (`-Zfmt-debug=none`): what a person is to read is `Display`.
#![cfg_attr(not(any(test, feature = "fake")), warn(clippy::use_debug))]

#[cfg(any(test, feature = "fake", feature = "shuttle"))]
extern crate std;

pub mod addr;
pub mod call;
pub mod decide;
pub mod dispatch;
pub mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod guest;
pub mod host;
pub mod hypervisor;
#[cfg(any(test, feature = "fake"))]
mod inspect;
pub mod launch_info;
mod lock;
pub mod machine;
pub mod manifest;
pub mod migration;
pub mod ownership;
pub mod pfnmap;
pub mod psci;
pub mod region;
mod reset;
pub mod smc;
pub mod trace;
pub mod vcpu;
pub mod vm;
pub mod vmemmap;

pub use hypervisor::Hypervisor;
