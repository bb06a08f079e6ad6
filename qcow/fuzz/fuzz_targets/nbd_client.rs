#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::network::nbd_client(data));
