//! Device trees: a derived manifest grants nothing that the grants do not, and is accepted.

use pfnguard_tools::manifest::derive_from_dtb;

use crate::manifest_bytes;

/// Bytes are a flattened device tree; nothing is granted beside it.
///
/// # Panics
/// Where a derived manifest is refused.
pub fn run(data: &[u8]) {
    if let Ok(binary) = derive_from_dtb(data, "none", "") {
        manifest_bytes::judge(&binary);
    }
}
