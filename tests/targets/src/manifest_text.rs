//! Manifests as text: what compiles is accepted by the hypervisor, and survives being shown.

use pfnguard_tools::manifest::compile;

use crate::manifest_bytes;

/// Bytes are a text where they are UTF-8.
///
/// # Panics
/// Where a compiled text is refused, or compiles to something else the second time.
pub fn run(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    match compile("fuzz.toml", text) {
        Ok(binary) => {
            manifest_bytes::judge(&binary);
            let again = compile("fuzz.toml", text).expect("it compiled before");
            assert_eq!(binary, again, "compiling is not repeatable");
        }
        // The report is what people read: it must come out, whatever the text.
        Err(refusal) => assert!(!format!("{refusal:?}").is_empty()),
    }
}

/// Returns whether a text compiles.
pub fn compiles(text: &str) -> bool {
    compile("fuzz.toml", text).is_ok()
}
