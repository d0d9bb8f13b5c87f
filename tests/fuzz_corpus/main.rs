//! The fuzzers' corpus and checks without a fuzzer: every committed input is checked, and inputs
//! mutated from it by a seed, so that each test run on the stable toolchain fuzzes a little.
//!
//! `fuzz/run` searches with coverage; what it finds is committed to `fuzz/corpus` and replayed here.
//! `IRIS_CORPUS=write` writes the inputs that the real encoders make, `IRIS_FUZZ_MUTATIONS` is how
//! many are tried for each target (100,000 by default).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/measure.rs"]
mod measure;
mod mutate;
#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

// The targets name these as the fuzzers' package does, which compiles them in.
use iris::{log, placement, shard, store};
use measure::{Counting, is_counting};
use mutate::Dice;
use targets::{TARGETS, Target, target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of all committed inputs together: they are read at every run and cloned by everybody.
const CORPUS_BYTES_MAX: usize = 1024 * 1024;

fn directory(target: &Target) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("fuzz/corpus").join(target.name)
}

/// The committed inputs of a target, by file name.
fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(directory(target)).unwrap();
    let files = files.map(|file| file.unwrap().path());
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect()
}

/// Checks one input; a failure says which.
fn check(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.check)(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {}, {what}: this input fails: {hex}", target.name);
    }
}

#[test]
fn memory_is_counted() {
    assert!(is_counting());
}

/// With `IRIS_CORPUS=write` in the environment it writes the files instead.
#[test]
fn inputs_made_by_the_encoders_are_in_the_corpus_as_they_are_made_now() {
    for target in TARGETS {
        for (name, bytes) in (target.seeds)() {
            let path = directory(target).join(format!("seed-{name}"));
            if std::env::var_os("IRIS_CORPUS").is_some_and(|value| value == "write") {
                std::fs::create_dir_all(directory(target)).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
            let file = std::fs::read(&path);
            assert!(
                file.is_ok_and(|file| file == bytes),
                "{} differs from what is encoded now: IRIS_CORPUS=write writes it anew",
                path.display()
            );
        }
    }
}

#[test]
fn every_directory_of_the_corpus_is_of_a_target_and_all_of_it_is_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for entry in std::fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(target(&name).is_some(), "no target is called {name}");
    }
    let sizes = TARGETS
        .iter()
        .flat_map(|target| corpus(target).into_values());
    let total: usize = sizes.map(|bytes| bytes.len()).sum();
    assert!(total <= CORPUS_BYTES_MAX, "{total} bytes");
}

/// R: A-5, D-2
#[test]
fn every_input_of_the_corpus_passes() {
    for target in TARGETS {
        for (name, input) in corpus(target) {
            check(target, &input, &name);
        }
    }
}

/// R: A-5, D-2
#[test]
fn inputs_mutated_from_the_corpus_pass() {
    let mutations = std::env::var("IRIS_FUZZ_MUTATIONS");
    let mutations: u64 = mutations.map_or(100_000, |text| text.parse().unwrap());
    for target in TARGETS {
        let all = corpus(target);
        let is_named = |name: &str| name.starts_with("seed-") || name.starts_with("find-");
        let named = all.iter().filter(|(name, _)| is_named(name));
        let named: Vec<_> = named.map(|(_, input)| input.clone()).collect();
        let all: Vec<_> = all.into_values().collect();
        for seed in 0..mutations {
            let mut dice = Dice(seed);
            // Those that the encoders made are few, and are whole.
            let corpus = if seed % 2 == 0 { &named } else { &all };
            let mut input = mutate::mutated(corpus, &mut dice);
            let len = (target.mend)(&mut input, dice.next());
            check(target, &input[..len], &format!("seed {seed}"));
        }
    }
}
