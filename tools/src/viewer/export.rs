//! The trace as other programs read it: Perfetto's JSON, and the text of ftrace.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum;
use miette::IntoDiagnostic;
use serde_json::{Map, Value, json};

use super::line;
use super::record::{self, Description, Fact};
use super::ring::{Event, What};

/// The process that all CPUs belong to. 0 would be the idle process of every trace.
const PROCESS: u32 = 1;

/// For which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Export {
    /// JSON trace events: Perfetto, chrome://tracing
    Perfetto,
    /// The text of ftrace: whatever reads `trace-cmd report`
    Ftrace,
}

/// Writes events, which are in the order of time, of rings of these CPUs.
///
/// # Errors
/// None that is known: serde_json promises less.
pub fn write(format: Export, cpus: &BTreeSet<u32>, events: &[Event]) -> miette::Result<String> {
    match format {
        Export::Perfetto => perfetto(cpus, events).into_diagnostic(),
        Export::Ftrace => Ok(ftrace(cpus, events)),
    }
}

fn perfetto(cpus: &BTreeSet<u32>, events: &[Event]) -> serde_json::Result<String> {
    let process = json!({
        "name": "process_name", "ph": "M", "pid": PROCESS, "args": { "name": "pfnguard" },
    });
    let tracks = cpus.iter().flat_map(|&cpu| track(cpu));
    let all: Vec<Value> =
        [process].into_iter().chain(tracks).chain(events.iter().map(instant)).collect();
    let document = json!({ "displayTimeUnit": "ns", "traceEvents": all });
    serde_json::to_string_pretty(&document).map(|text| text + "\n")
}

/// Names a CPU's track, and puts it into its place.
fn track(cpu: u32) -> [Value; 2] {
    let (pid, tid) = (PROCESS, thread(cpu));
    let about = |name: &str, args: Value| json!({ "name": name, "ph": "M", "pid": pid, "tid": tid, "args": args });
    [
        about("thread_name", json!({ "name": format!("CPU {cpu}") })),
        about("thread_sort_index", json!({ "sort_index": cpu })),
    ]
}

/// The thread that stands for a CPU: 0 would be the idle thread of every trace.
fn thread(cpu: u32) -> u64 {
    u64::from(cpu) + 1
}

fn instant(event: &Event) -> Value {
    let (category, name, args) = match &event.what {
        What::Record(record) => {
            let description = record::describe(record);
            let mut args = arguments(&description);
            args.insert("sequence".to_owned(), json!(record.sequence));
            (description.kind, description.name, args)
        }
        What::Overwritten(_) | What::Torn { .. } | What::Restarted => {
            let remark = line::remark(&event.what).unwrap_or_default();
            let args = Map::from_iter([("remark".to_owned(), json!(remark))]);
            ("lost".to_owned(), "lost".to_owned(), args)
        }
    };
    json!({
        "name": name, "cat": category, "ph": "i", "s": "t", "ts": micros(event.time),
        "pid": PROCESS, "tid": thread(event.cpu), "args": args,
    })
}

fn arguments(description: &Description) -> Map<String, Value> {
    let facts =
        description.facts.iter().map(|Fact { key, value }| ((*key).to_owned(), json!(value)));
    let mut args: Map<String, Value> = facts.collect();
    if let Some(refusal) = &description.refusal {
        let values = json!({
            "status": refusal.status, "rule": refusal.rule, "subject": refusal.subject,
            "pfn": refusal.pfn.map(|pfn| pfn.to_string()), "meaning": refusal.meaning,
        });
        args.insert("refused".to_owned(), values);
    }
    args
}

/// Microseconds with three digits behind the point.
fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e9).round() / 1e3
}

fn ftrace(cpus: &BTreeSet<u32>, events: &[Event]) -> String {
    let records = events.iter().filter(|event| line::remark(&event.what).is_none()).count();
    let mut text = format!(
        "# tracer: nop\n#\n# entries-in-buffer/entries-written: {records}/{records}   #P:{}\n#\n\
         #           TASK-PID     CPU#  ||||   TIMESTAMP  FUNCTION\n\
         #              | |         |   ||||      |         |\n",
        cpus.len()
    );
    text.extend(events.iter().map(ftrace_line));
    text
}

fn ftrace_line(event: &Event) -> String {
    let cpu = event.cpu;
    match &event.what {
        What::Record(_) => {
            let (kind, what) = line::words(&event.what);
            let (time, kind) = (line::seconds(event.time), kind.replace('-', "_"));
            format!("{:>16}-{:<7} [{cpu:03}] .... {time}: pfnguard_{kind}: {what}\n", "pfnguard", 0)
        }
        What::Overwritten(numbers) => {
            let count = numbers.end.saturating_sub(numbers.start);
            format!("CPU:{cpu} [LOST {count} EVENTS]\n")
        }
        What::Torn { .. } => format!("CPU:{cpu} [LOST 1 EVENTS]\n"),
        What::Restarted => format!("# CPU:{cpu} starts anew\n"),
    }
}

#[cfg(test)]
mod tests {
    use pfnguard_shared::trace::{TraceKind, TraceRecord};
    use pfnguard_shared::{HostFunction, Rule, Status};

    use super::*;
    use crate::viewer::testing::done;

    fn events() -> Vec<Event> {
        let function = HostFunction::HostShareHyp.raw().into();
        let call = TraceRecord { sequence: 7, ..done(TraceKind::HostCall, function, 0x40000, 2) };
        let (status, rule) = (Status::Denied.raw(), Rule::R15.raw());
        let refused = TraceRecord { status, rule, pfn: 9, ..call };
        let event = |cpu, nanos, what| Event { cpu, time: Duration::new(12, nanos), what };
        vec![
            event(1, 345_678_016, What::Overwritten(0..7)),
            event(1, 345_678_016, What::Record(call)),
            event(0, 345_680_000, What::Record(refused)),
        ]
    }

    fn exported(format: Export) -> String {
        write(format, &BTreeSet::from([0, 1]), &events()).unwrap()
    }

    #[test]
    fn json_has_a_track_for_each_cpu_and_an_instant_for_each_event() {
        let parsed: Value = serde_json::from_str(&exported(Export::Perfetto)).unwrap();
        let all = parsed["traceEvents"].as_array().unwrap();
        let phases: Vec<_> = all.iter().map(|event| event["ph"].as_str().unwrap()).collect();
        assert_eq!(phases, ["M", "M", "M", "M", "M", "i", "i", "i"]);
        assert_eq!(all[3]["args"]["name"], "CPU 1");
        let call = &all[6];
        assert_eq!((&call["name"], &call["cat"]), (&json!("HostShareHyp"), &json!("host-call")));
        assert_eq!((&call["ts"], &call["tid"]), (&json!(12_345_678.016), &json!(2)));
        assert_eq!(call["args"]["pfn"], "0x40000-0x40001");
        assert_eq!(call["args"]["sequence"], 7);
        assert_eq!(all[7]["args"]["refused"]["rule"], "R15");
        assert_eq!(all[7]["args"]["refused"]["pfn"], "0x9");
    }

    #[test]
    fn text_is_that_of_ftrace() {
        let expected = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 2/2   #P:2
#
#           TASK-PID     CPU#  ||||   TIMESTAMP  FUNCTION
#              | |         |   ||||      |         |
CPU:1 [LOST 7 EVENTS]
        pfnguard-0       [001] ....     12.345678: pfnguard_host_call: HostShareHyp pfn=0x40000-0x40001 pages=2
        pfnguard-0       [000] ....     12.345680: pfnguard_host_call: HostShareHyp refused: Denied R15 pfn=0x9
";
        assert_eq!(exported(Export::Ftrace), expected);
    }
}
