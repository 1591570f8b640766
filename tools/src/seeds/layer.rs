//! Layers of tests, each as the commands that build and run it.

use std::fmt;
use std::process::Command;

/// A layer of tests; CI runs all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Unit tests of `hyp/core` and `hyp/arch`.
    Unit,
    /// Every decision beside the specification's.
    Model,
    /// Sequences of calls over real tables, beside the specification.
    Harness,
    /// Two CPUs over the core's locks.
    Schedules,
    /// Attacks from EL1 in QEMU, under the oracle.
    Machine,
}

/// What must see a bug: a layer, and arguments that choose a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catcher {
    /// The layer.
    pub layer: Layer,
    arguments: Vec<String>,
}

impl Layer {
    /// Every layer.
    pub const ALL: &[Self] =
        &[Self::Unit, Self::Model, Self::Harness, Self::Schedules, Self::Machine];

    /// Returns what patches call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Model => "model",
            Self::Harness => "harness",
            Self::Schedules => "schedules",
            Self::Machine => "machine",
        }
    }

    /// Returns the arguments of cargo that choose it.
    fn cargo(self) -> &'static [&'static str] {
        match self {
            Self::Unit => &["test", "-q", "-p", "pfnguard-core", "-p", "pfnguard-arch", "--lib"],
            Self::Model => &["test", "-q", "-p", "pfnguard-tests", "--test", "model"],
            Self::Harness => &["test", "-q", "-p", "pfnguard-harness", "--test", "sequences"],
            Self::Schedules => &["test", "-q", "-p", "pfnguard-schedules"],
            Self::Machine => &["run", "-q", "-p", "pfnguard-tools", "--"],
        }
    }
}

/// Returns what patches may call a layer.
pub(super) fn names() -> String {
    Layer::ALL.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(", ")
}

impl Catcher {
    /// Reads `layer [arguments]`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let name = words.next()?;
        let layer = Layer::ALL.iter().copied().find(|layer| layer.name() == name)?;
        Some(Self { layer, arguments: words.map(str::to_owned).collect() })
    }

    /// Returns what builds the layer: a bug that does not build is none.
    pub(super) fn build(&self) -> Command {
        let last = match self.layer {
            Layer::Unit | Layer::Model | Layer::Harness | Layer::Schedules => "--no-run",
            Layer::Machine => "build",
        };
        let mut command = cargo(self.layer);
        command.arg(last);
        command
    }

    /// Returns what runs it.
    pub(super) fn run(&self) -> Command {
        let first = match self.layer {
            Layer::Unit | Layer::Model | Layer::Harness | Layer::Schedules => "--",
            Layer::Machine => "test-machine",
        };
        let mut command = cargo(self.layer);
        command.arg(first).args(&self.arguments);
        command
    }
}

fn cargo(layer: Layer) -> Command {
    let mut command = Command::new("cargo");
    command.args(layer.cargo());
    command
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layer.name())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::show;

    #[test]
    fn arguments_choose_a_part_of_the_layer() {
        let unit = Catcher::parse("unit r44").unwrap();
        assert_eq!(
            show(&unit.run()),
            "cargo test -q -p pfnguard-core -p pfnguard-arch --lib -- r44"
        );
        let machine = Catcher::parse("machine memory: --cpu cortex-a72").unwrap();
        let run = "cargo run -q -p pfnguard-tools -- test-machine memory: --cpu cortex-a72";
        assert_eq!(show(&machine.run()), run);
        assert_eq!(show(&machine.build()), "cargo run -q -p pfnguard-tools -- build");
    }
}
