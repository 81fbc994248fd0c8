#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| loam_fuzz_cases::keeper_to_ztunnel(data));
