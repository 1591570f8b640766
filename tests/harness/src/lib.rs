//! A machine in the developer's memory: the real core over the real page-table code, compared with
//! the executable specification after every call.
//!
//! [`World`] is one machine from launch on. [`Reader`] reads the abstract state off it, from frame
//! records and from the bytes of the page tables, with a [`walker`] that shares no code with what
//! builds them. After every call, result and state are those that the specification says, a
//! refused call has changed no byte, and memory that has to be zero is.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "picks out what it looks at; naming all is for those who decide"
)]

pub mod abstraction;
pub mod boards;
pub mod calls;
mod contents;
mod difference;
mod maintenance;
pub mod prepared;
pub mod rules;
mod shadow;
pub mod world;

pub use abstraction::Reader;
pub use board::{Board, Config};
pub use pfnguard_sim::{board, guest, machine, memory, walker};
pub use prepared::Stage;
pub use world::World;
