//! The machine that pfnguard is tried on: QEMU's `virt` board, with PCI devices in fixed slots.
//!
//! # Devices and their BARs
//! Read with QMP `query-pci` on QEMU 10.0.2; I/O BARs are left out.
//!
//! | slot | device | BAR | bytes | kind | what it is | base |
//! |---|---|---|---|---|---|---|
//! | 00:01.0 | ivshmem-plain | 0 | 0x100 | 32-bit | registers | 0x10000000 |
//! | | | 2 | 0x1000000 | 64-bit prefetchable | shared memory | 0x8000000000 |
//! | 00:02.0 | edu | 0 | 0x100000 | 32-bit | registers, DMA engine | 0x10100000 |
//! | 00:03.0 | virtio-rng-pci | 1 | 0x1000 | 32-bit | MSI-X | 0x10200000 |
//! | | | 4 | 0x4000 | 64-bit prefetchable | registers | 0x8001000000 |
//! | 00:04.0 | bochs-display | 0 | 0x1000000 | 32-bit prefetchable | frame buffer | 0x11000000 |
//! | | | 2 | 0x1000 | 32-bit | registers | 0x12000000 |
//!
//! There is no firmware, so the bare-metal host assigns the bases. The rule, which the grants file
//! relies on: slots in ascending order from 1, BARs in index order; a 32-bit BAR goes to the next
//! address from 0x10000000 on, a 64-bit one to the next from 0x8000000000 on, each aligned to its
//! size or to 64 KiB, whichever is greater, and the next one starts that much behind it. Linux has its
//! own rule ([`Host::bars`]), and two functions more, a disk and a network.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use pfnguard_oracle::Times;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::request::HostAlias;

use crate::setup::QEMU;

/// Where the manifest is loaded: behind the host's image, below the device tree at 0x48000000.
const MANIFEST_ADDRESS: &str = "0x47000000";
/// Where the host's image is loaded and entered.
const HOST_ADDRESS: &str = "0x42000000";
/// The PCI functions. Option ROMs are left out: no firmware would run them, and their files come
/// in packages that are only recommended.
const DEVICES: &[&str] = &[
    "ivshmem-plain,memdev=shm,addr=1",
    "edu,addr=2",
    "virtio-rng-pci,addr=3",
    "bochs-display,addr=4,romfile=",
];

/// RAM of the machine, in byte addresses.
pub const RAM: Range<u64> = 0x4000_0000..0x8000_0000;

/// A memory BAR of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineBar {
    /// Bus, device and function.
    pub bdf: &'static str,
    /// Index.
    pub index: u8,
    /// First byte, by the rule above.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// The machine's memory BARs where the bare-metal host puts them, as in the table above.
pub const BARS: &[MachineBar] = &[
    MachineBar { bdf: "00:01.0", index: 0, base: 0x1000_0000, size: 0x100 },
    MachineBar { bdf: "00:01.0", index: 2, base: 0x80_0000_0000, size: 0x100_0000 },
    MachineBar { bdf: "00:02.0", index: 0, base: 0x1010_0000, size: 0x10_0000 },
    MachineBar { bdf: "00:03.0", index: 1, base: 0x1020_0000, size: 0x1000 },
    MachineBar { bdf: "00:03.0", index: 4, base: 0x80_0100_0000, size: 0x4000 },
    MachineBar { bdf: "00:04.0", index: 0, base: 0x1100_0000, size: 0x100_0000 },
    MachineBar { bdf: "00:04.0", index: 2, base: 0x1200_0000, size: 0x1000 },
];

/// The same BARs where Linux 6.12 puts them: by size, greatest first; what lies between is the disk's
/// and the network's.
const LINUX_BARS: &[MachineBar] = &[
    MachineBar { bdf: "00:01.0", index: 0, base: 0x1110_4000, size: 0x100 },
    MachineBar { bdf: "00:01.0", index: 2, base: 0x80_0000_0000, size: 0x100_0000 },
    MachineBar { bdf: "00:02.0", index: 0, base: 0x1100_0000, size: 0x10_0000 },
    MachineBar { bdf: "00:03.0", index: 1, base: 0x1110_0000, size: 0x1000 },
    MachineBar { bdf: "00:03.0", index: 4, base: 0x80_0100_0000, size: 0x4000 },
    MachineBar { bdf: "00:04.0", index: 0, base: 0x1000_0000, size: 0x100_0000 },
    MachineBar { bdf: "00:04.0", index: 2, base: 0x1110_1000, size: 0x1000 },
];

/// Who runs at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The tests' own program.
    BareMetal,
    /// Linux, with an SMMU: vfio gives no device away without one.
    Linux,
}

impl Host {
    /// Returns where it puts the machine's memory BARs.
    pub const fn bars(self) -> &'static [MachineBar] {
        match self {
            Self::BareMetal => BARS,
            Self::Linux => LINUX_BARS,
        }
    }

    /// Returns the file of what is granted of them, under the workspace.
    pub const fn grants(self) -> &'static str {
        match self {
            Self::BareMetal => "tools/manifests/qemu-virt-demo.grants.toml",
            Self::Linux => "tools/manifests/qemu-virt-linux.grants.toml",
        }
    }

    /// Returns how it maps a BAR while it asks for it: the bare-metal host does not.
    pub const fn alias(self) -> HostAlias {
        match self {
            Self::BareMetal => HostAlias::None,
            Self::Linux => HostAlias::Uncached,
        }
    }

    const fn board_options(self) -> &'static str {
        match self {
            Self::BareMetal => "",
            Self::Linux => ",iommu=smmuv3",
        }
    }
}

/// A CPU model of QEMU, with the abilities that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cpu {
    /// No VHE, no FWB, no DIC.
    CortexA72,
    /// VHE; no FWB, no DIC.
    CortexA76,
    /// FWB, DIC and MTE: the main target.
    NeoverseN2,
    /// FWB without DIC.
    CortexA710,
    /// FWB and DIC, without FEAT_BBM.
    NeoverseV1,
    /// Everything this QEMU knows; differs from release to release.
    Max,
}

/// The CPUs that the tests run on. `Max` is not among them: it would be another machine with every
/// release of QEMU.
pub const MATRIX: &[Cpu] =
    &[Cpu::CortexA72, Cpu::CortexA76, Cpu::NeoverseN2, Cpu::CortexA710, Cpu::NeoverseV1];

/// What drives the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The developer's machine: CPUs run in parallel, as fast as they can.
    Free,
    /// The executed instructions: CPUs take turns, and each run is like the other.
    Icount,
}

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Model of all its CPUs.
    pub cpu: Cpu,
    /// Number of CPUs.
    pub cpus: u8,
    /// Its clock.
    pub clock: Clock,
}

/// The files that a machine boots.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The payload, an arm64 Image.
    pub payload: &'a Path,
    /// The bare-metal host.
    pub host: &'a Path,
    /// The compiled manifest.
    pub manifest: &'a Path,
    /// What the host is to do.
    pub bootargs: &'a str,
    /// A file that is to be the machine's RAM, so that it can be read from outside.
    pub ram: Option<&'a Path>,
}

/// Whether a machine has EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El2 {
    /// Software is entered there.
    Present,
    /// Software is entered at EL1.
    Absent,
}

/// What a Linux machine boots.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The kernel's image.
    pub image: &'a Path,
    /// The initial file system.
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub parameters: &'a str,
    /// The disk's contents.
    pub disk: &'a Path,
}

impl Cpu {
    /// Returns QEMU's name of the model.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CortexA72 => "cortex-a72",
            Self::CortexA76 => "cortex-a76",
            Self::NeoverseN2 => "neoverse-n2",
            Self::CortexA710 => "cortex-a710",
            Self::NeoverseV1 => "neoverse-v1",
            Self::Max => "max",
        }
    }

    /// Returns the abilities among FWB, DIC, IDC, LSE and MTE (with tag memory on this board) that
    /// the model has, or `None` where that depends on the release of QEMU.
    pub const fn abilities(self) -> Option<Capabilities> {
        let lse = Capabilities::LSE;
        let fwb = lse.with(Capabilities::FWB).with(Capabilities::IDC);
        match self {
            Self::CortexA72 => Some(Capabilities::NONE),
            Self::CortexA76 => Some(lse),
            Self::CortexA710 => Some(fwb),
            Self::NeoverseV1 => Some(fwb.with(Capabilities::DIC)),
            Self::NeoverseN2 => Some(fwb.with(Capabilities::DIC).with(Capabilities::MTE)),
            Self::Max => None,
        }
    }

    /// Returns how often the model needs each TLB invalidation: Cortex-A76 has erratum 1286807.
    pub const fn tlbi(self) -> Times {
        match self {
            Self::CortexA76 => Times::Twice,
            Self::CortexA72
            | Self::NeoverseN2
            | Self::CortexA710
            | Self::NeoverseV1
            | Self::Max => Times::Once,
        }
    }

    /// Returns the board's options for this model: tag memory where it is to have MTE.
    const fn board_options(self) -> &'static str {
        match self {
            Self::NeoverseN2 => ",mte=on",
            Self::CortexA72 | Self::CortexA76 | Self::CortexA710 | Self::NeoverseV1 | Self::Max => {
                ""
            }
        }
    }
}

impl Machine {
    /// Returns the machine of the test matrix whose CPUs run in parallel.
    pub const fn parallel(cpu: Cpu) -> Self {
        Self { cpu, cpus: 2, clock: Clock::Free }
    }

    /// Returns the machine of the test matrix whose runs are all alike.
    pub const fn counted(cpu: Cpu) -> Self {
        Self { cpu, cpus: 1, clock: Clock::Icount }
    }

    /// Returns the command that writes the device tree of `host`'s machine to `dtb`.
    pub fn dump_dtb(&self, host: Host, dtb: &Path) -> Command {
        let mut command = self.base(host, &format!(",dumpdtb={}", comma_safe(dtb)));
        command.args(["-serial", "null"]);
        command
    }

    /// Returns the command that boots the machine, its UART on standard output.
    pub fn boot(&self, boot: &Boot<'_>) -> Command {
        let (host, manifest) = (comma_safe(boot.host), comma_safe(boot.manifest));
        let bootargs = boot.bootargs.replace(',', ",,");
        let shared = if boot.ram.is_some() { ",memory-backend=ram" } else { "" };
        let mut command = self.base(Host::BareMetal, shared);
        if let Some(file) = boot.ram {
            let bytes = RAM.end - RAM.start;
            let file = comma_safe(file);
            command.arg("-object");
            command
                .arg(format!("memory-backend-file,id=ram,mem-path={file},share=on,size={bytes}"));
        }
        command.args(["-serial", "stdio"]).arg("-kernel").arg(boot.payload);
        command.args([
            "-device",
            &format!("guest-loader,addr={HOST_ADDRESS},kernel={host},bootargs={bootargs}"),
            "-device",
            &format!("guest-loader,addr={MANIFEST_ADDRESS},initrd={manifest}"),
        ]);
        command
    }

    /// Returns the command that boots Linux with a disk and a network of its own; without EL2 the
    /// kernel is entered at EL1.
    pub fn boot_linux(&self, boot: &LinuxBoot<'_>, el2: El2) -> Command {
        let absent = match el2 {
            El2::Present => "",
            El2::Absent => ",virtualization=off",
        };
        let mut command = self.base(Host::Linux, absent);
        command.args(["-serial", "stdio"]).arg("-kernel").arg(boot.image);
        command.arg("-initrd").arg(boot.initrd).args(["-append", boot.parameters]);
        let disk = comma_safe(boot.disk);
        command.args(["-drive", &format!("if=none,id=disk,format=raw,file={disk}")]);
        command.args(["-device", "virtio-blk-pci,drive=disk,addr=5"]);
        command.args(["-netdev", "user,id=net,restrict=on"]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile=,addr=6"]);
        command
    }

    fn base(&self, host: Host, board_options: &str) -> Command {
        // Seeds in the device tree are for KASLR; elsewhere, what differs between runs is not the input.
        let randomness = match (host, self.clock) {
            (Host::Linux, Clock::Free) => "on",
            (Host::BareMetal, _) | (Host::Linux, Clock::Icount) => "off",
        };
        let (cpu, host) = (self.cpu.board_options(), host.board_options());
        let mut command = Command::new(QEMU);
        command.arg("-M");
        command.arg(format!(
            "virt,virtualization=on,gic-version=3,dtb-randomness={randomness}{cpu}{host}{board_options}"
        ));
        command.args(["-cpu", self.cpu.name(), "-smp", &self.cpus.to_string(), "-m", "1G"]);
        command.args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]);
        match self.clock {
            Clock::Free => {}
            Clock::Icount => {
                command.args(["-icount", "shift=0,align=off,sleep=off"]);
                command.args(["-rtc", "base=2024-01-01,clock=vm"]);
            }
        }
        command.args(["-object", "memory-backend-ram,id=shm,size=16M,share=on"]);
        for device in DEVICES {
            command.args(["-device", device]);
        }
        command
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = match self.clock {
            Clock::Free => "",
            Clock::Icount => "-icount",
        };
        write!(f, "{}-smp{}{clock}", self.cpu.name(), self.cpus)
    }
}

/// Returns a path as QEMU's option parser reads it back: it takes single commas as separators.
pub(crate) fn comma_safe(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::show;

    fn boot(machine: Machine) -> String {
        let (payload, host) = (Path::new("p.img"), Path::new("h,1.bin"));
        let boot =
            Boot { payload, host, manifest: Path::new("m.bin"), bootargs: "test", ram: None };
        show(&machine.boot(&boot))
    }

    #[test]
    fn tag_memory_is_the_main_target_s_alone() {
        for cpu in MATRIX {
            let wanted = *cpu == Cpu::NeoverseN2;
            assert_eq!(boot(Machine::parallel(*cpu)).contains("mte=on"), wanted, "{cpu:?}");
        }
    }

    #[test]
    fn only_counted_machines_run_on_icount() {
        assert!(boot(Machine::counted(Cpu::CortexA72)).contains("-icount shift=0"));
        assert!(!boot(Machine::parallel(Cpu::CortexA72)).contains("-icount"));
    }

    #[test]
    fn commas_in_file_names_reach_qemu() {
        let command = boot(Machine::parallel(Cpu::CortexA76));
        assert!(command.contains("kernel=h,,1.bin,bootargs=test"));
    }

    #[test]
    fn the_dumped_machine_has_the_booted_one_s_devices() {
        let dump =
            show(&Machine::parallel(Cpu::NeoverseV1).dump_dtb(Host::BareMetal, Path::new("a.dtb")));
        assert!(DEVICES.iter().all(|device| dump.contains(device)));
        assert!(dump.contains(",dumpdtb=a.dtb"));
    }

    #[test]
    fn the_bars_follow_from_the_rule() {
        const SPACING: u64 = 0x1_0000;
        let (mut low, mut high) = (0x1000_0000_u64, 0x80_0000_0000_u64);
        for bar in BARS {
            let next = if bar.base < 1 << 32 { &mut low } else { &mut high };
            let step = bar.size.max(SPACING);
            let base = next.next_multiple_of(step);
            assert_eq!(bar.base, base, "{bar:x?}");
            *next = base + step;
        }
    }

    #[test]
    fn clap_and_qemu_agree_on_the_names() {
        for cpu in Cpu::value_variants() {
            let value = cpu.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(cpu.name()));
        }
    }
}
