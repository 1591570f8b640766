//! One entry: what can be judged without the others.

use arrayvec::ArrayVec;
use pfnguard_shared::manifest::{
    self as wire, BlockSizes, MAX_HOLDERS, MAX_POLL_READS, MAX_STREAMS, PlatformFlags, RegionClass,
    RegionFlags, ResetKind,
};
use pfnguard_shared::request::{MemTypes, Modes};
use pfnguard_shared::{PAGE_SHIFT, Perms};

use super::error::Place;
use super::{Constraint as C, Entry, Fact, Label, ManifestError, Register, Reset};
use crate::addr::{Pfn, PfnRange, PhysAddr};
use crate::machine::RegisterWidth;

/// Decodes entry number `index` and checks all that concerns it alone.
pub(super) fn decode(
    index: usize,
    wire: &wire::Entry,
    platform: PlatformFlags,
) -> Result<Entry, ManifestError> {
    let name = Label::decode(&wire.name).unwrap_or(Label::EMPTY);
    let claim = Claim { wire, place: Place { index, name } };
    claim.require(!name.is_empty(), C::Name)?;
    let entry = Entry {
        name,
        range: claim.range()?,
        class: claim.known(RegionClass::from_raw(wire.class), C::Class, wire.class)?,
        modes: claim.known(Modes::from_raw(wire.modes), C::UnknownBits, wire.modes)?,
        types: claim.known(MemTypes::from_raw(wire.types), C::UnknownBits, wire.types)?,
        perms: claim.known(Perms::from_raw(wire.perms), C::UnknownBits, wire.perms)?,
        max_vms: wire.max_vms,
        blocks: claim.known(BlockSizes::from_raw(wire.blocks), C::UnknownBits, wire.blocks)?,
        flags: claim.known(RegionFlags::from_raw(wire.flags), C::UnknownBits, wire.flags)?,
        reset: claim.reset()?,
        streams: claim.streams()?,
        quirk: claim.quirk()?,
    };
    claim.require(wire.reserved == [0; 3] && wire.reserved2 == 0, C::UnknownBits)?;
    claim.check_grants(&entry)?;
    claim.check_types(&entry, platform)?;
    claim.check_properties(&entry)?;
    Ok(entry)
}

/// An entry as it was written: nothing of it is known to be true.
struct Claim<'a> {
    wire: &'a wire::Entry,
    place: Place,
}

impl Claim<'_> {
    fn refuse(&self, constraint: C, fact: Fact) -> ManifestError {
        ManifestError { constraint, place: Some(self.place), fact }
    }

    fn require(&self, holds: bool, constraint: C) -> Result<(), ManifestError> {
        self.require_value(holds, constraint, Fact::None)
    }

    fn require_value(&self, holds: bool, constraint: C, fact: Fact) -> Result<(), ManifestError> {
        if holds { Ok(()) } else { Err(self.refuse(constraint, fact)) }
    }

    fn known<T>(
        &self,
        decoded: Option<T>,
        constraint: C,
        raw: impl Into<u64>,
    ) -> Result<T, ManifestError> {
        decoded.ok_or_else(|| self.refuse(constraint, Fact::Value(raw.into())))
    }

    fn range(&self) -> Result<PfnRange, ManifestError> {
        let (base, size) = (self.wire.base, self.wire.size);
        let page = 1 << PAGE_SHIFT;
        self.require_value(base % page == 0, C::BaseAligned, Fact::Value(base))?;
        self.require_value(size != 0 && size % page == 0, C::Size, Fact::Value(size))?;
        PfnRange::new(Pfn(base >> PAGE_SHIFT), size >> PAGE_SHIFT)
            .ok_or_else(|| self.refuse(C::AddressSpace, Fact::Beside(base, size)))
    }

    fn quirk(&self) -> Result<Label, ManifestError> {
        let reason =
            Label::decode(&self.wire.quirk).ok_or(self.refuse(C::QuirkReason, Fact::None))?;
        let blocked = self.wire.flags & RegionFlags::QUIRKED.raw() != 0;
        self.require(blocked != reason.is_empty(), C::QuirkReason)?;
        Ok(reason)
    }

    fn streams(&self) -> Result<ArrayVec<u32, MAX_STREAMS>, ManifestError> {
        let count = usize::from(self.wire.stream_count);
        let excess = self.refuse(C::StreamCount, Fact::Value(u64::from(self.wire.stream_count)));
        let (used, unused) = self.wire.streams.split_at_checked(count).ok_or(excess)?;
        self.require(unused.iter().all(|&stream| stream == 0), C::StreamCount)?;
        Ok(used.iter().copied().collect())
    }

    fn check_grants(&self, entry: &Entry) -> Result<(), ManifestError> {
        let vms = Fact::Value(u64::from(entry.max_vms));
        self.require(entry.blocks.contains(BlockSizes::PAGE), C::PageBlock)?;
        if entry.modes.is_empty() {
            let nothing = entry.types.is_empty() && entry.perms.is_empty() && entry.max_vms == 0;
            return self.require(nothing, C::NothingGranted);
        }
        self.require(entry.types.contains(MemTypes::DEVICE), C::DevicePresent)?;
        self.require(!entry.perms.is_empty(), C::SomePermission)?;
        self.require(entry.perms.contains(Perms::READ), C::ReadFirst)?;
        self.require_value((1..=MAX_HOLDERS).contains(&entry.max_vms), C::Holders, vms)?;
        let donate_only = entry.modes == Modes::DONATE;
        self.require_value(!donate_only || entry.max_vms == 1, C::DonateOnly, vms)
    }

    fn check_types(&self, entry: &Entry, platform: PlatformFlags) -> Result<(), ManifestError> {
        let cacheable = entry.types.contains(MemTypes::CACHEABLE);
        let uncached = entry.types.contains(MemTypes::ANY_UNCACHED);
        let has = |flag| entry.flags.contains(flag);
        let forbidden = platform.contains(PlatformFlags::NORMAL_NC_FORBIDDEN);
        let cleaned = has(RegionFlags::CMO_BY_ADDRESS) || entry.reset == Reset::External;
        let memory = entry.class == RegionClass::Memory;
        self.require(cacheable || !entry.perms.contains(Perms::EXEC), C::ExecCacheable)?;
        self.require(!cacheable || memory, C::CacheableMemory)?;
        self.require(!cacheable || cleaned, C::CacheableReturn)?;
        self.require(!uncached || has(RegionFlags::NC_SAFE), C::NcSafe)?;
        self.require(!uncached || !forbidden, C::NormalNcForbidden)
    }

    fn check_properties(&self, entry: &Entry) -> Result<(), ManifestError> {
        let closed = entry.flags.contains(RegionFlags::HOST_CLOSED);
        self.require(!closed || entry.modes.is_empty(), C::ClosedGrants)?;
        let memory = entry.class == RegionClass::Memory;
        let atomics = RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS);
        for (flags, constraint) in [
            (RegionFlags::TAGS, C::TagsMemory),
            (atomics, C::AtomicsMemory),
            (RegionFlags::ZERO_ON_RETURN, C::ZeroMemory),
            (RegionFlags::CMO_BY_ADDRESS, C::CmoMemory),
        ] {
            self.require(memory || !entry.flags.intersects(flags), constraint)?;
        }
        Ok(())
    }
}

/// Reset contracts (R41, R42). Whether the register lies in an entry is judged with all entries.
impl Claim<'_> {
    fn reset(&self) -> Result<Reset, ManifestError> {
        let kind = ResetKind::from_raw(self.wire.reset);
        let kind = self.known(kind, C::ResetKind, self.wire.reset)?;
        let no_register = self.wire.reset_addr == 0 && self.wire.reset_width == 0;
        let no_poll =
            [self.wire.reset_mask, self.wire.reset_value] == [0; 2] && self.wire.reset_bound == 0;
        match kind {
            ResetKind::None | ResetKind::External => {
                self.require(no_register && no_poll, C::ResetUnused)?;
            }
            ResetKind::Readback => self.require(no_poll, C::ResetUnused)?,
            ResetKind::Poll => {}
        }
        match kind {
            ResetKind::None => Ok(Reset::None),
            ResetKind::External => Ok(Reset::External),
            ResetKind::Readback => self.register().map(Reset::Readback),
            ResetKind::Poll => self.poll(),
        }
    }

    fn register(&self) -> Result<Register, ManifestError> {
        let (addr, bytes) = (self.wire.reset_addr, self.wire.reset_width);
        let width = match bytes {
            4 => RegisterWidth::Word,
            8 => RegisterWidth::Doubleword,
            other => return Err(self.refuse(C::ResetWidth, Fact::Value(u64::from(other)))),
        };
        let aligned = addr % u64::from(bytes) == 0;
        self.require_value(aligned, C::ResetAligned, Fact::Value(addr))?;
        Ok(Register { addr: PhysAddr(addr), width })
    }

    fn poll(&self) -> Result<Reset, ManifestError> {
        let register = self.register()?;
        let wire = self.wire;
        let (mask, value, bound) = (wire.reset_mask, wire.reset_value, wire.reset_bound);
        let fits = match register.width {
            RegisterWidth::Word => u32::try_from(mask).is_ok(),
            RegisterWidth::Doubleword => true,
        };
        self.require_value(mask != 0 && fits, C::PollMask, Fact::Value(mask))?;
        self.require_value(value & !mask == 0, C::PollValue, Fact::Beside(value, mask))?;
        let bounded = (1..=MAX_POLL_READS).contains(&bound);
        self.require_value(bounded, C::PollBound, Fact::Value(u64::from(bound)))?;
        Ok(Reset::Poll { register, mask, value, bound })
    }
}
