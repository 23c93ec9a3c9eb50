#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandyard_fuzz::fuzz_upload(data));
