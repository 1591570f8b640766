//! What the rules say of every use of one region, asked once at launch: manifest and platform are
//! sealed (R51), so all that can change the answer later is who holds the region.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::request::{HostAlias, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MemType, Mode, Perms};

use super::{Applicant, BindRequest, Case, is_general_purpose};
use crate::addr::{IpaPfn, IpaRange};
use crate::region::Region;
use crate::vm::VmId;

/// Which uses of a region are granted while it is free, where the host maps nothing of it and
/// wants neither copy-on-write nor dirty logging.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    /// One word for each [`need`], one bit for each [`usage`].
    granted: [u32; 4],
}

impl Answers {
    /// Nothing is granted.
    pub const NONE: Self = Self { granted: [0; 4] };

    /// Puts every use of `region`, which is free, to the rules.
    pub fn ask(region: &Region, capabilities: Capabilities) -> Self {
        let mut answers = Self::NONE;
        let numbers = (0..4).flat_map(|need| (0..32).map(move |usage| (need, usage)));
        for (need, usage) in numbers {
            let Some((contract, request)) = example(region, need, usage) else { continue };
            let applicant = Applicant { vm: None, contract };
            let case = Case { region, capabilities, applicant, request: &request };
            answers.granted[need] |= u32::from(case.judge().is_ok()) << usage;
        }
        answers
    }

    /// Returns whether this use is granted.
    #[inline]
    pub fn grant(&self, contract: ContractFlags, request: &BindRequest) -> bool {
        self.granted[need(contract, request)].wrapping_shr(usage(request)) & 1 == 1
    }
}

/// Returns what the VM needs of the memory: tags (R20), and that programs run from it (R22).
#[inline]
fn need(contract: ContractFlags, request: &BindRequest) -> usize {
    let tags = contract.contains(ContractFlags::MTE);
    let programs = is_general_purpose(contract, request.flags);
    usize::from(tags) | usize::from(programs) << 1
}

/// Returns the number, below 32, of mode, type and permissions; READ is always among these.
#[inline]
fn usage(request: &BindRequest) -> u32 {
    let beyond_read = request.perms.raw() >> 1;
    let donate = u8::from(request.mode == Mode::Donate);
    u32::from(beyond_read | request.mem_type.raw() << 2 | donate << 4)
}

/// Returns an example of a use by its number, or `None` where the number stands for none.
fn example(region: &Region, need: usize, usage: u8) -> Option<(ContractFlags, BindRequest)> {
    let contract = if need & 1 == 0 { ContractFlags::NONE } else { ContractFlags::MTE };
    let flags = if need >> 1 == 0 { RequestFlags::NONE } else { RequestFlags::GENERAL_PURPOSE };
    let pfns = region.entry.range;
    let request = BindRequest {
        vm: VmId::FIRST,
        mode: if usage >> 4 == 0 { Mode::Share } else { Mode::Donate },
        mem_type: MemType::from_raw(usage >> 2 & 3)?,
        perms: Perms::from_raw((usage & 3) << 1)?.with(Perms::READ),
        flags,
        alias: HostAlias::None,
        pfns,
        ipa: IpaRange::new(IpaPfn(0), pfns.pages())?,
    };
    Some((contract, request))
}
