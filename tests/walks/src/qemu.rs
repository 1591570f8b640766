//! QEMU's CPU: a program at EL2 that walks through a list of questions.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use pfnguard_tools::machine::Cpu;
use pfnguard_tools::setup::QEMU;

use crate::{Answer, Arena, FIRST, Query};

const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 64 << 20;
/// Behind the device tree that QEMU leaves at the start of RAM.
const PROGRAM_AT: u64 = 0x4020_0000;
const QUERIES_AT: u64 = 0x4040_0000;
/// Bytes of a question with its answer.
const RECORD: usize = 40;

/// `HCR_EL2`: stage 2 on (VM), stage 1 off (DC), AArch64 at EL1 (RW), FWB.
pub(crate) fn hcr(query: &Query) -> u64 {
    let fwb = u64::from(query.stage2.encoding.fwb);
    1 | u64::from(query.cacheable) << 12 | 1 << 31 | fwb << 46
}

/// Asks one question after another; a record of zeros ends the list, and the machine.
const PROGRAM: [u32; 24] = [
    0xd2a8_0400, //     mov   x0, #0x40200000
    0xf281_0000, //     movk  x0, #0x800
    0xd51c_c000, //     msr   vbar_el2, x0
    0xd2a8_0800, //     mov   x0, #0x40400000
    0xa940_0801, // 0:  ldp   x1, x2, [x0]
    0xb400_01e1, //     cbz   x1, 1f
    0xa941_1003, //     ldp   x3, x4, [x0, #16]
    0xd51c_2141, //     msr   vtcr_el2, x1
    0xd51c_2102, //     msr   vttbr_el2, x2
    0xd51c_1103, //     msr   hcr_el2, x3
    0xd503_3fdf, //     isb
    0xd50c_879f, //     tlbi  alle1
    0xd503_3f9f, //     dsb   sy
    0xd503_3fdf, //     isb
    0xd50c_7884, //     at    s12e1r, x4
    0xd503_3fdf, //     isb
    0xd538_7405, //     mrs   x5, par_el1
    0xf900_1005, // 2:  str   x5, [x0, #32]
    0x9100_a000, //     add   x0, x0, #40
    0x17ff_fff1, //     b     0b
    0xd2b0_8000, // 1:  mov   x0, #0x84000000
    0xf280_0100, //     movk  x0, #8                 (PSCI SYSTEM_OFF)
    0xd400_0003, //     smc   #0
    0x1400_0000, //     b     .
];

/// What `AT` answers where reading a table aborts: the vector "current EL, SP_ELx, synchronous".
const ABORTED: [u32; 2] = [
    0xd280_0fe5, //     mov   x5, #0x7f
    0x17ff_fd90, //     b     2b
];
/// Where that vector lies.
const ABORTED_AT: u64 = PROGRAM_AT + 0xa00;

/// Seconds after which a machine has gone astray.
const LIMIT: &str = "60";

/// Lets QEMU answer. `ram` is a file to use as the machine's memory.
///
/// # Errors
/// QEMU cannot be run or failed, or the file cannot be written and read.
pub fn answers(cpu: Cpu, ram: &Path, arena: &Arena, queries: &[Query]) -> io::Result<Vec<Answer>> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(ram)?;
    file.set_len(RAM_BYTES)?;
    file.write_all_at(&bytes(&PROGRAM), PROGRAM_AT - RAM)?;
    file.write_all_at(&bytes(&ABORTED), ABORTED_AT - RAM)?;
    file.write_all_at(&arena.bytes(), (FIRST << 12) - RAM)?;
    file.write_all_at(&records(queries), QUERIES_AT - RAM)?;
    run(cpu, ram)?;
    let mut answered = vec![0; queries.len() * RECORD];
    file.read_exact_at(&mut answered, QUERIES_AT - RAM)?;
    let par = |record: &[u8]| u64::from_le_bytes(record[32..].try_into().expect("8 bytes"));
    Ok(answered.chunks_exact(RECORD).map(|record| Answer::new(par(record))).collect())
}

fn bytes(program: &[u32]) -> Vec<u8> {
    program.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn records(queries: &[Query]) -> Vec<u8> {
    let record = |query: &Query| {
        // An answer of all ones: a record that the program never reached is no translation.
        [query.stage2.vtcr, query.stage2.vttbr, hcr(query), query.ipa, u64::MAX]
    };
    queries.iter().flat_map(record).flat_map(u64::to_le_bytes).collect()
}

fn run(cpu: Cpu, ram: &Path) -> io::Result<()> {
    let backend = format!("memory-backend-file,id=ram,share=on,size={RAM_BYTES},mem-path=");
    let mut qemu = Command::new("timeout");
    qemu.args([LIMIT, QEMU]);
    qemu.args(["-M", "virt,virtualization=on,gic-version=3,memory-backend=ram", "-m", "64M"]);
    qemu.args(["-cpu", cpu.name(), "-display", "none", "-monitor", "none", "-nic", "none"]);
    qemu.args(["-serial", "none", "-no-reboot", "-object"]);
    qemu.arg(backend + &ram.to_string_lossy().replace(',', ",,"));
    qemu.args(["-device", &format!("loader,addr={PROGRAM_AT:#x},cpu-num=0")]);
    let output = qemu.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("QEMU ended with {}: {said}", output.status)))
}
