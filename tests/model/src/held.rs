//! Who holds the region now? R41, R42 (step 5), R02 and R10 (step 17).

use pfnguard_shared::info::RegionState;
use pfnguard_shared::request::{MemTypes, Modes};
use pfnguard_shared::{MemType, Mode, Rule, Status, Subject};

use crate::{Case, Refused};

/// What a decision looks at of a region's life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub state: RegionState,
    /// Type of all holders, while it is shared or donated.
    pub mem_type: Option<MemType>,
    /// VMs that hold it.
    pub vms: u64,
    /// Whether the VM that asks is one of them.
    pub by_applicant: bool,
}

impl Held {
    pub(crate) const FREE: Self =
        Self { state: RegionState::Free, mem_type: None, vms: 0, by_applicant: false };
}

impl Case<'_> {
    /// R42, R41: nobody gets a region that is lost or waits for its reset.
    pub(crate) fn usable(&self) -> Result<(), Refused> {
        match self.held.state {
            RegionState::Free | RegionState::Shared | RegionState::Donated => Ok(()),
            RegionState::Quarantined => Err(self.refuse_state(Rule::R41)),
            RegionState::Lost => Err(self.refuse_state(Rule::R42)),
        }
    }

    /// One owner, or holders of one mode (R02), one type (R10), and no more than are allowed (R02).
    pub(crate) fn fits_the_holders(&self) -> Result<(), Refused> {
        match self.held.state {
            RegionState::Shared => {
                self.as_it_is_held(Mode::Share)?;
                self.one_more_holder()
            }
            RegionState::Donated if self.held.by_applicant => self.as_it_is_held(Mode::Donate),
            RegionState::Donated => Err(self.refuse_state(Rule::R02)),
            RegionState::Free | RegionState::Quarantined | RegionState::Lost => {
                self.one_more_holder()
            }
        }
    }

    fn as_it_is_held(&self, mode: Mode) -> Result<(), Refused> {
        if self.wish.mode != mode {
            let (asked, held) = (Modes::from(self.wish.mode).raw(), Modes::from(mode).raw());
            return Err(self.refuse(Status::Busy, Rule::R02, Subject::Modes, asked, held));
        }
        if self.held.mem_type != Some(self.wish.mem_type) {
            let asked = MemTypes::from(self.wish.mem_type).raw();
            let held = self.held.mem_type.map_or(0, |held| MemTypes::from(held).raw());
            return Err(self.refuse(Status::Unsupported, Rule::R10, Subject::Types, asked, held));
        }
        Ok(())
    }

    fn one_more_holder(&self) -> Result<(), Refused> {
        let then = self.held.vms + 1;
        if self.held.by_applicant || then <= u64::from(self.entry.max_vms) {
            return Ok(());
        }
        let most = self.entry.max_vms;
        Err(self.refuse(Status::Busy, Rule::R02, Subject::Holders, then, most))
    }

    fn refuse_state(&self, rule: Rule) -> Refused {
        let (needed, found) = (RegionState::Free.raw(), self.held.state.raw());
        self.refuse(Status::Busy, rule, Subject::RegionState, needed, found)
    }
}
