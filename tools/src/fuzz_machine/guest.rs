//! What the guest does in VCPU_RUN. All guests of a random run have one program, `Anything` in
//! `tests/el2/src/guest_code.rs`: what they do follows from their registers and from what stage 2
//! says of their pages.

use pfnguard_model::call::{AbortCause, Access, GuestEvent, GuestStep};
use pfnguard_model::machine::Machine;
use pfnguard_model::state::{Load, Registers, State, Vm, Widen};
use pfnguard_model::vcpu::Next;
use pfnguard_shared::{GuestFunction, PAGE_SHIFT, Perms};

use super::log::Call;

/// Most exits of one VCPU_RUN: the program calls twice before it yields.
const MAX_STEPS: usize = 16;
/// Pages that the program can name.
const PAGES: u64 = 1 << 27;
/// Where it stores in a page.
const STORE_AT: u64 = 0x80;

/// Returns what the guest does, or why nobody can say.
pub fn script(machine: &Machine, state: &State, call: &Call) -> Result<Vec<GuestStep>, String> {
    let [_, vm, vcpu, value, ..] = call.regs;
    let (Ok(vm), Ok(vcpu)) = (u16::try_from(vm), usize::try_from(vcpu)) else {
        return Ok(Vec::new());
    };
    let mut state = state.clone();
    let Ok(mut registers) = state.vcpu_enter((vm, vcpu), call.cpu, value) else {
        return Ok(Vec::new());
    };
    if call.interrupted {
        return Ok(vec![GuestStep { registers, event: GuestEvent::Interrupt }]);
    }
    let mut steps = Vec::new();
    while steps.len() < MAX_STEPS {
        let found = &state.vms[&vm];
        let event = run(found, &mut registers)?;
        let step = GuestStep { registers: registers.clone(), event };
        let next = state.guest_step(machine, vm, &step);
        steps.push(step);
        match next {
            Next::Resume(resumed) => registers = resumed,
            Next::Leave(_) => return Ok(steps),
        }
    }
    Err("the guest never leaves".to_owned())
}

/// Runs the program until something takes the guest out of its world.
fn run(vm: &Vm, guest: &mut Registers) -> Result<GuestEvent, String> {
    loop {
        let pc = guest.pc;
        if let Some(event) = stopped(vm, pc, Perms::EXEC, None) {
            return Ok(event);
        }
        guest.pc += 4;
        match pc & 0xfff {
            0x00 => guest.general[10] = guest.general[7] >> PAGE_SHIFT & (PAGES - 1),
            0x10 => guest.general[10] = guest.general[9] >> PAGE_SHIFT & (PAGES - 1),
            0x04 | 0x14 if guest.general[10] == 0 => guest.pc += 8,
            0x04 | 0x14 => {}
            0x08 | 0x18 => guest.general[10] <<= PAGE_SHIFT,
            0x0c => {
                let load = Access::Load(Load { register: 31, bytes: 8, widen: Widen::Zero });
                if let Some(event) = stopped(vm, guest.general[10], Perms::READ, Some(load)) {
                    guest.pc = pc;
                    return Ok(event);
                }
            }
            0x1c => {
                let (to, store) =
                    (guest.general[10] + STORE_AT, Access::Store { register: 31, bytes: 8 });
                if let Some(event) = stopped(vm, to, Perms::WRITE, Some(store)) {
                    guest.pc = pc;
                    return Ok(event);
                }
            }
            0x20 | 0x30 => return Ok(GuestEvent::Hvc(0)),
            0x24 => guest.general[6] = guest.general[0],
            0x28 => guest.general[0] = u64::from(GuestFunction::Yield.raw() & 0xffff),
            0x2c => guest.general[0] = u64::from(GuestFunction::Yield.raw()),
            0x34 => guest.pc = pc - 0x34,
            _ => return Err(format!("the guest runs what is not its program, at {pc:#x}")),
        }
    }
}

/// Returns how stage 2 stops an access, if it does.
fn stopped(vm: &Vm, ipa: u64, needed: Perms, access: Option<Access>) -> Option<GuestEvent> {
    let found = vm.pages.get(&(ipa >> PAGE_SHIFT));
    let cause = match found {
        Some(leaf) if leaf.perms.contains(needed) => return None,
        Some(_) => AbortCause::Forbidden,
        None => AbortCause::Translation,
    };
    Some(GuestEvent::Abort { ipa, cause, access })
}
