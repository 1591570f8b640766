//! The oracle over executed instructions: what an emulator hides, judged from a trace.
//!
//! An emulator forgives a hypervisor a missing barrier, a wrong VMID or cache lines that were never
//! cleaned. So a plugin writes down what EL2 executes ([`record`]), and [`Checker`] holds that
//! against the architecture:
//!
//! * a descriptor that a walker can reach changes from one translation to another only by way of
//!   an invalid descriptor whose TLB maintenance is complete (break-before-make, Arm ARM, D8.17);
//! * maintenance of a removed translation is complete, with `DSB` before, the right VMID, both
//!   stages, all CPUs and `DSB` after, before a table page is used again, before the next owner's
//!   translation of the frame becomes valid, and before the call returns; twice on CPUs whose
//!   erratum asks for it;
//! * a frame is taken from its owner before, in the same call, another one gets it;
//! * a new translation is followed by `DSB` before the call returns, and a window by `DSB` and `ISB`
//!   before EL2 maintains lines through it;
//! * every line of device memory that was cacheable, and without FEAT_S2FWB of RAM, is cleaned and
//!   invalidated between one owner's last access and the next owner's first.
//!
//! What it knows of the tables it learns from the registers that point at them and from the stores
//! to them; it shares no code with the hypervisor. Local invalidation is never enough, also not for
//! the windows of one CPU: another CPU may speculate through them.

#![forbid(unsafe_code)]

mod cache;
mod checker;
mod cpu;
pub mod insn;
mod memory;
pub mod record;
mod removal;
mod report;
mod tables;
mod violation;

pub use checker::{Checker, Config};
pub use removal::Times;
pub use report::{Call, Counter, Report, Tally, Translations};
pub use violation::{Moment, Rule, Translation, Violation};
