//! Guests: what they do until the hypervisor has something to do.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use pfnguard_core::machine::GuestExit;
use pfnguard_core::vcpu::VcpuContext;
use pfnguard_model::call::{AbortCause, Access as Described, GuestEvent, GuestStep};
use pfnguard_model::state::{Load, Registers, Widen};

use crate::memory::Memory;
use crate::walker::{Attrs, Stage2};

/// One thing that a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `HVC #immediate` with `x0..=x3`.
    Hvc {
        /// Registers.
        regs: [u64; 4],
        /// Immediate.
        immediate: u16,
    },
    /// `SMC #immediate` with `x0..=x3`.
    Smc {
        /// Registers.
        regs: [u64; 4],
        /// Immediate.
        immediate: u16,
    },
    /// WFI.
    Wait,
    /// A load, store or fetch; a page that is mapped so is accessed and the guest goes on.
    Access(Access),
    /// A system register access that is trapped.
    Trapped,
    /// An interrupt for the host.
    Interrupt,
    /// An SError.
    SError,
    /// An exception of a class that the hypervisor does not offer.
    Other {
        /// Its class, `ESR_EL2.EC`.
        class: u8,
    },
    /// A walk of the guest's own tables that stage 2 stopped, or an alignment fault.
    Odd {
        /// Intermediate physical address.
        ipa: u64,
        /// Whether it is a table walk.
        walk: bool,
    },
}

/// An access of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Intermediate physical address.
    pub ipa: u64,
    /// What it does.
    pub kind: Kind,
    /// Register that is loaded or stored; 31 is the zero register.
    pub register: u8,
    /// What the guest has in the register before.
    pub value: u64,
    /// log2 of the bytes.
    pub size: u8,
    /// Whether a load extends the sign, and to 64 bits.
    pub extend: Extend,
    /// Whether the syndrome describes the access (`ISS.ISV`).
    pub described: bool,
}

/// What an access does.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Load,
    /// A store.
    Store,
    /// An instruction fetch.
    Fetch,
}

/// How a load fills its register.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// With zeroes.
    Zero,
    /// With the sign, to 32 bits.
    Sign32,
    /// With the sign, to 64 bits.
    Sign64,
}

impl Kind {
    /// Returns whether `attrs` allow it.
    pub fn is_allowed(self, attrs: &Attrs) -> bool {
        match self {
            Self::Load => attrs.read,
            Self::Store => attrs.write,
            Self::Fetch => attrs.exec,
        }
    }
}

/// Syndromes (Arm ARM, D24.2, `ESR_EL2`).
mod esr {
    pub(super) const WFI: u64 = 0x01 << 26;
    pub(super) const HVC: u64 = 0x16 << 26;
    pub(super) const SMC: u64 = 0x17 << 26;
    pub(super) const MSR: u64 = 0x18 << 26;
    pub(super) const FETCH: u64 = 0x20 << 26;
    pub(super) const DATA: u64 = 0x24 << 26;
    pub(super) const IL: u64 = 1 << 25;
    pub(super) const ISV: u64 = 1 << 24;
    pub(super) const SSE: u64 = 1 << 21;
    pub(super) const SF: u64 = 1 << 15;
    pub(super) const WNR: u64 = 1 << 6;
    /// Translation and permission fault at level 3.
    pub(super) const TRANSLATION: u64 = 0b00_0111;
    pub(super) const PERMISSION: u64 = 0b00_1111;
    pub(super) const ALIGNMENT: u64 = 0b10_0001;
    /// A stage-1 table walk.
    pub(super) const S1PTW: u64 = 1 << 7;
}

impl Access {
    /// Returns the syndrome of its abort at stage 2.
    pub fn esr(&self, mapped: bool) -> u64 {
        let fault = if mapped { esr::PERMISSION } else { esr::TRANSLATION };
        if self.kind == Kind::Fetch {
            return esr::FETCH | esr::IL | fault;
        }
        let write = if self.kind == Kind::Store { esr::WNR } else { 0 };
        let details = if self.described { self.details() } else { 0 };
        esr::DATA | esr::IL | fault | write | details
    }

    fn details(&self) -> u64 {
        let extend = match (self.kind, self.extend) {
            (Kind::Store | Kind::Fetch, _) | (Kind::Load, Extend::Zero) => 0,
            (Kind::Load, Extend::Sign32) => esr::SSE,
            (Kind::Load, Extend::Sign64) => esr::SSE | esr::SF,
        };
        let (size, register) = (u64::from(self.size & 3), u64::from(self.register & 31));
        esr::ISV | size << 22 | register << 16 | extend
    }
}

/// `ESR_EL2` and what it says.
type Syndrome = (u64, GuestEvent);

/// Classes that the hypervisor neither serves nor makes undefined (Arm ARM, `ESR_EL2.EC`).
const OTHER_CLASSES: [u8; 4] = [0x0a, 0x2c, 0x32, 0x3c];
/// Offset of the vector of EL1 on its own stack, which every guest here uses.
const CURRENT_EL: u64 = 0x200;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// A guest that follows a script.
#[derive(Debug, Default)]
pub struct Guest {
    acts: VecDeque<Act>,
    /// Whether the first access of the script has faulted, and whether its page was mapped then:
    /// it is repeated, and must not fault alike.
    faulted: Option<bool>,
    /// Registers with which it was entered, each time.
    pub entered: Vec<Registers>,
    /// What it did, each time.
    pub steps: Vec<GuestStep>,
    /// Pages that it stored to, with what they are marked with.
    pub stored: Vec<(u64, u64)>,
}

impl Guest {
    /// Returns a guest that does this, and then is interrupted.
    pub fn new(acts: &[Act]) -> Self {
        Self { acts: acts.iter().copied().collect(), ..Self::default() }
    }

    /// Runs until the hypervisor has something to do.
    pub fn run(
        &mut self,
        context: &mut VcpuContext,
        memory: &Memory,
        stage2: &Stage2,
    ) -> GuestExit {
        self.entered.push(registers(context));
        let (exit, event) = self.next(context, memory, stage2);
        self.steps.push(GuestStep { registers: registers(context), event });
        exit
    }

    fn next(
        &mut self,
        context: &mut VcpuContext,
        memory: &Memory,
        stage2: &Stage2,
    ) -> (GuestExit, GuestEvent) {
        while let Some(act) = self.acts.front().copied() {
            let Act::Access(access) = act else {
                self.acts.pop_front();
                return act.exit(context);
            };
            if let Some(exit) = self.access(&access, context, memory, stage2) {
                return exit;
            }
            self.acts.pop_front();
        }
        (GuestExit::Interrupt, GuestEvent::Interrupt)
    }

    fn access(
        &mut self,
        access: &Access,
        context: &mut VcpuContext,
        memory: &Memory,
        stage2: &Stage2,
    ) -> Option<(GuestExit, GuestEvent)> {
        let found = stage2.translate(memory, access.ipa >> 12);
        let found = found.expect("the guest's tables are sound");
        match found {
            Some((pfn, attrs)) if access.kind.is_allowed(&attrs) => {
                if access.kind == Kind::Store && memory.has(pfn) {
                    memory.mark(pfn, access.value);
                    self.stored.push((pfn, access.value));
                }
                self.faulted = None;
                None
            }
            Some(_) | None => {
                let fault = Some(found.is_some());
                assert_ne!(
                    self.faulted, fault,
                    "the guest was resumed to fault again: {access:x?}"
                );
                self.faulted = fault;
                if let Some(register) = context.regs.get_mut(usize::from(access.register & 31)) {
                    *register = access.value;
                }
                Some(access.exit(found.is_some()))
            }
        }
    }
}

fn registers(context: &VcpuContext) -> Registers {
    Registers { general: context.regs, pc: context.pc }
}

impl Access {
    fn exit(&self, mapped: bool) -> (GuestExit, GuestEvent) {
        // The guest's stage 1 is off: its virtual address is the intermediate one.
        let ipa = self.ipa & ((1 << 52) - 1);
        let exit = GuestExit::Sync { esr: self.esr(mapped), far: ipa, hpfar: ipa >> 12 << 4 };
        let cause = if mapped { AbortCause::Forbidden } else { AbortCause::Translation };
        (exit, GuestEvent::Abort { ipa, cause, access: self.described() })
    }

    fn described(&self) -> Option<Described> {
        let (register, bytes) = (usize::from(self.register & 31), 1 << (self.size & 3));
        let widen = match self.extend {
            Extend::Zero => Widen::Zero,
            Extend::Sign32 => Widen::Sign32,
            Extend::Sign64 => Widen::Sign64,
        };
        match self.kind {
            Kind::Load if self.described => Some(Described::Load(Load { register, bytes, widen })),
            Kind::Store if self.described => Some(Described::Store { register, bytes }),
            Kind::Load | Kind::Store | Kind::Fetch => None,
        }
    }
}

impl Act {
    fn exit(self, context: &mut VcpuContext) -> (GuestExit, GuestEvent) {
        let sync = |(esr, event): Syndrome| (GuestExit::Sync { esr, far: 0, hpfar: 0 }, event);
        match self {
            Self::Hvc { regs, immediate } => {
                context.regs[..regs.len()].copy_from_slice(&regs);
                context.pc = context.pc.wrapping_add(INSTRUCTION);
                sync((esr::HVC | esr::IL | u64::from(immediate), GuestEvent::Hvc(immediate)))
            }
            Self::Smc { regs, immediate } => {
                context.regs[..regs.len()].copy_from_slice(&regs);
                sync((esr::SMC | esr::IL | u64::from(immediate), GuestEvent::Smc(immediate)))
            }
            Self::Wait => sync((esr::WFI | esr::IL, GuestEvent::Wait)),
            Self::Trapped => {
                let handler = context.sysregs.vbar_el1.wrapping_add(CURRENT_EL);
                sync((esr::MSR | esr::IL, GuestEvent::Undefined(handler)))
            }
            Self::Other { class } => {
                let class = u64::from(OTHER_CLASSES[usize::from(class) % OTHER_CLASSES.len()]);
                sync((class << 26 | esr::IL, GuestEvent::Other(class)))
            }
            Self::Odd { ipa, walk } => odd(ipa & ((1 << 52) - 1), walk),
            Self::SError => (GuestExit::SError, GuestEvent::SError),
            Self::Interrupt | Self::Access(_) => (GuestExit::Interrupt, GuestEvent::Interrupt),
        }
    }
}

fn odd(ipa: u64, walk: bool) -> (GuestExit, GuestEvent) {
    let (esr, cause) = match walk {
        true => (esr::ISV | esr::S1PTW | esr::TRANSLATION, AbortCause::Translation),
        false => (esr::ALIGNMENT, AbortCause::Forbidden),
    };
    let exit = GuestExit::Sync { esr: esr::DATA | esr::IL | esr, far: ipa, hpfar: ipa >> 12 << 4 };
    // Of a walk only the page is known.
    let ipa = if walk { ipa & !0xfff } else { ipa };
    (exit, GuestEvent::Abort { ipa, cause, access: None })
}
