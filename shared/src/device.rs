//! What a program asks of `/dev/pfnguard`: numbers and structures of its `ioctl`s.
//!
//! The device is the kernel module's. It does not decide what a VM gets, the hypervisor does; it
//! ties what a program asks for to what the program has: pages that it can pin, mappings whose type
//! can be read, memory that is accounted. Addresses and lengths are in bytes and page-aligned. A
//! call that fails has changed nothing; where the hypervisor refused, or the kernel in its terms, the
//! structure's [`Decision`] says why: its status is not zero then, and `errno` follows from it.
//!
//! Reserved fields are zero. Structures only grow with new numbers.

use crate::info::RegionInfo;
use crate::request::Decision;

/// `_IOC_TYPE` of all calls.
pub const IOCTL_TYPE: u8 = 0xb9;

/// Most pages of table memory that one call takes.
pub const MAX_TABLES: u32 = 512;

/// Returns `_IOWR(IOCTL_TYPE, number, T)` (Linux `include/uapi/asm-generic/ioctl.h`).
#[allow(clippy::as_conversions, reason = "no structure here has 16 KiB")]
const fn both_ways<T>(number: u8) -> u32 {
    const READ_AND_WRITE: u32 = 3;
    assert!(size_of::<T>() < 1 << 14);
    READ_AND_WRITE << 30 | (size_of::<T>() as u32) << 16 | (IOCTL_TYPE as u32) << 8 | number as u32
}

numbers! {
    /// Calls of `/dev/pfnguard`, and of the file of a VM, which `CREATE_VM` returns.
    pub enum Ioctl: u32 {
        /// Device, `struct pfnguard_info_args`: what the hypervisor says of itself.
        Info = both_ways::<InfoArgs>(0x00),
        /// Device, `struct pfnguard_region_args`: one region of the manifest. ENOENT behind the last.
        Region = both_ways::<RegionArgs>(0x01),
        /// Device, `struct pfnguard_region_args`: the driver has reset a region in quarantine
        /// (R41, `External`); the region as it is then. For CAP_SYS_ADMIN.
        RegionReset = both_ways::<RegionArgs>(0x02),
        /// Device, `struct pfnguard_vm_args`: a new VM. Returns the file of the VM, which is torn down
        /// when the last reference to its file goes. Its calls are for the process that made it.
        CreateVm = both_ways::<VmArgs>(0x03),
        /// VM, `struct pfnguard_tables_args`: more table memory. It counts as locked.
        AddTables = both_ways::<TablesArgs>(0x10),
        /// VM, `struct pfnguard_tables_args`, zero: the guest uses memory tagging (R21).
        EnableMte = both_ways::<TablesArgs>(0x11),
        /// VM, not protected, `struct pfnguard_ram_args`: lends the caller's pages. They are pinned and
        /// counted as locked (RLIMIT_MEMLOCK).
        ShareRam = both_ways::<RamArgs>(0x12),
        /// VM, `struct pfnguard_ram_args`: takes back what one call lent: the same address in the guest
        /// and the same size; the other fields are zero.
        UnshareRam = both_ways::<RamArgs>(0x13),
        /// VM, `struct pfnguard_ram_args`: gives new pages with a copy of the caller's for good, until
        /// the VM is torn down; `perms` is zero. They count as locked.
        DonateRam = both_ways::<RamArgs>(0x14),
        /// VM, `struct pfnguard_check_args`: what `BIND` would answer to each of its items.
        Check = both_ways::<CheckArgs>(0x20),
        /// VM, `struct pfnguard_bind_args`: binds the pages behind a PFNMAP mapping of the caller. The
        /// mapping's file stays open; when the mapping changes, the binding ends, and with it the VM if
        /// it is protected and owns the pages.
        Bind = both_ways::<BindArgs>(0x21),
        /// VM, `struct pfnguard_guest_args`: installs a binding now, if its mapping is still what it was.
        Map = both_ways::<GuestArgs>(0x22),
        /// VM, `struct pfnguard_guest_args`: ends a binding; `value` is the region's state.
        Unbind = both_ways::<GuestArgs>(0x23),
        /// VM, `struct pfnguard_guest_args`: `value` is what the CPU's AT S12E1R reports (`PAR_EL1`).
        Probe = both_ways::<GuestArgs>(0x24),
    }
}

wire! {
    /// Argument of `INFO`.
    pub struct InfoArgs[40] {
        /// `InfoSelector`.
        pub selector: u64,
        /// x1 to x4 of the hypervisor's answer.
        pub values: [u64; 4],
    }
}

wire! {
    /// Argument of `REGION` and `REGION_RESET`.
    pub struct RegionArgs[136] {
        /// Index, in the order of the manifest.
        pub index: u32,
        /// Zero.
        pub reserved: u32,
        /// The region.
        pub info: RegionInfo,
        /// Why not.
        pub decision: Decision,
    }
}

wire! {
    /// Argument of `CREATE_VM`.
    pub struct VmArgs[48] {
        /// `ContractFlags`.
        pub contract: u32,
        /// Number of vCPUs.
        pub vcpus: u32,
        /// Pages of table memory, at most `MAX_TABLES`.
        pub tables: u32,
        /// Zero.
        pub reserved: u32,
        /// Why not.
        pub decision: Decision,
    }
}

wire! {
    /// Argument of `ADD_TABLES` and `ENABLE_MTE`.
    pub struct TablesArgs[40] {
        /// Pages, at most `MAX_TABLES`.
        pub tables: u32,
        /// Zero.
        pub reserved: u32,
        /// Why not.
        pub decision: Decision,
    }
}

wire! {
    /// Argument of calls about RAM.
    pub struct RamArgs[64] {
        /// The caller's address.
        pub address: u64,
        /// Bytes.
        pub size: u64,
        /// Where the guest sees it.
        pub guest: u64,
        /// `Perms` bits.
        pub perms: u32,
        /// Zero.
        pub reserved: u32,
        /// Why not.
        pub decision: Decision,
    }
}

wire! {
    /// Argument of `BIND`, and an item of `CHECK`.
    pub struct BindArgs[64] {
        /// The caller's mapping of the pages.
        pub address: u64,
        /// Bytes; all of them in one mapping.
        pub size: u64,
        /// Where the guest sees them.
        pub guest: u64,
        /// `Mode`.
        pub mode: u8,
        /// `MemType`.
        pub mem_type: u8,
        /// `Perms` bits.
        pub perms: u8,
        /// `RequestFlags` bits but `COW`, which the kernel finds out.
        pub flags: u8,
        /// Zero.
        pub reserved: u32,
        /// The answer.
        pub decision: Decision,
    }
}

wire! {
    /// Argument of `CHECK`.
    pub struct CheckArgs[16] {
        /// Address of an array of `struct pfnguard_bind_args`; each gets its decision.
        pub items: u64,
        /// Its length, at most `MAX_CHECK_ITEMS`.
        pub count: u32,
        /// Zero.
        pub reserved: u32,
    }
}

wire! {
    /// Argument of calls about a binding.
    pub struct GuestArgs[48] {
        /// First byte of the binding in the guest.
        pub guest: u64,
        /// What the call returns.
        pub value: u64,
        /// Why not.
        pub decision: Decision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_the_kernels_macro_makes() {
        // _IOWR(0xb9, 0x21, struct of 64 bytes)
        assert_eq!(Ioctl::Bind.raw(), 0xc040_b921);
        assert_eq!(Ioctl::from_raw(0xc030_b922), Some(Ioctl::Map));
        assert_eq!(Ioctl::from_raw(0xc030_b925), None);
    }
}
