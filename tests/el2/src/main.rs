//! The bare-metal host: an EL1 kernel that asks for everything and tries what must not work.
//!
//! It is a flat image, entered at its first byte with `x0` = device tree, MMU and caches off. Boot
//! arguments choose what it does: `demo` asks for every combination on every BAR, `test` runs every
//! attack, `test=<prefix>` those whose name starts so, `bench` counts what each call executes,
//! `fuzz=<seed>,<calls>` makes random calls and writes them down.
//! Results are `@` lines on the serial line.

#![no_std]
#![no_main]

#[macro_use]
mod uart;
#[macro_use]
mod abort;

mod bars;
mod bench;
mod bench_call;
mod calls;
mod cpu;
mod demo;
mod dtb;
mod escapes;
mod frames;
mod fuzz;
mod gic;
mod guest_code;
mod guests;
mod guests_own;
mod guests_protected;
mod handover;
mod malformed;
mod memory;
mod outcome;
mod ownership;
mod pci;
mod pfnmap;
mod races;
mod races_args;
mod races_guest;
mod registers;
mod reset;
mod smc;
mod smp;
mod stage1;
mod suite;
mod tables;
mod trace;
mod vm;
mod walks;

use core::panic::PanicInfo;

use aarch64_rt::entry;
use pfnguard_host_interface::{Host, Hvc};
use smccc::psci::system_off;

/// The hypervisor, as this host calls it.
type Hyp = Host<Hvc>;

/// Start of RAM on this machine: where the device tree lies if nobody says.
const RAM_BASE: u64 = 0x4000_0000;

entry!(main, 32);
fn main(dtb: u64, _: u64, _: u64, _: u64) -> ! {
    cpu::enable_event_stream();
    let machine = dtb::Machine::read(if dtb == 0 { RAM_BASE } else { dtb });
    let functions = pci::enumerate(&machine);
    let words = machine.bootargs().split_ascii_whitespace();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("demo", _) => demo::run(&functions),
            ("test", prefix) => suite::run(&machine, functions.clone(), prefix),
            ("bench", row) => bench::run(&functions, row),
            ("fuzz", order) => fuzz::run(&machine, order),
            ("reset", _) => reset::run(),
            ("devices", _) => {}
            (unknown, _) => say!("@unknown bootarg={unknown}"),
        }
    }
    power_off()
}

/// Ends the machine; the caller has printed its last line.
fn power_off() -> ! {
    // The answer of a call that does not return is of no interest.
    let _ = system_off::<smccc::Smc>();
    loop {
        cpu::wait_for_event();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    uart::say_unlocked(format_args!("@panic {info}"));
    power_off()
}
