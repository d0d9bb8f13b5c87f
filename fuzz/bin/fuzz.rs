//! libFuzzer's door to one target, which `IRIS_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use iris_fuzz::measure::{Counting, is_counting};
use iris_fuzz::targets::{Target, target};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        assert!(is_counting());
        let name = std::env::var("IRIS_FUZZ_TARGET").expect("IRIS_FUZZ_TARGET names a target");
        target(&name).unwrap_or_else(|| panic!("there is no target {name}"))
    })
}

fuzz_target!(|data: &[u8]| (chosen().check)(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    (chosen().mend)(&mut data[..size], u64::from(seed))
});
