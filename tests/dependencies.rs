//! What comes in with dependencies, without asking anybody outside: licences, sources, banned crates,
//! versions that come twice, and advisories that are known here.
//!
//! `deny.toml` says what may come in, here and for `cargo deny`. What this cannot know is what has become
//! known since the list below was written: for that run `cargo deny check advisories` where its database
//! can be fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// The only place where crates come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates of which several versions are built, whom they come with, and no others: a new one is time and
/// bytes, and a question to ask.
const TWICE: [(&str, &str); 16] = [
    ("base64", "hdrhistogram, jsonwebtoken and pem 3; pem 4"),
    ("bit-vec", "proptest; one more is only locked"),
    ("fastrand", "glommio, by futures-lite 1"),
    ("foldhash", "prost-build, by hashbrown 0.15"),
    ("futures-lite", "glommio"),
    ("getrandom", "glommio, by ahash"),
    ("hashbrown", "prost-build, by petgraph"),
    ("itertools", "prost-build"),
    ("nom", "hdrhistogram; one more is only locked"),
    ("pem", "jsonwebtoken, rcgen"),
    ("rand_core", "one is only locked"),
    ("signal-hook", "glommio"),
    ("socket2", "glommio"),
    ("syn", "derives of others"),
    ("untrusted", "aws-lc-rs, rustls-webpki"),
    ("windows-sys", "not built here"),
];

/// Advisories of RustSec about crates of this tree, and the first version without the fault.
const ADVISORIES: [(&str, &str, [u64; 3]); 24] = [
    ("RUSTSEC-2020-0002", "prost", [0, 6, 1]),
    ("RUSTSEC-2020-0070", "lock_api", [0, 4, 2]),
    ("RUSTSEC-2020-0071", "time", [0, 2, 23]),
    ("RUSTSEC-2020-0079", "socket2", [0, 3, 16]),
    ("RUSTSEC-2021-0003", "smallvec", [1, 6, 1]),
    ("RUSTSEC-2021-0078", "hyper", [0, 14, 10]),
    ("RUSTSEC-2021-0079", "hyper", [0, 14, 10]),
    ("RUSTSEC-2021-0119", "nix", [0, 23, 0]),
    ("RUSTSEC-2021-0124", "tokio", [1, 13, 1]),
    ("RUSTSEC-2022-0006", "thread_local", [1, 1, 4]),
    ("RUSTSEC-2022-0013", "regex", [1, 5, 5]),
    ("RUSTSEC-2022-0041", "crossbeam-utils", [0, 8, 7]),
    ("RUSTSEC-2023-0045", "memoffset", [0, 6, 2]),
    ("RUSTSEC-2023-0053", "rustls-webpki", [0, 101, 4]),
    ("RUSTSEC-2024-0336", "rustls", [0, 23, 5]),
    ("RUSTSEC-2024-0399", "rustls", [0, 23, 18]),
    ("RUSTSEC-2025-0009", "ring", [0, 17, 12]),
    ("RUSTSEC-2025-0023", "tokio", [1, 44, 2]),
    ("RUSTSEC-2025-0024", "crossbeam-channel", [0, 5, 15]),
    ("RUSTSEC-2025-0047", "slab", [0, 4, 11]),
    ("RUSTSEC-2025-0055", "tracing-subscriber", [0, 3, 20]),
    ("RUSTSEC-2026-0007", "bytes", [1, 11, 1]),
    ("RUSTSEC-2026-0204", "crossbeam-epoch", [0, 9, 20]),
    ("RUSTSEC-2026-0285", "rustls", [0, 23, 45]),
];

/// Crates that nobody maintains any more, and why they are here all the same.
const UNMAINTAINED: [(&str, &str, &str); 1] = [(
    "RUSTSEC-2024-0384",
    "instant",
    "glommio, by fastrand 1: a clock for browsers, which on Linux is std's",
)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn toml_of(name: &str) -> toml::Value {
    let text = std::fs::read_to_string(root().join(name)).unwrap();
    toml::from_str(&text).unwrap()
}

fn texts(value: &toml::Value) -> BTreeSet<String> {
    let items = value.as_array().unwrap().iter();
    items
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

/// A package as the lock file has it: name, version, where from, checksum.
fn locked() -> Vec<(String, String, Option<String>, Option<String>)> {
    let lock = toml_of("Cargo.lock");
    let text = |package: &toml::Value, key| {
        let value = package.get(key).map(|value| value.as_str().unwrap());
        value.map(str::to_owned)
    };
    let packages = lock["package"].as_array().unwrap().iter();
    let packages = packages.map(|package| {
        (
            text(package, "name").unwrap(),
            text(package, "version").unwrap(),
            text(package, "source"),
            text(package, "checksum"),
        )
    });
    packages.collect()
}

/// Everything that is built here, as cargo knows it without the network.
fn built() -> Vec<serde_json::Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version=1"])
        .args(["--filter-platform", &platform])
        .current_dir(root())
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {why}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether a licence expression (SPDX, or the older `A/B`) can be met with `allowed` alone. `AND` binds
/// closer than `OR`.
fn may_be_used(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words: Vec<String> = Vec::new();
    for word in spaced.split_whitespace() {
        match words.last_mut() {
            // An exception belongs to its licence.
            Some(last) if word == "WITH" || last.ends_with(" WITH") => {
                *last = format!("{last} {word}");
            }
            _ => words.push(word.trim_end_matches('+').to_owned()),
        }
    }
    let mut rest = words.as_slice();
    let result = either(&mut rest, allowed);
    assert!(
        rest.is_empty(),
        "this is no licence expression: {expression}"
    );
    result
}

fn either(rest: &mut &[String], allowed: &BTreeSet<String>) -> bool {
    let mut result = both(rest, allowed);
    while rest.first().is_some_and(|word| word == "OR") {
        *rest = &rest[1..];
        result |= both(rest, allowed);
    }
    result
}

fn both(rest: &mut &[String], allowed: &BTreeSet<String>) -> bool {
    let mut result = one(rest, allowed);
    while rest.first().is_some_and(|word| word == "AND") {
        *rest = &rest[1..];
        result &= one(rest, allowed);
    }
    result
}

fn one(rest: &mut &[String], allowed: &BTreeSet<String>) -> bool {
    let (word, after) = rest.split_first().expect("a licence is due");
    *rest = after;
    if word != "(" {
        return allowed.contains(word);
    }
    let result = either(rest, allowed);
    let (closing, after) = rest.split_first().expect("a `)` is due");
    assert_eq!(closing, ")");
    *rest = after;
    result
}

#[test]
fn every_licence_is_one_that_may_come_in() {
    let allowed = texts(&toml_of("deny.toml")["licenses"]["allow"]);
    let packages = built();
    assert!(packages.len() > 100, "cargo metadata said hardly anything");
    let refused = packages.iter().filter(|package| {
        let licence = package["license"].as_str().unwrap_or_default();
        let is_ours = package["source"].is_null();
        !is_ours && (licence.is_empty() || !may_be_used(licence, &allowed))
    });
    let refused: Vec<_> = refused.map(|it| (&it["name"], &it["license"])).collect();
    assert!(
        refused.is_empty(),
        "look at them, and at deny.toml: {refused:?}"
    );
}

#[test]
fn every_crate_comes_from_the_registry_with_a_checksum() {
    for (name, version, source, checksum) in locked() {
        if ["iris", "iris-proto"].contains(&name.as_str()) {
            assert_eq!(source, None, "{name}");
            continue;
        }
        assert_eq!(source.as_deref(), Some(CRATES_IO), "{name} {version}");
        assert_eq!(checksum.map(|sum| sum.len()), Some(64), "{name} {version}");
    }
}

#[test]
fn no_banned_crate_is_there() {
    let deny = toml_of("deny.toml");
    let banned = deny["bans"]["deny"].as_array().unwrap().iter();
    let banned: Vec<&str> = banned.map(|one| one["crate"].as_str().unwrap()).collect();
    assert!(!banned.is_empty());
    for (name, ..) in locked() {
        assert!(
            !banned.contains(&name.as_str()),
            "{name} is banned by deny.toml"
        );
    }
}

#[test]
fn no_crate_comes_twice_but_those_that_are_known_to() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, version, ..) in locked() {
        versions.entry(name).or_default().push(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let found: BTreeSet<&str> = versions.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, known, "change TWICE if this is meant: {versions:?}");
    let thrice = versions.iter().find(|(_, versions)| versions.len() > 2);
    assert_eq!(thrice, None, "two are enough");
}

fn number(version: &str) -> [u64; 3] {
    let plain = version.split(['-', '+']).next().unwrap();
    let mut parts = plain.split('.').map(|part| part.parse().unwrap());
    [(); 3].map(|()| parts.next().unwrap())
}

#[test]
fn no_version_has_a_fault_that_is_known_here() {
    let locked = locked();
    for (id, name, fixed) in ADVISORIES {
        let mut all = locked.iter().filter(|(other, ..)| other == name).peekable();
        assert!(
            all.peek().is_some(),
            "{id}: {name} has left, and its row may"
        );
        for (_, version, ..) in all {
            assert!(
                number(version) >= fixed,
                "{id}: {name} {version}, fixed in {fixed:?}"
            );
        }
    }
    for (id, name, why) in UNMAINTAINED {
        let is_there = locked.iter().any(|(other, ..)| other == name);
        assert!(is_there, "{id}: {name} has left ({why}), and its row may");
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed =
        BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(String::from));
    for expression in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "MIT AND ISC",
        "MIT AND (GPL-3.0 OR ISC)",
        "GPL-3.0 AND X OR ISC",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(may_be_used(expression, &allowed), "{expression}");
    }
    for expression in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR GPL-3.0) AND X",
        "Apache-2.0",
        "MIT WITH something",
    ] {
        assert!(!may_be_used(expression, &allowed), "{expression}");
    }
}
