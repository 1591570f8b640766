#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pfnguard_targets::launch_tree::run(data));
