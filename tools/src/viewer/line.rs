//! One event as one line.

use std::time::Duration;

use super::record;
use super::ring::{Event, What};

/// Writes an event as `cpu  seconds.micros  kind  what`.
pub fn text(event: &Event) -> String {
    let (kind, what) = words(&event.what);
    format!("{:>3}  {}  {kind:<10}  {what}", event.cpu, seconds(event.time))
}

/// Returns an event's kind and everything else of it.
pub fn words(what: &What) -> (String, String) {
    match what {
        What::Record(record) => {
            let description = record::describe(record);
            let text = description.to_string();
            (description.kind, text)
        }
        What::Overwritten(_) | What::Torn { .. } | What::Restarted => {
            ("lost".to_owned(), remark(what).unwrap_or_default())
        }
    }
}

/// Says what is missing; `None` for a record.
pub fn remark(what: &What) -> Option<String> {
    match what {
        What::Record(_) => None,
        What::Overwritten(numbers) => {
            let count = numbers.end.saturating_sub(numbers.start);
            let (first, last) = (numbers.start, numbers.end.saturating_sub(1));
            let which = match count {
                1 => format!("record {first}"),
                _ => format!("{count} records, {first} to {last}"),
            };
            Some(format!("{which}: overwritten unread"))
        }
        What::Torn { number, found } if found > number => {
            Some(format!("record {number}: overwritten by {found} while it was read"))
        }
        What::Torn { number, found } => {
            Some(format!("record {number}: torn, its place holds {found}"))
        }
        What::Restarted => Some("the ring starts anew: all that it held".to_owned()),
    }
}

/// Writes a time as ftrace does.
pub fn seconds(time: Duration) -> String {
    format!("{:>6}.{:06}", time.as_secs(), time.subsec_micros())
}

#[cfg(test)]
mod tests {
    use pfnguard_shared::HostFunction;
    use pfnguard_shared::trace::TraceKind;

    use super::*;
    use crate::viewer::testing::done;

    fn line(what: What) -> String {
        text(&Event { cpu: 1, time: Duration::new(12, 345_678_999), what })
    }

    #[test]
    fn a_line_has_cpu_time_kind_and_what() {
        let function = HostFunction::HostShareHyp.raw().into();
        let record = done(TraceKind::HostCall, function, 0x40000, 2);
        let expected = "  1      12.345678  host-call   HostShareHyp pfn=0x40000-0x40001 pages=2";
        assert_eq!(line(What::Record(record)), expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (what, expected) in [
            (What::Overwritten(3..5), "2 records, 3 to 4: overwritten unread"),
            (What::Overwritten(3..4), "record 3: overwritten unread"),
            (What::Torn { number: 3, found: 7 }, "record 3: overwritten by 7 while it was read"),
            (What::Torn { number: 3, found: 0 }, "record 3: torn, its place holds 0"),
            (What::Restarted, "the ring starts anew: all that it held"),
        ] {
            assert_eq!(line(what), format!("  1      12.345678  lost        {expected}"));
        }
    }
}
