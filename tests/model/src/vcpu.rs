//! vCPUs: registers, and what makes VCPU_RUN return.

use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::vm::{ExitReason, MmioAccess, VmState};

use crate::Refused;
use crate::call::{AbortCause, Access, Call, GuestEvent, GuestStep, Outcome};
use crate::guest::firmware_call;
use crate::machine::{Machine, count};
use crate::refusal::{contract, no_object, vcpu_busy};
use crate::state::{Load, Registers, State, Vcpu, Vm, Widen};

/// Bytes in an A64 instruction.
const INSTRUCTION: u64 = 4;
/// Exception class of an SError (Arm ARM, `ESR_EL2.EC`).
const SERROR: u64 = 0x2f;

/// What follows an exit of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It runs on with these registers.
    Resume(Registers),
    /// VCPU_RUN returns.
    Leave(Leave),
}

/// How VCPU_RUN returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// `x1..=x4`.
    pub values: [u64; 4],
    /// The guest's registers.
    pub registers: Registers,
    /// A load that the next VCPU_RUN completes.
    pub load: Option<Load>,
}

/// Which vCPU of which VM.
pub type VcpuId = (u16, usize);

impl State {
    /// Only a vCPU that never ran; of a protected VM only the first, before anything ran.
    pub(crate) fn vcpu_init(
        &mut self,
        (id, number): VcpuId,
        (entry, x0): (u64, u64),
    ) -> Result<Outcome, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        let vcpu = vm.vcpu(number)?;
        vm.check_host_starts(number)?;
        match vcpu {
            Vcpu::Off(_) | Vcpu::Fresh(_) => {}
            Vcpu::Idle(..) | Vcpu::Running(_) => return Err(vcpu_busy(number)),
        }

        let mut general = [0; 31];
        general[0] = x0;
        self.vm_mut(id).vcpus[number] = Vcpu::Fresh(Registers { general, pc: entry });
        Ok(Outcome::done())
    }

    /// Not of a protected VM.
    pub(crate) fn vcpu_get_reg(
        &self,
        (id, number): VcpuId,
        register: usize,
    ) -> Result<Outcome, Refused> {
        let vm = self.vm(id)?;
        if vm.is_protected() {
            return Err(contract());
        }
        let registers = vm.vcpu(number)?.registers().ok_or(vcpu_busy(number))?;
        Ok(Outcome::value(registers.general[register]))
    }

    /// Of a protected VM only of the first vCPU, before anything ran.
    pub(crate) fn vcpu_set_reg(
        &mut self,
        (id, number): VcpuId,
        (register, value): (usize, u64),
    ) -> Result<Outcome, Refused> {
        let vm = self.vm(id)?;
        vm.vcpu(number)?.registers().ok_or(vcpu_busy(number))?;
        vm.check_host_starts(number)?;

        let registers = self.vm_mut(id).vcpus[number].registers_mut();
        registers.expect("it is stopped").general[register] = value;
        Ok(Outcome::done())
    }

    /// The guest runs; what it did is in the script, which ends with what made VCPU_RUN return.
    pub(crate) fn vcpu_run(
        &mut self,
        machine: &Machine,
        call: &Call<'_>,
        (id, number): VcpuId,
    ) -> Result<Outcome, Refused> {
        let mut entered = vec![self.vcpu_enter((id, number), call.cpu, call.regs[3])?];
        let mut steps = call.seen.guest.iter();
        for step in &mut steps {
            match self.guest_step(machine, id, step) {
                Next::Resume(registers) => entered.push(registers),
                Next::Leave(leave) => {
                    assert_eq!(steps.as_slice(), [], "the guest ran on: {leave:x?}");
                    let outcome = self.vcpu_leave((id, number), leave);
                    return Ok(Outcome { entered, ..outcome });
                }
            }
        }
        panic!("VCPU_RUN returned, but the guest runs on after {:x?}", call.seen.guest.last())
    }

    /// The first third of VCPU_RUN: the vCPU runs on `cpu`, with these registers. `value` completes
    /// a load.
    ///
    /// # Errors
    /// The refusal of VCPU_RUN; nothing has changed.
    pub fn vcpu_enter(
        &mut self,
        (id, number): VcpuId,
        cpu: usize,
        value: u64,
    ) -> Result<Registers, Refused> {
        let vm = self.vm_in(id, VmState::Active)?;
        let registers = match vm.vcpu(number)? {
            Vcpu::Fresh(registers) | Vcpu::Idle(registers, None) => registers.clone(),
            Vcpu::Idle(registers, Some(load)) => load.complete(registers.clone(), value),
            Vcpu::Off(_) | Vcpu::Running(_) => return Err(vcpu_busy(number)),
        };

        self.vm_mut(id).vcpus[number] = Vcpu::Running(cpu);
        Ok(registers)
    }

    /// The last third of VCPU_RUN: the vCPU is idle, and the call returns.
    pub fn vcpu_leave(&mut self, (id, number): VcpuId, leave: Leave) -> Outcome {
        let Leave { values, registers, load } = leave;
        self.vm_mut(id).vcpus[number] = Vcpu::Idle(registers, load);
        Outcome::values(values)
    }

    /// The middle third of VCPU_RUN: the guest of a running vCPU left its world.
    pub fn guest_step(&mut self, machine: &Machine, id: u16, step: &GuestStep) -> Next {
        let mut registers = step.registers.clone();
        match step.event {
            GuestEvent::Interrupt => leave(ExitReason::Interrupt, [0; 3], registers),
            GuestEvent::SError => leave(ExitReason::Unsupported, [SERROR, 0, 0], registers),
            GuestEvent::Wait => leave(ExitReason::Wait, [0; 3], registers.past()),
            GuestEvent::Hvc(0) => self.guest_call(machine, id, registers),
            GuestEvent::Hvc(immediate) => firmware_call(registers, immediate),
            GuestEvent::Smc(immediate) => firmware_call(registers.past(), immediate),
            GuestEvent::Abort { ipa, cause, access } => {
                self.guest_abort(machine, id, registers, (ipa, cause, access))
            }
            GuestEvent::Undefined(handler) => {
                registers.pc = handler;
                Next::Resume(registers)
            }
            GuestEvent::Other(class) => leave(ExitReason::Unsupported, [class, 0, 0], registers),
        }
    }

    /// R30: an access to an announced binding installs it. One to nothing is the host's to emulate,
    /// unless the VM is protected: its registers are not the host's to see.
    fn guest_abort(
        &mut self,
        machine: &Machine,
        id: u16,
        registers: Registers,
        (ipa, cause, access): (u64, AbortCause, Option<Access>),
    ) -> Next {
        let page = ipa >> PAGE_SHIFT;
        let vm = self.vm_mut(id);
        match cause {
            AbortCause::Forbidden => return leave(ExitReason::Fault, [ipa, 0, 0], registers),
            AbortCause::Translation => {}
        }
        if let Some((first, _)) = vm.binding_at(page) {
            vm.install(machine, first);
            return Next::Resume(registers);
        }
        if vm.pages.contains_key(&page) {
            return Next::Resume(registers);
        }
        match access {
            Some(access) if !vm.is_protected() => mmio(registers, ipa, access),
            Some(_) | None => leave(ExitReason::Fault, [ipa, 0, 0], registers),
        }
    }
}

pub(crate) fn leave(reason: ExitReason, facts: [u64; 3], registers: Registers) -> Next {
    let [x2, x3, x4] = facts;
    Next::Leave(Leave { values: [reason.raw(), x2, x3, x4], registers, load: None })
}

/// The host emulates the access; the guest goes on past it.
fn mmio(registers: Registers, ipa: u64, access: Access) -> Next {
    let (flags, bytes, value, load) = match access {
        Access::Load(load) => (load.flags(), load.bytes, 0, Some(load)),
        Access::Store { register, bytes } => {
            let stored = registers.general.get(register).map_or(0, |value| low(*value, bytes));
            (MmioAccess::WRITE, bytes, stored, None)
        }
    };
    let access = flags.raw() | u64::from(bytes) << 8;
    let values = [ExitReason::Mmio.raw(), ipa, access, value];
    Next::Leave(Leave { values, registers: registers.past(), load })
}

/// The low bytes of a value.
fn low(value: u64, bytes: u32) -> u64 {
    if bytes >= 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
}

impl Load {
    fn flags(&self) -> MmioAccess {
        match self.widen {
            Widen::Zero => MmioAccess::NONE,
            Widen::Sign32 | Widen::Sign64 => MmioAccess::SIGNED,
        }
    }

    /// The destination gets the value, widened; register 31 is none.
    fn complete(&self, mut registers: Registers, value: u64) -> Registers {
        if let Some(register) = registers.general.get_mut(self.register) {
            *register = self.widened(low(value, self.bytes));
        }
        registers
    }

    fn widened(&self, value: u64) -> u64 {
        let sign = 1 << (8 * self.bytes - 1);
        let extended = if value & sign == 0 { value } else { value | !(sign - 1) };
        match self.widen {
            Widen::Zero => value,
            Widen::Sign32 => low(extended, 4),
            Widen::Sign64 => extended,
        }
    }
}

impl Registers {
    /// Past an instruction that was done for the guest.
    fn past(mut self) -> Self {
        self.pc = self.pc.wrapping_add(INSTRUCTION);
        self
    }
}

impl Vm {
    fn vcpu(&self, number: usize) -> Result<&Vcpu, Refused> {
        self.vcpus.get(number).ok_or(no_object(count(number), count(self.vcpus.len())))
    }

    /// The host says where a protected VM starts, but not where it goes on: its first vCPU, before
    /// anything ran.
    fn check_host_starts(&self, number: usize) -> Result<(), Refused> {
        let late = number != 0 || self.has_run();
        if self.is_protected() && late { Err(contract()) } else { Ok(()) }
    }
}

impl Vcpu {
    /// Its registers, unless it runs.
    pub(crate) fn registers(&self) -> Option<&Registers> {
        match self {
            Self::Off(registers) | Self::Fresh(registers) | Self::Idle(registers, _) => {
                Some(registers)
            }
            Self::Running(_) => None,
        }
    }

    fn registers_mut(&mut self) -> Option<&mut Registers> {
        match self {
            Self::Off(registers) | Self::Fresh(registers) | Self::Idle(registers, _) => {
                Some(registers)
            }
            Self::Running(_) => None,
        }
    }
}
