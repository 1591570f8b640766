//! Calls of a guest: what stock Linux guests make, and what pfnguard adds (R23, R31).

use pfnguard_shared::call::GUEST_UID;
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::vm::ExitReason;
use pfnguard_shared::{GuestFunction, PAGE_SHIFT, PAGE_SIZE};

use crate::machine::{Machine, count};
use crate::refusal::{argument, no_function};
use crate::state::{Registers, State};
use crate::vcpu::{Next, leave};
use crate::{PAGE_LIMIT, Refused};

/// SMCCC and PSCI functions that guests may call (Arm DEN0028, DEN0022).
mod firmware {
    pub(super) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(super) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(super) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(super) const SYSTEM_RESET2: u32 = 0x8400_0012;
    pub(super) const SYSTEM_RESET2_64: u32 = 0xc400_0012;
}

/// SMCCC 1.2.
const SMCCC_1_2: u64 = 0x1_0002;
const NOT_SUPPORTED: u64 = u64::MAX;

/// `x0..=x4` of a granted guest call.
type Answer = [u64; 5];

impl State {
    /// `HVC #0`: a call of this service, or of the firmware that the guest believes in.
    pub(crate) fn guest_call(&mut self, machine: &Machine, id: u16, mut guest: Registers) -> Next {
        if is_firmware_call(guest.general[0]) {
            return firmware_call(guest, 0);
        }
        let [x0, x1, x2, x3, ..] = guest.general;
        let function = u32::try_from(x0).ok().and_then(GuestFunction::from_raw);
        let answer = function
            .ok_or(no_function(x0))
            .and_then(|function| self.guest_function(machine, id, function, [x1, x2, x3]));
        let answer = answer.unwrap_or_else(|refused| refused.guest_registers());
        guest.general[..answer.len()].copy_from_slice(&answer);
        if function == Some(GuestFunction::Yield) {
            return leave(ExitReason::Yield, [x1, x2, x3], guest);
        }
        Next::Resume(guest)
    }

    fn guest_function(
        &mut self,
        machine: &Machine,
        id: u16,
        function: GuestFunction,
        args: [u64; 3],
    ) -> Result<Answer, Refused> {
        let [x1, x2, _] = args;
        match function {
            GuestFunction::Uid => {
                let [a, b, c, d] = GUEST_UID.map(u64::from);
                Ok([a, b, c, d, 0])
            }
            GuestFunction::Features => Ok([stock_functions(), 0, 0, 0, 0]),
            GuestFunction::HypMeminfo => {
                reserved(args, 1)?;
                Ok([count(PAGE_SIZE), 0, 0, 0, 0])
            }
            GuestFunction::MemShare => {
                self.mem_share(machine, id, page(args)?).map(|()| success([0; 4]))
            }
            GuestFunction::MemUnshare => {
                self.mem_unshare(machine, id, page(args)?).map(|()| success([0; 4]))
            }
            GuestFunction::Info => self.info(machine, selector(x1)?, 0).map(success),
            GuestFunction::Query => self.query(machine, id, x1, x2).map(success),
            GuestFunction::Yield => Ok(success([0; 4])),
        }
    }
}

fn success([x1, x2, x3, x4]: [u64; 4]) -> Answer {
    [0, x1, x2, x3, x4]
}

/// The byte address of a page in x1, and nothing else.
fn page(args: [u64; 3]) -> Result<u64, Refused> {
    reserved(args, 2)?;
    let last = (PAGE_LIMIT - 1) << PAGE_SHIFT;
    let aligned = args[0].is_multiple_of(1 << PAGE_SHIFT);
    if aligned && args[0] <= last { Ok(args[0] >> PAGE_SHIFT) } else { Err(argument(1, last)) }
}

/// Registers from `first` on are zero.
fn reserved(args: [u64; 3], first: usize) -> Result<(), Refused> {
    let set = (first..=args.len()).find(|register| args[register - 1] != 0);
    set.map_or(Ok(()), |register| Err(argument(register, 0u8)))
}

/// How much memory the host has is none of a guest's business.
fn selector(raw: u64) -> Result<InfoSelector, Refused> {
    let known = InfoSelector::from_raw(raw).filter(|known| *known != InfoSelector::Memory);
    known.ok_or(argument(1, InfoSelector::Platform.raw()))
}

/// Bit n: the function of number n that stock guests know exists.
fn stock_functions() -> u64 {
    let stock = [
        GuestFunction::Features,
        GuestFunction::HypMeminfo,
        GuestFunction::MemShare,
        GuestFunction::MemUnshare,
    ];
    stock.iter().map(|function| 1 << (function.raw() & 0xff)).sum()
}

/// Fast calls of the owners "architecture" (0) and "standard service" (4), of either width.
fn is_firmware_call(x0: u64) -> bool {
    const WIDTH: u32 = 1 << 30;
    matches!((function_id(x0) & !WIDTH) >> 24, 0x80 | 0x84)
}

/// The id is in `w0`.
fn function_id(x0: u64) -> u32 {
    u32::try_from(x0 & u64::from(u32::MAX)).expect("32 bits")
}

/// PSCI and architecture calls, by SMC or HVC: power is the host's, nothing reaches the firmware.
pub(crate) fn firmware_call(mut guest: Registers, immediate: u16) -> Next {
    let id = function_id(guest.general[0]);
    guest.general[0] = match id {
        _ if immediate != 0 => NOT_SUPPORTED,
        firmware::SMCCC_VERSION => SMCCC_1_2,
        firmware::SYSTEM_OFF
        | firmware::SYSTEM_RESET
        | firmware::SYSTEM_RESET2
        | firmware::SYSTEM_RESET2_64 => {
            return leave(ExitReason::Power, [u64::from(id), 0, 0], guest);
        }
        _ => NOT_SUPPORTED,
    };
    Next::Resume(guest)
}
