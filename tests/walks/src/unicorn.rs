//! Unicorn's CPU: QEMU's of version 5, taken out of its machine.

use unicorn_engine::{Arch, Arm64CpuModel, Mode, Prot, RegisterARM64CP, Unicorn, uc_error};

use crate::qemu::hcr;
use crate::{Answer, Arena, FIRST, FRAMES, Query};

/// `SCR_EL3`: EL1 and EL2 are non-secure (NS), AArch64 (RW), with HVC (HCE).
const SCR: u64 = 0x531;

/// Operands of `MSR`: op0, op1, CRn, CRm, op2.
type Register = [u32; 5];
const SCR_EL3: Register = [3, 6, 1, 1, 0];
const HCR_EL2: Register = [3, 4, 1, 1, 0];
const VTTBR_EL2: Register = [3, 4, 2, 1, 0];
const VTCR_EL2: Register = [3, 4, 2, 1, 2];
const PAR_EL1: Register = [3, 0, 7, 4, 0];
const AT_S12E1R: Register = [1, 4, 7, 8, 4];
const TLBI_ALLE1: Register = [1, 4, 8, 7, 4];

/// Lets Unicorn answer.
///
/// # Errors
/// Unicorn's own.
pub fn answers(arena: &Arena, queries: &[Query]) -> Result<Vec<Answer>, uc_error> {
    let mut cpu = Unicorn::new(Arch::ARM64, Mode::LITTLE_ENDIAN)?;
    #[allow(clippy::as_conversions, reason = "how Unicorn names its models")]
    cpu.ctl_set_cpu_model(Arm64CpuModel::MAX as i32)?;
    let bytes = u64::try_from(FRAMES).expect("64 bits") << 12;
    cpu.mem_map(FIRST << 12, bytes, Prot::ALL)?;
    cpu.mem_write(FIRST << 12, &arena.bytes())?;
    write(&mut cpu, SCR_EL3, SCR)?;
    queries.iter().map(|query| answer(&mut cpu, query)).collect()
}

fn answer(cpu: &mut Unicorn<'_, ()>, query: &Query) -> Result<Answer, uc_error> {
    write(cpu, VTCR_EL2, query.stage2.vtcr)?;
    write(cpu, VTTBR_EL2, query.stage2.vttbr)?;
    write(cpu, HCR_EL2, hcr(query))?;
    write(cpu, TLBI_ALLE1, 0)?;
    write(cpu, AT_S12E1R, query.ipa)?;
    let mut par = register(PAR_EL1, 0);
    cpu.reg_read_arm64_coproc(&mut par)?;
    Ok(Answer::new(par.val))
}

fn write(cpu: &mut Unicorn<'_, ()>, name: Register, value: u64) -> Result<(), uc_error> {
    cpu.reg_write_arm64_coproc(&register(name, value))
}

fn register([op0, op1, crn, crm, op2]: Register, val: u64) -> RegisterARM64CP {
    RegisterARM64CP { crn, crm, op0, op1, op2, val }
}
