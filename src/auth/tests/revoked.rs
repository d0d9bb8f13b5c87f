//! Revocations as values: what they hit, when they leave, and their text.

use super::*;

fn user(name: &str, before_s: u64) -> Revoke {
    let user = UserId::new(name).unwrap();
    Revoke::User { user, before_s }
}

fn by_id(jti: &str) -> Revoke {
    let jti = jti.to_owned();
    Revoke::Token { jti }
}

fn list(revokes: &[Revoke]) -> Revocations {
    let empty = Revocations::default();
    let all = revokes.iter();
    all.fold(empty, |list, revoke| list.with(revoke, NOW).unwrap())
}

/// R: A-3
#[test]
fn a_user_is_hit_up_to_the_instant_and_the_leeway_and_without_iat_always() {
    let list = list(&[user("alice", NOW)]);
    for issued_s in [0, NOW - HOUR, NOW - 1] {
        assert!(list.hits("alice", issued_s, None, 0), "{issued_s}");
    }
    assert!(!list.hits("alice", NOW, None, 0));
    assert!(
        list.hits("alice", NOW + 9, None, 10),
        "its issuer's clock may be ahead"
    );
    assert!(!list.hits("alice", NOW + 10, None, 10));
    assert!(!list.hits("bob", 0, Some("alice"), 10));
    assert_eq!(list.wait_ms("alice", 10, NOW), 10_000);
    assert_eq!(list.wait_ms("alice", 10, NOW + 10), 0);
    assert_eq!(list.wait_ms("bob", 10, NOW), 0);
}

/// R: A-3
#[test]
fn a_token_is_hit_by_its_id_whoever_it_is_of() {
    let list = list(&[by_id("one"), by_id("two")]);
    assert!(list.hits("alice", NOW, Some("one"), 0));
    assert!(list.hits("bob", NOW, Some("two"), 0));
    assert!(!list.hits("alice", NOW, Some("three"), 0));
    assert!(!list.hits("one", 0, None, 0));
}

/// R: A-3
#[test]
fn an_earlier_instant_does_not_weaken_a_later_one() {
    let list = list(&[user("alice", NOW), user("alice", NOW - HOUR)]);
    assert!(list.hits("alice", NOW - 1, None, 0));
    assert_eq!(list.len(), 1);
}

/// Every token that a keyring takes while its entry is gone was issued after the instant.
///
/// R: A-3
#[test]
fn an_entry_is_kept_as_long_as_a_token_that_it_hits_can_be_valid() {
    let rules = Rules {
        leeway_s: LEEWAY_S_MAX,
        ..rules()
    };
    let ring = Keyring::from_keys(vec![ed_key()], rules).unwrap();
    // The last token that the entry hits, issued for as long as can be.
    let issued_s = NOW + LEEWAY_S_MAX - 1;
    let exp = issued_s + TOKEN_LIFE_S_MAX + LEEWAY_S_MAX;
    let longest = token(&with(json!({"iat": issued_s, "exp": exp})));
    let last_s = exp + LEEWAY_S_MAX - 1;
    assert!(
        ring.verify(&longest, last_s).is_ok(),
        "valid to its last second"
    );
    let longer = token(&with(json!({"iat": issued_s, "exp": exp + 1})));
    let too_long = Err(AuthError::LivesTooLong {
        ahead_s: TOKEN_LIFE_S_MAX + LEEWAY_S_MAX + 1,
    });
    assert_eq!(
        ring.verify(&longer, last_s),
        too_long,
        "also in its last hours"
    );
    let mut list = list(&[user("alice", NOW), by_id("one")]);
    list.expire(last_s);
    assert!(list.hits("alice", issued_s, None, LEEWAY_S_MAX));
    assert!(list.hits("alice", NOW + HOUR, Some("one"), LEEWAY_S_MAX));
    list.expire(NOW + REVOCATION_KEPT_S + 1);
    assert!(list.is_empty(), "{list:?}");
}

/// R: A-3
#[test]
fn at_the_bound_further_revocations_are_refused_until_one_leaves() {
    let all: Vec<_> = (0..REVOCATIONS_MAX)
        .map(|n| by_id(&n.to_string()))
        .collect();
    let mut full = Revocations::default();
    for revoke in &all {
        // Not by `with`, which would copy the list ten thousand times.
        let Revoke::Token { jti } = revoke else {
            unreachable!()
        };
        let one = Revocations::default().with(&by_id(jti), NOW).unwrap();
        full.tokens.extend(one.tokens);
    }
    let frees_in_s = REVOCATION_KEPT_S + 1;
    let refused = full.with(&user("alice", NOW), NOW);
    assert_eq!(refused, Err(RevokeError::TooMany { frees_in_s }));
    assert!(
        full.with(&by_id("7"), NOW).is_ok(),
        "that one is held already"
    );
    let later = full.with(&user("alice", NOW), NOW + frees_in_s).unwrap();
    assert_eq!(later.len(), 1);
    assert_eq!(Revocations::decode(full.encode().as_bytes()), Ok(full));
}

#[test]
fn what_could_hit_nothing_or_everything_is_refused() {
    let empty = Revocations::default();
    let ahead_s = REVOKE_AHEAD_S_MAX + 1;
    let refused = empty.with(&user("alice", NOW + ahead_s), NOW);
    assert_eq!(refused, Err(RevokeError::TooFarAhead { ahead_s }));
    for jti in [String::new(), "x".repeat(TOKEN_ID_BYTES_MAX + 1)] {
        assert_eq!(empty.with(&by_id(&jti), NOW), Err(RevokeError::BadTokenId));
    }
}

/// R: A-3
#[test]
fn the_text_reads_back_and_no_changed_or_missing_byte_goes_unnoticed() {
    let list = list(&[
        user("alice", NOW),
        user("bob", 7),
        by_id("a\"\n\u{e9}"),
        by_id("two"),
    ]);
    let text = list.encode().into_bytes();
    assert_eq!(Revocations::decode(&text), Ok(list));
    for at in 0..text.len() {
        assert!(Revocations::decode(&text[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut changed = text.clone();
            changed[at] ^= 1 << bit;
            assert!(
                Revocations::decode(&changed).is_err(),
                "byte {at}, bit {bit}"
            );
        }
    }
    let empty = Revocations::default();
    assert_eq!(Revocations::decode(empty.encode().as_bytes()), Ok(empty));
    assert_eq!(Revocations::decode(b""), Err(ListFault::NotAList));
}
