#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| loam_fuzz_cases::policy_resource(data));
