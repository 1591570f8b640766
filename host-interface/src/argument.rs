//! The argument page: what is too long for registers.

use pfnguard_shared::PAGE_SIZE;
use pfnguard_shared::info::RegionInfo;
use pfnguard_shared::request::{CHECK_DECISIONS_OFFSET, Decision, MAX_CHECK_ITEMS, Request};
use zerocopy::{FromBytes, IntoBytes};

/// One CPU's argument page. Its frame is shared with the hypervisor, which copies it once before
/// it judges and writes answers into it before the call returns.
#[repr(C, align(4096))]
pub struct ArgumentPage {
    bytes: [u8; PAGE_SIZE],
}

impl ArgumentPage {
    /// Returns a page of zeroes.
    pub const fn zeroed() -> Self {
        Self { bytes: [0; PAGE_SIZE] }
    }

    /// Returns the bytes, for a migration descriptor.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        &self.bytes
    }

    /// Returns the bytes, to write a migration descriptor that came from another host.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        &mut self.bytes
    }

    /// Writes a batch and returns how many requests it holds: at most
    /// [`MAX_CHECK_ITEMS`] are taken.
    pub fn put_requests(&mut self, requests: &[Request]) -> usize {
        let count = requests.len().min(MAX_CHECK_ITEMS);
        let bytes = requests[..count].as_bytes();
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        count
    }

    /// Returns the decision on request `item` of the last batch, or `None` past the page.
    pub fn decision(&self, item: usize) -> Option<Decision> {
        let offset =
            item.checked_mul(size_of::<Decision>())?.checked_add(CHECK_DECISIONS_OFFSET)?;
        Decision::read_from_prefix(self.bytes.get(offset..)?).ok().map(|(decision, _)| decision)
    }

    /// Returns the region that the last REGION_INFO described.
    pub fn region_info(&self) -> RegionInfo {
        RegionInfo::read_from_prefix(&self.bytes).map_or(RegionInfo::zeroed(), |(info, _)| info)
    }
}
