//! The examples of the RFCs on signed tokens, as they are printed: keys are read, signatures hold, and
//! what is not for us is refused.
//!
//! RFC 7515, appendix A; RFC 8037, appendix A; RFC 7520, sections 3 and 4. Of the last, 4.2 (PS384) and
//! 4.3 (ES512) are algorithms that no key of ours can have.

use super::*;

/// The claims of RFC 7515, appendix A.1, as printed: with a line break and a space between members.
const JOE: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
/// A second at which they have not expired.
const JOE_NOW: u64 = 1_300_819_000;

/// A keyring of one key of a set, for the examples, which name no key.
fn ring_of(key: Value) -> Keyring {
    let mut key = key;
    key["kid"] = json!("example");
    let set = KeySet::read(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
    let rules = Rules {
        issuer: Some("joe".into()),
        ..rules()
    };
    Keyring::new(Vec::new(), set, rules).unwrap()
}

/// The example's signature holds, so that only its claims are not for us; and no other signature does.
fn holds(ring: &Keyring, token: &str, claims: &AuthError) {
    assert_eq!(ring.verify(token, JOE_NOW).as_ref(), Err(claims), "{token}");
    let (head, signature) = token.rsplit_once('.').unwrap();
    for at in [0, 1, signature.len() / 2] {
        let other = if &signature[at..=at] == "A" { "B" } else { "A" };
        let changed = format!("{head}.{}{other}{}", &signature[..at], &signature[at + 1..]);
        assert_eq!(
            ring.verify(&changed, JOE_NOW),
            Err(AuthError::BadSignature),
            "{changed}"
        );
    }
    let (header, rest) = token.split_once('.').unwrap();
    let changed = format!("{header}.A{}", &rest[1..]);
    assert_eq!(
        ring.verify(&changed, JOE_NOW),
        Err(AuthError::BadSignature),
        "{changed}"
    );
}

/// RFC 7515, appendix A.1, which is also RFC 7519, section 3.1.
///
/// R: A-2
#[test]
fn the_hs256_example_of_rfc_7515_holds() {
    let ring = ring_of(json!({
        "kty": "oct", "alg": "HS256",
        "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
    }));
    let header = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9";
    let signature = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    holds(
        &ring,
        &format!("{header}.{JOE}.{signature}"),
        &AuthError::WrongAudience,
    );
}

/// RFC 7515, appendix A.2.
///
/// R: A-2
#[test]
fn the_rs256_example_of_rfc_7515_holds() {
    let ring = ring_of(json!({
        "kty": "RSA", "alg": "RS256", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4\
              QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBY\
              UsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmo\
              udF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    }));
    let header = "eyJhbGciOiJSUzI1NiJ9";
    let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5ju\
              jGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe\
              7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8n\
              p6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    holds(
        &ring,
        &format!("{header}.{JOE}.{signature}"),
        &AuthError::WrongAudience,
    );
}

/// RFC 7515, appendix A.3.
///
/// R: A-2
#[test]
fn the_es256_example_of_rfc_7515_holds() {
    let ring = ring_of(json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }));
    let header = "eyJhbGciOiJFUzI1NiJ9";
    let signature =
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    holds(
        &ring,
        &format!("{header}.{JOE}.{signature}"),
        &AuthError::WrongAudience,
    );
}

/// RFC 8037, appendix A.4: its payload is no JSON, so its claims cannot be read.
///
/// R: A-2
#[test]
fn the_ed25519_example_of_rfc_8037_holds() {
    let ring = ring_of(json!({
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }));
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
                 hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let Err(AuthError::BadClaims { why }) = ring.verify(token, JOE_NOW) else {
        panic!(
            "the signature does not hold: {:?}",
            ring.verify(token, JOE_NOW)
        );
    };
    holds(&ring, token, &AuthError::BadClaims { why });
}

/// RFC 7515, appendix A.5 (RFC 7519, section 6.1), and appendix E: what must be refused.
///
/// R: A-2
#[test]
fn the_unsigned_and_the_critical_example_are_refused() {
    let ring = ed_ring();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{JOE}.");
    assert_eq!(ring.verify(&unsigned, JOE_NOW), Err(AuthError::BadHeader));
    let critical = "eyJhbGciOiJub25lIiwNCiAiY3JpdCI6WyJodHRwOi8vZXhhbXBsZS5jb20vVU5ERUZJTkVEIl0sDQogImh0dHA6\
                    Ly9leGFtcGxlLmNvbS9VTkRFRklORUQiOnRydWUNCn0.RkFJTA.";
    assert_eq!(ring.verify(critical, JOE_NOW), Err(AuthError::BadHeader));
}

/// RFC 8037, appendix A.1 and A.2: the same key with its private half does not belong here.
///
/// R: A-2
#[test]
fn the_private_key_of_rfc_8037_is_refused() {
    let key = json!({
        "kty": "OKP", "crv": "Ed25519", "kid": "example", "alg": "EdDSA",
        "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    });
    refused_as_private(&key);
}

/// The payload of RFC 7520, section 4: a sentence, which is no claims.
const FRODO: &str = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aG\
                     Ugcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG\
                     1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4";
const BILBO: &str = "bilbo.baggins@hobbiton.example";

/// RFC 7520, section 3.3, and the private exponent of section 3.4, which is no part of it.
fn bilbos_rsa_key() -> Value {
    json!({
        "kty": "RSA", "kid": BILBO, "use": "sig", "e": "AQAB",
        "n": "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCp\
              MaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E\
              6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BY\
              wdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw",
    })
}

fn set_of(key: &Value) -> Result<KeySet, JwksError> {
    KeySet::read(json!({"keys": [key]}).to_string().as_bytes())
}

fn refused_as_private(key: &Value) {
    let refused = set_of(key).unwrap_err();
    let private = matches!(refused, JwksError::Key(KeyError::Private { .. }));
    assert!(private, "{refused}");
}

/// A keyring of one key of a set, with the id that it has.
fn ring_with(key: &Value) -> Keyring {
    Keyring::new(Vec::new(), set_of(key).unwrap(), rules()).unwrap()
}

/// The example's signature holds; its payload is no claims.
fn signature_holds(ring: &Keyring, token: &str) {
    let outcome = ring.verify(token, JOE_NOW);
    let Err(AuthError::BadClaims { why }) = outcome else {
        panic!("the signature does not hold: {outcome:?}");
    };
    holds(ring, token, &AuthError::BadClaims { why });
}

/// RFC 7520, section 4.1.
///
/// R: A-2
#[test]
fn the_rs256_example_of_rfc_7520_holds() {
    let mut key = bilbos_rsa_key();
    let unnamed = set_of(&key).unwrap_err();
    assert!(
        matches!(unnamed, JwksError::NoAlgorithm { .. }),
        "{unnamed}"
    );
    key["alg"] = json!("RS256");
    let header = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9";
    let signature = "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII\
                     7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt\
                     9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3\
                     F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg";
    signature_holds(&ring_with(&key), &format!("{header}.{FRODO}.{signature}"));
    key["d"] =
        json!("bWUC9B-EFRIo8kpGfh0ZuyGPvMNKvYWNtB_ikiH9k20eT-O1q_I78eiZkpXxXQ0UTEs2LsNRS-8uJbvQ");
    refused_as_private(&key);
}

/// RFC 7520, sections 3.5 and 4.4.
///
/// R: A-2
#[test]
fn the_hs256_example_of_rfc_7520_holds() {
    let key = json!({
        "kty": "oct", "kid": "018c0ae5-4d9b-471b-bfd6-eef314bc7037", "use": "sig", "alg": "HS256",
        "k": "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg",
    });
    let header = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9";
    let signature = "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0";
    signature_holds(&ring_with(&key), &format!("{header}.{FRODO}.{signature}"));
}

/// RFC 7520, sections 4.2 (RSA-PSS) and 4.3 (P-521): good signatures of algorithms that we do not take.
///
/// R: A-2
#[test]
fn the_ps384_and_es512_examples_of_rfc_7520_are_refused() {
    let mut key = bilbos_rsa_key();
    key["alg"] = json!("RS256");
    let header = "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9";
    let signature = "cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5\
                     dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_\
                     ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFA\
                     AjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw";
    let refused = ring_with(&key).verify(&format!("{header}.{FRODO}.{signature}"), JOE_NOW);
    let rs256 = Algorithm::Rs256;
    assert_eq!(refused, Err(AuthError::AlgorithmNotTheKeys { key: rs256 }));
    key["alg"] = json!("PS384");
    let p521 = json!({
        "kty": "EC", "kid": BILBO, "use": "sig", "crv": "P-521", "alg": "ES512",
        "x": "AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt",
        "y": "AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1",
    });
    for key in [key, p521] {
        let set = set_of(&key).unwrap();
        assert_eq!(set.skipped.len(), 1, "passed over: {key}");
        let nothing = Keyring::new(Vec::new(), set, rules()).unwrap_err();
        assert_eq!(nothing, KeyError::None);
    }
}
