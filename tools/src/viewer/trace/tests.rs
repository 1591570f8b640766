use std::fs;

use pfnguard_shared::trace::{TraceKind, TraceRecord};
use pfnguard_shared::{HostFunction, Rule, Status, Subject};

use super::*;
use crate::viewer::ring::What;
use crate::viewer::testing::{Image, done, record};
use crate::workspace;

/// A directory that is gone with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pfnguard-view-{}", workspace::unique()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, image: &Image) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, image.bytes()).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(time: u64, record: TraceRecord) -> TraceRecord {
    TraceRecord { time, ..record }
}

/// Two CPUs: one gives pages to a VM, the other asks for what the manifest does not grant.
fn two_cpus() -> [Image; 2] {
    let donate = HostFunction::HostDonateGuest.raw().into();
    let pages = TraceRecord { vm: 0, ..done(TraceKind::Ownership, 0x66666, 0x200, 0x105) };
    let refused = TraceRecord {
        vm: 0,
        status: Status::Unsupported.raw(),
        rule: Rule::R06.raw(),
        subject: Subject::Types.raw(),
        pfn: 0x10100,
        ..done(TraceKind::Decision, 0x3_0301_0000, 4, 1)
    };
    let smc = done(TraceKind::Smc, 0xc400_0003, 0, 0);
    let first = Image::new(0, 256)
        .with(at(771_604_875, pages))
        .with(at(771_605_000, done(TraceKind::HostCall, donate, 0, 0x66666)));
    let second =
        (0..4).fold(Image::new(1, 4), |image, n| image.with(at(770_000_000 + n * 125, smc)));
    [first, second.with(at(771_604_938, refused))]
}

#[test]
fn records_of_all_cpus_are_in_the_order_of_time() {
    let scratch = Scratch::new();
    let [first, second] = two_cpus();
    scratch.put("cpu1", &second);
    scratch.put("cpu0", &first);
    fs::write(scratch.0.join("control"), "no ring").unwrap();
    let look = Watcher::new(vec![scratch.0.clone()]).look().unwrap();
    assert_eq!(look.cpus, BTreeSet::from([0, 1]));
    let refusal = "refused: Unsupported R06 Types pfn=0x10100: type Cacheable, granted Device";
    let expected = [
        "  1      12.320002  lost        record 0: overwritten unread",
        "  1      12.320002  smc         CPU_ON id=0xc4000003 result=0",
        "  1      12.320004  smc         CPU_ON id=0xc4000003 result=0",
        "  1      12.320006  smc         CPU_ON id=0xc4000003 result=0",
        "  0      12.345678  ownership   HostOwned->GuestOwned pfn=0x66666-0x66865 pages=512 vm=0",
        "  1      12.345679  decision    request vm=0 mode=Share type=Cacheable perms=RW alias=None",
        "  0      12.345680  host-call   HostDonateGuest vm=0 pfn=0x66666",
    ];
    let shown = lines(&look.events).replace(&format!(" {refusal}"), "");
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    assert!(lines(&look.events).contains(&format!("alias=None {refusal}\n")));
    let document = fs::read_to_string(workspace::root().join("docs/viewers.md")).unwrap();
    assert!(document.contains(&format!("<!-- trace -->\n```text\n{}```\n", lines(&look.events))));
}

#[test]
fn a_second_look_shows_what_is_new_and_what_was_lost_in_between() {
    let scratch = Scratch::new();
    let image = Image::new(0, 4).with(record(1)).with(record(2));
    let mut watcher = Watcher::new(vec![scratch.put("cpu0", &image)]);
    assert_eq!(watcher.look().unwrap().events.len(), 2);
    assert_eq!(watcher.look().unwrap().events, []);
    let image = (3..=8).fold(image, |image, time| image.with(record(time)));
    scratch.put("cpu0", &image);
    let events = watcher.look().unwrap().events;
    assert_eq!(events[0].what, What::Overwritten(2..4));
    assert_eq!(events.len(), 5);
}

#[test]
fn following_ends_when_the_file_is_gone() {
    let scratch = Scratch::new();
    let path = scratch.put("ring", &Image::new(0, 4).with(record(1)));
    let shown = scratch.0.join("shown");
    let mut output = Output::create(&shown, &[]).unwrap();
    let mut watcher = Watcher::new(vec![path.clone()]);
    fs::remove_file(path).unwrap();
    follow(&mut watcher, &Filter::default(), Duration::ZERO, &mut output).unwrap();
    assert_eq!(fs::read_to_string(shown).unwrap(), "");
}

#[test]
fn a_file_that_is_missing_or_given_twice_is_an_error() {
    let scratch = Scratch::new();
    let missing = Watcher::new(vec![scratch.0.join("no")]).look().unwrap_err();
    assert!(missing.is_absence());
    let empty = Watcher::new(vec![scratch.0.clone()]).look().unwrap_err();
    assert!(matches!(empty, TraceError::NoRings(_)));
    let path = scratch.put("cpu0", &Image::new(0, 4));
    let twice = Watcher::new(vec![path.clone(), path]).look().unwrap_err();
    assert!(twice.to_string().ends_with("CPU 0 has a ring before this one"), "{twice}");
}
