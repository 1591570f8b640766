//! What the architecture's numbers in a record mean: syndromes and firmware calls.

use aarch64_esr_decoder::{FieldInfo, decode, decode_smccc};
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET,
    PSCI_SYSTEM_RESET2_32, PSCI_SYSTEM_RESET2_64, PSCI_SYSTEM_SUSPEND_32, PSCI_SYSTEM_SUSPEND_64,
    PSCI_VERSION,
};

/// Fields of a syndrome that say more than its class.
const TELLING: [&str; 3] = ["DFSC", "IFSC", "WnR"];

/// The PSCI calls that kernels make.
const PSCI: [(u32, &str); 15] = [
    (PSCI_VERSION, "PSCI_VERSION"),
    (PSCI_CPU_SUSPEND_32, "CPU_SUSPEND"),
    (PSCI_CPU_SUSPEND_64, "CPU_SUSPEND"),
    (PSCI_CPU_OFF, "CPU_OFF"),
    (PSCI_CPU_ON_32, "CPU_ON"),
    (PSCI_CPU_ON_64, "CPU_ON"),
    (PSCI_AFFINITY_INFO_32, "AFFINITY_INFO"),
    (PSCI_AFFINITY_INFO_64, "AFFINITY_INFO"),
    (PSCI_SYSTEM_OFF, "SYSTEM_OFF"),
    (PSCI_SYSTEM_RESET, "SYSTEM_RESET"),
    (PSCI_SYSTEM_RESET2_32, "SYSTEM_RESET2"),
    (PSCI_SYSTEM_RESET2_64, "SYSTEM_RESET2"),
    (PSCI_FEATURES, "PSCI_FEATURES"),
    (PSCI_SYSTEM_SUSPEND_32, "SYSTEM_SUSPEND"),
    (PSCI_SYSTEM_SUSPEND_64, "SYSTEM_SUSPEND"),
];

/// Says what an `ESR_EL2` is of, or `None` where it is of nothing that the architecture defines.
pub fn exception(esr: u64) -> Option<String> {
    let fields = decode(esr).ok()?;
    let field = |name: &str| fields.iter().find(|field| field.name == name);
    let iss = field("ISS")?;
    if let Some(instruction) = &iss.description {
        return Some(instruction.replace("unknown", &encoding(iss)));
    }
    let told = iss.subfields.iter().filter(|field| TELLING.contains(&field.name));
    let parts = [field("EC")?].into_iter().chain(told);
    Some(parts.filter_map(description).collect::<Vec<_>>().join("; "))
}

/// Names a system register that has no other name by its encoding, as assemblers do.
fn encoding(iss: &FieldInfo) -> String {
    let value = |name| iss.subfields.iter().find(|f| f.name == name).map_or(0, |field| field.value);
    let (op0, op1, op2) = (value("Op0"), value("Op1"), value("Op2"));
    format!("S{op0}_{op1}_C{}_C{}_{op2}", value("CRn"), value("CRm"))
}

/// Names a firmware call, by its function or else by whom it is for.
pub fn firmware_call(id: u64) -> String {
    let psci = PSCI.iter().find(|(known, _)| u64::from(*known) == id);
    match psci {
        Some((_, name)) => (*name).to_owned(),
        None => service(id).unwrap_or_else(|| "no SMCCC call".to_owned()),
    }
}

/// The service of a function id; the upper half of a register is no part of one.
fn service(id: u64) -> Option<String> {
    let fields = decode_smccc(u64::from(u32::try_from(id).ok()?)).ok()?;
    let field = |name: &str| fields.iter().find(|field| field.name == name).and_then(description);
    field("Service Call").or_else(|| field("Service Type"))
}

fn description(field: &FieldInfo) -> Option<String> {
    let text = field.description.as_deref()?.trim_end_matches('.');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fault_says_what_was_tried_and_why_it_failed() {
        let text = exception(0x9200_0047).unwrap();
        assert!(text.starts_with("Data Abort from a lower Exception level; "), "{text}");
        assert!(text.contains("writing") && text.contains("level 3"), "{text}");
    }

    #[test]
    fn a_trapped_register_has_its_name_or_its_encoding() {
        let trap = |crn: u64, crm: u64, op2: u64| {
            exception(0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | crn << 10 | 3 << 5 | crm << 1)
        };
        assert_eq!(trap(1, 0, 1).as_deref(), Some("MSR ACTLR_EL1, x3"));
        assert_eq!(trap(12, 11, 5).as_deref(), Some("MSR S3_0_C12_C11_5, x3"));
    }

    #[test]
    fn firmware_calls_have_the_names_of_their_documents() {
        assert_eq!(firmware_call(0xc400_0003), "CPU_ON");
        assert_eq!(firmware_call(0xc200_0001), "SiP Service Call");
        assert_eq!(firmware_call(u64::MAX), "no SMCCC call");
    }

    proptest! {
        #[test]
        fn every_number_has_words_or_none(number: u64) {
            let _ = exception(number);
            let _ = exception(number & 0x1f_ffff_ffff);
            let _ = firmware_call(number & 0xffff_ffff);
        }
    }
}
