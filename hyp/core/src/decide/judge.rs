//! One request after another: where each lies (step 1), then what the rules say.

use pfnguard_shared::{Rule, Status, Subject};

use super::{Applicant, BindRequest, Case, Grant};
use crate::addr::{Pfn, PfnRange};
use crate::error::RuleRefusal;
use crate::manifest::Entry;
use crate::region::{RegionTable, Spot};

/// Entry number in a refusal for a page that lies in no entry.
const NO_ENTRY: u64 = u64::MAX;

/// Decides on one request after another: one that lies near the one before is found at once.
pub(crate) struct Judge<'a> {
    table: &'a RegionTable,
    spot: Spot<'a>,
}

impl<'a> Judge<'a> {
    /// Returns a judge who has looked nowhere yet.
    pub fn new(table: &'a RegionTable) -> Self {
        Self { table, spot: Spot::NOWHERE }
    }

    /// Returns the table that it judges by.
    pub fn table(&self) -> &'a RegionTable {
        self.table
    }

    /// As [`decide`].
    #[inline]
    pub fn decide<E: From<RuleRefusal>>(
        &mut self,
        applicant: Applicant,
        request: &BindRequest,
    ) -> Result<Grant, E> {
        self.look_at(request.pfns.start());
        match self.grant(applicant, request) {
            Some(grant) => Ok(grant),
            None => Err(self.refusal(applicant, request).into()),
        }
    }

    /// Returns why every request for `range` is refused where no page of it lies in an entry.
    #[inline(always)]
    pub fn refuse_outside(&mut self, range: &PfnRange) -> Option<RuleRefusal> {
        self.look_at(range.start());
        let region = self.spot.region();
        let inside = region.is_some_and(|(_, region)| region.entry.range.overlaps(range));
        (!inside).then(|| outside(self.table, range))
    }

    #[inline(always)]
    fn look_at(&mut self, pfn: Pfn) {
        if !self.spot.contains(pfn) {
            self.spot = self.table.spot(pfn);
        }
    }

    #[inline(always)]
    fn grant(&self, applicant: Applicant, request: &BindRequest) -> Option<Grant> {
        let (id, region) = self.spot.region()?;
        let capabilities = self.table.capabilities();
        let case = Case { region, capabilities, applicant, request };
        let inside = region.entry.range.contains_range(&request.pfns);
        (inside && case.is_granted()).then(|| case.grant(id))
    }

    /// Says why there is no grant.
    #[cold]
    fn refusal(&self, applicant: Applicant, request: &BindRequest) -> RuleRefusal {
        let range = &request.pfns;
        match self.spot.region() {
            Some((_, region)) if region.entry.range.contains_range(range) => {
                let capabilities = self.table.capabilities();
                let judged = Case { region, capabilities, applicant, request }.judge();
                judged.expect_err("no rule refuses what the answers refuse: hypervisor bug")
            }
            Some((_, region)) if region.entry.range.overlaps(range) => {
                straddling(self.table, &region.entry, request)
            }
            Some(_) | None => outside(self.table, range),
        }
    }
}

/// R14: some pages lie in `entry`, others do not.
#[cold]
fn straddling(table: &RegionTable, entry: &Entry, request: &BindRequest) -> RuleRefusal {
    let range = request.pfns;
    let inside = entry.range.contains(range.start());
    let page = if inside { entry.range.end() } else { entry.range.start() };
    let number = |pfn| table.lookup(pfn).map_or(NO_ENTRY, |(id, _)| id.raw());
    let last = Pfn(range.end().0.saturating_sub(1));
    RuleRefusal {
        status: Status::Unsupported,
        rule: Rule::R14,
        subject: Subject::Entry,
        pfn: Some(page),
        requested: number(range.start()),
        granted: number(last),
    }
}

/// R15 or R01: no page of `range` lies in an entry.
#[inline]
fn outside(table: &RegionTable, range: &PfnRange) -> RuleRefusal {
    let (rule, subject, pfn, requested) = match table.first_ram(range) {
        Some(pfn) => (Rule::R15, Subject::None, pfn, 0),
        None => (Rule::R01, Subject::Pages, range.start(), range.pages()),
    };
    RuleRefusal { status: Status::Denied, rule, subject, pfn: Some(pfn), requested, granted: 0 }
}
