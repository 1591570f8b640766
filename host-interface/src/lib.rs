//! How a host kernel, and a guest, call pfnguard.
//!
//! Start here:
//! 1. Ask who is there: [`Host::uid`] must equal [`HOST_UID`](pfnguard_shared::call::HOST_UID),
//!    [`Host::revision`] must have the major version this crate was built for.
//! 2. Give each CPU an argument page: [`Host::share_hyp`] one page, then [`Host::arg_page_set`].
//!    Batches ([`Host::check`]) and long answers ([`Host::region_info`]) go through it.
//! 3. Make a VM: [`Host::vm_create`] donates the memory for its tables; [`Host::share_guest`] or
//!    [`Host::donate_guest`] gives it RAM; [`Host::pfnmap_bind`] gives it a PFNMAP region.
//! 4. Run it: [`Host::vcpu_init`], then [`Host::vcpu_run`] in a loop over [`Exit`].
//! 5. Let go: [`Host::vm_teardown`], [`Host::reclaim_guest`], [`Host::vm_free`] until it says 0.
//!
//! Every caller is generic over the [`Hypercall`] that carries the registers: `Hvc` on the
//! machine, a fake in tests. A call that is refused has changed nothing; [`Refused`] says which
//! rule refused, on account of which page, and what would have been granted.
//!
//! ```
//! use pfnguard_host_interface::{Host, Hypercall, Pages, Pfn};
//! # struct Fake;
//! # impl Hypercall for Fake {
//! #     fn call(_regs: [u64; 8]) -> [u64; 8] { [0; 8] }
//! # }
//! // In a kernel: `type Conduit = pfnguard_host_interface::Hvc;`
//! # type Conduit = Fake;
//! let page = Pages::one(Pfn(0x48000));
//! Host::<Conduit>::share_hyp(page)?;
//! Host::<Conduit>::arg_page_set(page.start)?;
//! # Ok::<(), pfnguard_host_interface::Refused>(())
//! ```
//!
//! Numbers and layouts come from [`pfnguard_shared`]; C callers use the header under `include/`,
//! which is generated from the same definitions.

#![no_std]
#![deny(unsafe_code)]

mod argument;
mod conduit;
mod guest;
mod host;
mod numbers;
mod refused;
mod vcpu;

pub use argument::ArgumentPage;
#[cfg(target_arch = "aarch64")]
pub use conduit::Hvc;
pub use conduit::Hypercall;
pub use guest::{Guest, Promised};
pub use host::Host;
pub use numbers::{IpaPfn, Pages, Pfn, RegionIndex, VcpuId, VmId};
pub use refused::Refused;
pub use vcpu::{Exit, GuestValue, Mmio};

#[cfg(test)]
mod tests;
