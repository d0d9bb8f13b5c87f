//! Records, chains, repetitions, and what a verification finds.

use super::repeats::{
    INTERVAL_MS, LISTED_DEVICES_MAX, LISTED_REFUSALS_MAX, LISTED_SESSIONS_MAX, MANY, Repeats,
};
use super::verify::{Tail, Verdict, Verifier};
use super::*;

const NOW: u64 = 1_700_000_000_000;

fn begin(chain: &Chain) -> Event {
    let prev = hex(&chain.hash);
    Event::Begin {
        prev,
        after_damage: false,
    }
}

fn login(user: &str) -> Event {
    Event::Login {
        user: user.to_owned(),
        device: "phone".to_owned(),
        address: "192.0.2.7".to_owned(),
        expires_s: 7,
        jti: Some("a\"\n\u{e9}".to_owned()),
    }
}

fn refused(reason: &'static str, address: &str) -> Event {
    Event::Refused {
        reason,
        address: address.to_owned(),
        user: None,
    }
}

/// Files of so many records each, and the chain's end.
fn files(counts: &[u64]) -> (Vec<Vec<u8>>, Chain) {
    let mut chain = Chain::EMPTY;
    let files = counts.iter().map(|&count| {
        let mut file = Vec::new();
        let event = begin(&chain);
        chain.append(NOW, &event, &mut file);
        for number in 1..count {
            chain.append(NOW + number, &login("ann"), &mut file);
        }
        file
    });
    (files.collect(), chain)
}

fn verify(files: &[Vec<u8>], ends: &[(&str, Chain)]) -> Verdict {
    let mut verifier = Verifier::default();
    for (number, file) in files.iter().enumerate() {
        verifier.file(&format!("file {number}"), file);
    }
    verifier.finish(ends)
}

/// R: A-10
#[test]
fn what_was_written_is_sound_over_all_files() {
    let (files, chain) = files(&[3, 1, 4]);
    let verdict = verify(&files, &[("HEAD", chain)]);
    assert!(verdict.is_sound(), "{verdict:?}");
    assert_eq!((verdict.records, verdict.first), (8, Some(1)));
    assert_eq!(verdict.last, Some(chain));
    assert_eq!(verdict.notes, [""; 0]);
    let line = String::from_utf8(files[0].clone()).unwrap();
    let first: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!((&first["n"], &first["event"]), (&1.into(), &"begin".into()));
}

/// R: A-10
#[test]
fn no_byte_of_any_record_changes_unnoticed() {
    let (files, chain) = files(&[2, 3]);
    for file in 0..files.len() {
        for at in 0..files[file].len() {
            for bit in 0..8 {
                let mut changed = files.clone();
                changed[file][at] ^= 1 << bit;
                let verdict = verify(&changed, &[("HEAD", chain)]);
                assert!(!verdict.is_sound(), "file {file}, byte {at}, bit {bit}");
            }
        }
    }
}

/// R: A-10
#[test]
fn records_that_are_removed_doubled_moved_or_added_are_found() {
    let (files, chain) = files(&[5, 3]);
    let lines: Vec<&[u8]> = files[0].split_inclusive(|&byte| byte == b'\n').collect();
    let with = |lines: Vec<&[u8]>| vec![lines.concat(), files[1].clone()];
    let mut forged = Chain { last: 2, ..chain };
    let mut added = Vec::new();
    forged.append(NOW, &login("eve"), &mut added);
    let cases = [
        ("removed", with([&lines[..2], &lines[3..]].concat())),
        ("its last removed", with(lines[..4].to_vec())),
        ("its first removed", with(lines[1..].to_vec())),
        ("doubled", with([&lines[..3], &lines[2..]].concat())),
        (
            "moved",
            with(vec![lines[0], lines[2], lines[1], lines[3], lines[4]]),
        ),
        (
            "added",
            with([&lines[..2], &[&added[..]], &lines[2..]].concat()),
        ),
        ("file removed", vec![files[1].clone()]),
        ("file emptied", vec![Vec::new(), files[1].clone()]),
        ("files exchanged", vec![files[1].clone(), files[0].clone()]),
    ];
    for (what, changed) in cases {
        let verdict = verify(&changed, &[("HEAD", chain)]);
        assert!(!verdict.is_sound(), "{what}");
    }
}

/// Whoever writes one record anew, with the hash that belongs to it, must write all behind it anew.
///
/// R: A-10
#[test]
fn a_record_written_anew_breaks_the_next_one() {
    let mut chain = Chain::EMPTY;
    let mut lines = Vec::new();
    let event = begin(&chain);
    chain.append(NOW, &event, &mut lines);
    let (mut forged, mut other) = (chain, lines.clone());
    chain.append(NOW, &login("ann"), &mut lines);
    forged.append(NOW, &login("eve"), &mut other);
    assert!(
        verify(&[other.clone()], &[]).is_sound(),
        "so far it is whole"
    );
    let mut next = Vec::new();
    chain.append(NOW, &login("ben"), &mut next);
    lines.extend_from_slice(&next);
    other.extend_from_slice(&next);
    assert!(verify(&[lines], &[]).is_sound());
    let verdict = verify(&[other], &[]);
    assert!(verdict.findings[0].contains("line 3"), "{verdict:?}");
}

/// A chain alone cannot show that its end is missing; somebody who remembers it can.
///
/// R: A-10
#[test]
fn a_missing_end_is_found_by_who_remembers_it_wherever_it_was_cut() {
    let (files, chain) = files(&[4]);
    let file = &files[0];
    for at in 0..file.len() {
        let cut = vec![file[..at].to_vec()];
        assert!(!verify(&cut, &[("HEAD", chain)]).is_sound(), "cut at {at}");
        let is_between = at > 0 && file[at - 1] == b'\n';
        let verdict = verify(&cut, &[]);
        if is_between {
            assert!(
                verdict.is_sound() && verdict.notes.is_empty(),
                "cut at {at}: {verdict:?}"
            );
        } else {
            let noted = !verdict.notes.is_empty() || !verdict.is_sound();
            assert!(noted, "cut at {at}: {verdict:?}");
        }
    }
    let other = Chain {
        hash: [7; 32],
        ..chain
    };
    assert!(
        !verify(&files, &[("you", other)]).is_sound(),
        "another record"
    );
}

/// R: A-10
#[test]
fn a_torn_record_is_told_from_damage() {
    let (files, _) = files(&[3]);
    let torn = [&files[0][..], b"{\"n\":4,\"ti"].concat();
    let mut verifier = Verifier::default();
    let good = files[0].len() as u64;
    assert_eq!(verifier.file("one", &torn), Tail::Torn { good, bytes: 10 });
    assert_eq!(verifier.chain().unwrap().last, 3);
    let mut damaged = torn.clone();
    damaged[40] ^= 1;
    assert_eq!(Verifier::default().file("one", &damaged), Tail::Damaged);
    let followed = verify(&[torn, files[0].clone()], &[]);
    assert!(!followed.is_sound(), "nothing comes behind a torn record");
}

/// R: A-10
#[test]
fn a_beginning_that_is_missing_is_in_order_only_if_the_log_says_so() {
    let (files, mut chain) = files(&[3, 3]);
    let rest = &files[1..];
    assert!(!verify(rest, &[]).is_sound());
    let mut file = files[1].clone();
    let removed = Event::Removed { first: 1, last: 3 };
    chain.append(NOW, &removed, &mut file);
    let verdict = verify(&[file], &[]);
    assert!(verdict.is_sound(), "{verdict:?}");
    assert!(verdict.notes[0].contains("1 to 3"), "{verdict:?}");
}

/// R: A-10
#[test]
fn the_same_refusal_is_listed_once_a_minute_and_counted() {
    let mut repeats = Repeats::default();
    assert!(
        repeats
            .take(NOW, refused("bad_token", "192.0.2.7"))
            .is_some()
    );
    for _ in 0..1_000 {
        assert_eq!(
            repeats.take(NOW + 5, refused("bad_token", "192.0.2.7")),
            None
        );
    }
    assert!(
        repeats
            .take(NOW, refused("hello_timeout", "192.0.2.7"))
            .is_some()
    );
    assert_eq!(repeats.due(NOW + INTERVAL_MS - 1, false), []);
    let due = repeats.due(NOW + INTERVAL_MS, false);
    let [
        Event::Repeated {
            what: "refused",
            count: 1_000,
            since_ms: NOW,
            ..
        },
    ] = due[..]
    else {
        panic!("{due:?}")
    };
    assert!(
        repeats
            .take(NOW, refused("bad_token", "192.0.2.7"))
            .is_some(),
        "a new minute"
    );
    assert_eq!(repeats.due(NOW, true), [], "once is no repetition");
}

/// R: A-10
#[test]
fn strangers_of_many_addresses_and_users_who_come_and_go_are_counted_in_the_end() {
    let mut repeats = Repeats::default();
    let mut listed = 0;
    for number in 0..10_000 {
        let event = refused(
            "bad_token",
            &format!("10.0.{}.{}", number / 256, number % 256),
        );
        listed += usize::from(repeats.take(NOW, event).is_some());
        assert!(repeats.take(NOW, login("ann")).is_some() == (number == 0));
    }
    assert_eq!(listed, LISTED_REFUSALS_MAX);
    for number in 1..LISTED_SESSIONS_MAX + 5 {
        let is_listed = repeats.take(NOW, login(&format!("u{number}"))).is_some();
        assert_eq!(is_listed, number < LISTED_SESSIONS_MAX);
    }
    let start = Event::Stop;
    assert_eq!(
        repeats.take(NOW, start.clone()),
        Some(start),
        "others are always listed"
    );
    let due = repeats.due(NOW, true);
    let counts = due.iter().map(|event| match event {
        Event::Unlisted { what, count, .. } | Event::Repeated { what, count, .. } => {
            (*what, *count)
        }
        other => panic!("{other:?}"),
    });
    let rest = 10_000 - LISTED_REFUSALS_MAX as u64;
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [("login", 9_999), ("login", 5), ("refused", rest)]
    );
}

/// R: A-10
#[test]
fn a_user_of_many_devices_fills_nothing() {
    let mut repeats = Repeats::default();
    let mut listed = 0;
    for number in 0..1_000 {
        let event = Event::Ended {
            user: "ann".to_owned(),
            device: format!("d{number}"),
        };
        listed += u64::from(repeats.take(NOW, event).is_some());
    }
    assert_eq!(listed, u64::from(LISTED_DEVICES_MAX));
    let due = repeats.due(NOW, true);
    let [
        Event::Repeated {
            what: "ended",
            user: Some(user),
            device: Some(device),
            count,
            ..
        },
    ] = &due[..]
    else {
        panic!("{due:?}")
    };
    assert_eq!(
        (&user[..], &device[..], *count),
        ("ann", MANY, 1_000 - listed)
    );
}

#[test]
fn the_longest_event_fits() {
    let mut out = Vec::new();
    let outcome = short(&"\u{1}".repeat(10_000));
    assert_eq!(outcome.len(), TEXT_BYTES_MAX);
    let event = Event::Revoke {
        user: Some("u".repeat(64)),
        before_s: Some(u64::MAX),
        jti: Some("\u{1}".repeat(64)),
        outcome,
    };
    Chain::EMPTY.clone().append(u64::MAX, &event, &mut out);
    assert!(out.len() <= RECORD_BYTES_MAX);
    assert_eq!(short("h\u{e9}"), "h\u{e9}");
    assert_eq!(unhex(&hex(&[0x9c; 32])), Some([0x9c; 32]));
}
