//! Two states, told apart: which part differs, and how.

use std::fmt::Debug;

use pfnguard_model::state::State;
use pretty_assertions::Comparison;

/// Returns what differs between what the specification says and what was found.
pub fn of_states(specified: &State, found: &State) -> Option<String> {
    if specified == found {
        return None;
    }
    let mut text = String::new();
    part(&mut text, "frames", &specified.frames, &found.frames);
    part(&mut text, "regions", &specified.regions, &found.regions);
    part(&mut text, "argument pages", &specified.arg_pages, &found.arg_pages);
    for number in specified.vms.keys().chain(found.vms.keys()) {
        let (specified, found) = (specified.vms.get(number), found.vms.get(number));
        let (Some(specified), Some(found)) = (specified, found) else {
            part(&mut text, &format!("VM {number}"), &specified, &found);
            continue;
        };
        let mut field = |name: &str, specified: &dyn Debug, found: &dyn Debug, same: bool| {
            if !same && !text.contains(&format!("VM {number}: {name}")) {
                let comparison = Comparison::new(specified, found);
                text.push_str(&format!("VM {number}: {name} {comparison}\n"));
            }
        };
        let same = specified.contract == found.contract;
        field("contract", &specified.contract, &found.contract, same);
        field("state", &specified.state, &found.state, specified.state == found.state);
        let same = specified.bound_once == found.bound_once;
        field("bound once", &specified.bound_once, &found.bound_once, same);
        field("pages", &specified.pages, &found.pages, specified.pages == found.pages);
        let same = specified.bindings == found.bindings;
        field("bindings", &specified.bindings, &found.bindings, same);
        field("tables", &specified.tables, &found.tables, specified.tables == found.tables);
        field("vCPUs", &specified.vcpus, &found.vcpus, specified.vcpus == found.vcpus);
    }
    Some(text)
}

fn part<T: PartialEq + Debug>(text: &mut String, name: &str, specified: &T, found: &T) {
    if specified != found && !text.contains(&format!("{name} ")) {
        text.push_str(&format!("{name} {}\n", Comparison::new(specified, found)));
    }
}
