//! The table of decisions.

use std::collections::BTreeSet;
use std::fmt::Write;

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::{Rule, Status};

use super::judge::Judged;
use crate::columns;
use crate::par::Par;
use crate::uart::{Decision, Transcript};
use crate::words;

/// One row: the cells, left to right.
type Row = [String; 6];

/// Titles of the columns.
const TITLES: [&str; 6] = ["device", "BAR", "request", "decision", "rule", "CPU reports / reason"];

/// Renders the decisions, the rules that refused, and a summary.
pub(super) fn render(transcript: &Transcript, decisions: &[Judged]) -> String {
    let rows: Vec<Row> = decisions.iter().map(|judged| row(transcript, judged)).collect();
    let mut text = columns::align(TITLES, &rows);
    text.push('\n');
    text.push_str(&legend(decisions));
    text.push_str(&summary(transcript, decisions));
    text
}

fn row(transcript: &Transcript, judged: &Judged) -> Row {
    let decision = &judged.decision;
    let device = transcript.devices.iter().find(|device| device.bdf == decision.bdf);
    let name = device.map_or("?", |device| device.name.as_str());
    let mark = if judged.differences.is_empty() { "" } else { "  <-- WRONG" };
    [
        format!("{} {name}", decision.bdf),
        decision.bar.to_string(),
        words::request(decision.mode, decision.mem_type, decision.perms),
        outcome(decision),
        decision.rule.map_or("-", Rule::name).to_owned(),
        format!("{}{mark}", reason(judged)),
    ]
}

fn outcome(decision: &Decision) -> String {
    match decision.status {
        Status::Success => "granted".to_owned(),
        Status::NotSupported
        | Status::Denied
        | Status::InvalidParameter
        | Status::NotFound
        | Status::WrongState
        | Status::NoMemory
        | Status::Busy
        | Status::NoExec
        | Status::Unsupported => format!("refused ({})", decision.status.name()),
    }
}

fn reason(Judged { decision, quirk, .. }: &Judged) -> String {
    if let Some(quirk) = quirk {
        return format!("blocked: {quirk}");
    }
    match (decision.status, decision.par) {
        (Status::Success, Some(par)) => Par(par).reported().to_string(),
        (Status::Success, None) => "not probed".to_owned(),
        _ => words::explain(decision.subject, decision.requested, decision.granted),
    }
}

/// Lists the rules that refused something, each in its own sentence.
fn legend(decisions: &[Judged]) -> String {
    let rules: BTreeSet<Rule> = decisions.iter().filter_map(|j| j.decision.rule).collect();
    let mut text = String::new();
    for rule in rules {
        let _ = writeln!(text, "{}  {}", rule.name(), rule.summary());
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn summary(transcript: &Transcript, decisions: &[Judged]) -> String {
    let total = decisions.len();
    let granted = decisions.iter().filter(|j| j.decision.status == Status::Success).count();
    let wrong = decisions.iter().filter(|judged| !judged.differences.is_empty()).count();
    let able = transcript.capabilities.unwrap_or(Capabilities::NONE);
    let names: Vec<&str> = Capabilities::CONSTANTS
        .iter()
        .filter(|bit| able.raw() & bit.value.cast_unsigned() != 0)
        .map(|bit| bit.name)
        .collect();
    let verdict = match (transcript.end.is_some(), wrong) {
        (false, _) => "INCOMPLETE: the machine did not finish".to_owned(),
        (true, 0) => "each as specified, each grant of the type asked for".to_owned(),
        (true, wrong) => format!("{wrong} NOT as specified"),
    };
    let abilities = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    format!(
        "platform: {abilities}\n{total} decisions: {granted} granted, {} refused; {verdict}\n",
        total - granted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(line: &str) -> Judged {
        let transcript = Transcript::read(&[line.to_owned()]);
        let [decision] = transcript.decisions.try_into().unwrap();
        Judged { decision, differences: Vec::new(), quirk: None }
    }

    #[test]
    fn a_row_says_what_was_asked_what_came_of_it_and_why() {
        let start = "@decision bdf=00:02.0 bar=0 pfn=0x10100 pages=256";
        let grant = format!(
            "{start} mode=Share type=Device perms=RW status=Success rule=- subject=None badpfn=- \
             requested=0x0 granted=0x0 par=0x400000010100b80"
        );
        let refusal = format!(
            "{start} mode=Donate type=Cacheable perms=R status=Unsupported rule=R06 subject=Types \
             badpfn=0x10100 requested=0x4 granted=0x1 par=-"
        );
        let device = "@device bdf=00:02.0 vendor=1234 device=11e8 name=edu".to_owned();
        let caps = "@caps value=0x3".to_owned();
        let end = "@end passed=2 failed=0".to_owned();
        let transcript = Transcript::read(&[device, caps, end]);
        let table = render(&transcript, &[judged(&grant), judged(&refusal)]);
        let expected = "\
device       BAR  request                decision               rule  CPU reports / reason
-----------  ---  ---------------------  ---------------------  ----  ------------------------------
00:02.0 edu  0    Share  Device      RW  granted                -     Device-nGnRE
00:02.0 edu  0    Donate Cacheable   R   refused (Unsupported)  R06   type Cacheable, granted Device

R06  Cacheable only for device memory with a cacheable grant, never for MMIO.

platform: FWB DIC
2 decisions: 1 granted, 1 refused; each as specified, each grant of the type asked for
";
        assert_eq!(table, expected);
    }
}
