#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| loam_fuzz_cases::xds_response(data));
