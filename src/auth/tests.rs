//! Every way into the switch, and every refusal.

mod attacks;
mod examples;
mod key_sets;
mod revoked;

use std::sync::LazyLock;

use iris_proto::limits::TOKEN_BYTES_MAX;
use jsonwebtoken::EncodingKey;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3_600;

/// A key pair of each kind, made once: RSA takes a while.
struct Pairs {
    ed: rcgen::KeyPair,
    other_ed: rcgen::KeyPair,
    ec: rcgen::KeyPair,
    rsa: rcgen::KeyPair,
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(|| Pairs {
    ed: rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    other_ed: rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    ec: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
    rsa: rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap(),
});

const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";

fn rules() -> Rules {
    Rules {
        issuer: Some("home".into()),
        audience: "iris".into(),
        leeway_s: 10,
    }
}

fn key(kid: &str, algorithm: Algorithm, material: impl Into<Vec<u8>>) -> Key {
    Key {
        kid: kid.into(),
        algorithm,
        material: material.into().into(),
    }
}

fn ed_key() -> Key {
    key("ed", Algorithm::EdDsa, PAIRS.ed.public_key_pem())
}

fn ed_ring() -> Keyring {
    Keyring::from_keys(vec![ed_key()], rules()).unwrap()
}

fn full_ring() -> Keyring {
    let keys = vec![
        key("hs", Algorithm::Hs256, SECRET),
        ed_key(),
        key("ec", Algorithm::Es256, PAIRS.ec.public_key_pem()),
        key("rsa", Algorithm::Rs256, PAIRS.rsa.public_key_pem()),
    ];
    Keyring::from_keys(keys, rules()).unwrap()
}

fn good() -> Value {
    json!({"sub": "alice", "iss": "home", "aud": "iris", "exp": NOW + HOUR, "iat": NOW})
}

fn with(changes: Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims
}

/// base64url of `bytes`, by way of the library's own encoder.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = [
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..=chunk.len() {
            let index = bits >> (18 - 6 * place) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

/// A token with exactly this header and payload, signed with `key` by `algorithm`.
fn sign(header: &str, payload: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!(
        "{}.{}",
        base64(header.as_bytes()),
        base64(payload.as_bytes())
    );
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm.jwt()).unwrap();
    format!("{message}.{signature}")
}

fn ed_signing(pair: &rcgen::KeyPair) -> EncodingKey {
    EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap()
}

/// A token with these claims, signed by the right key.
fn token(claims: &Value) -> String {
    let header = r#"{"alg":"EdDSA","kid":"ed"}"#;
    sign(
        header,
        &claims.to_string(),
        &ed_signing(&PAIRS.ed),
        Algorithm::EdDsa,
    )
}

fn verdict(claims: &Value) -> Result<Claims, AuthError> {
    ed_ring().verify(&token(claims), NOW)
}

/// R: A-2
#[test]
fn a_token_of_each_algorithm_opens_a_session() {
    let ring = full_ring();
    let signing = [
        SigningKey::read("hs", SECRET).unwrap(),
        SigningKey::read("ed", PAIRS.ed.serialize_pem().as_bytes()).unwrap(),
        SigningKey::read("ec", PAIRS.ec.serialize_pem().as_bytes()).unwrap(),
        SigningKey::read("rsa", PAIRS.rsa.serialize_pem().as_bytes()).unwrap(),
    ];
    let user = UserId::new("alice").unwrap();
    let device = DeviceId::new("phone").unwrap();
    for (key, algorithm) in signing.iter().zip(Algorithm::ALL) {
        assert_eq!(key.algorithm(), algorithm);
        let request = MintRequest {
            user: &user,
            device: Some(&device),
            ttl_s: HOUR,
            now_s: NOW,
            issuer: Some("home"),
            audience: "iris",
            jti: Some("t-1"),
        };
        let claims = ring.verify(&mint(key, &request).unwrap(), NOW).unwrap();
        assert_eq!(claims.user, user);
        assert_eq!(claims.device.as_ref(), Some(&device));
        assert_eq!(claims.expires_s, NOW + HOUR + 10);
        assert_eq!(claims.issued_s, NOW);
        assert_eq!(claims.jti.as_deref(), Some("t-1"));
    }
}

/// R: A-2
#[test]
fn another_key_under_the_same_kid_is_a_bad_signature() {
    let header = r#"{"alg":"EdDSA","kid":"ed"}"#;
    let forged = sign(
        header,
        &good().to_string(),
        &ed_signing(&PAIRS.other_ed),
        Algorithm::EdDsa,
    );
    assert_eq!(ed_ring().verify(&forged, NOW), Err(AuthError::BadSignature));
}

/// R: A-2
#[test]
fn a_changed_payload_is_a_bad_signature() {
    let token = token(&good());
    let mut parts: Vec<&str> = token.split('.').collect();
    let changed = base64(with(json!({"sub": "mallory"})).to_string().as_bytes());
    parts[1] = &changed;
    assert_eq!(
        ed_ring().verify(&parts.join("."), NOW),
        Err(AuthError::BadSignature)
    );
}

/// R: A-2
#[test]
fn an_unknown_kid_is_refused_even_with_one_key() {
    let header = r#"{"alg":"EdDSA","kid":"gone"}"#;
    let token = sign(
        header,
        &good().to_string(),
        &ed_signing(&PAIRS.ed),
        Algorithm::EdDsa,
    );
    assert_eq!(ed_ring().verify(&token, NOW), Err(AuthError::UnknownKid));
    assert_eq!(full_ring().verify(&token, NOW), Err(AuthError::UnknownKid));
}

/// R: A-2
#[test]
fn the_kid_may_be_left_out_only_where_there_is_one_key() {
    let header = r#"{"alg":"EdDSA"}"#;
    let token = sign(
        header,
        &good().to_string(),
        &ed_signing(&PAIRS.ed),
        Algorithm::EdDsa,
    );
    assert!(ed_ring().verify(&token, NOW).is_ok());
    assert_eq!(full_ring().verify(&token, NOW), Err(AuthError::KidMissing));
}

/// R: A-2
#[test]
fn alg_none_is_refused() {
    for alg in ["none", "None", "NONE", "", "HS257"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"ed"}}"#);
        let payload = base64(good().to_string().as_bytes());
        let token = format!("{}.{payload}.", base64(header.as_bytes()));
        assert_eq!(
            ed_ring().verify(&token, NOW),
            Err(AuthError::BadHeader),
            "{alg}"
        );
    }
}

/// R: A-2
#[test]
fn an_unsigned_token_that_claims_the_keys_algorithm_is_refused() {
    let header = base64(br#"{"alg":"EdDSA","kid":"ed"}"#);
    let token = format!("{header}.{}.", base64(good().to_string().as_bytes()));
    assert_eq!(ed_ring().verify(&token, NOW), Err(AuthError::BadSignature));
}

/// The classic confusion: the public key, which everyone has, used as an HMAC secret.
///
/// R: A-2
#[test]
fn the_public_key_is_not_a_secret() {
    let pem = PAIRS.ed.public_key_pem();
    for secret in [pem.as_bytes(), PAIRS.ed.public_key_raw()] {
        let header = r#"{"alg":"HS256","kid":"ed"}"#;
        let hmac = EncodingKey::from_secret(secret);
        let token = sign(header, &good().to_string(), &hmac, Algorithm::Hs256);
        let refused = AuthError::AlgorithmNotTheKeys {
            key: Algorithm::EdDsa,
        };
        assert_eq!(ed_ring().verify(&token, NOW), Err(refused.clone()));
        assert_eq!(full_ring().verify(&token, NOW), Err(refused));
    }
}

/// R: A-2
#[test]
fn an_algorithm_that_is_not_the_keys_is_refused_though_the_signature_holds() {
    for alg in ["HS256", "ES256", "RS256", "RS512", "PS256", "HS512"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"ed"}}"#);
        let token = sign(
            &header,
            &good().to_string(),
            &ed_signing(&PAIRS.ed),
            Algorithm::EdDsa,
        );
        let refused = AuthError::AlgorithmNotTheKeys {
            key: Algorithm::EdDsa,
        };
        assert_eq!(full_ring().verify(&token, NOW), Err(refused), "{alg}");
    }
}

/// R: A-2
#[test]
fn a_header_that_demands_extensions_is_refused() {
    let header = r#"{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}"#;
    let token = sign(
        header,
        &good().to_string(),
        &ed_signing(&PAIRS.ed),
        Algorithm::EdDsa,
    );
    assert_eq!(
        ed_ring().verify(&token, NOW),
        Err(AuthError::CriticalExtension)
    );
}

/// R: A-2
#[test]
fn an_expired_token_is_refused_once_the_leeway_is_over() {
    let claims = |exp: u64| with(json!({"exp": exp, "iat": exp - HOUR}));
    assert_eq!(verdict(&claims(NOW - 9)).unwrap().expires_s, NOW + 1);
    assert_eq!(
        verdict(&claims(NOW - 10)),
        Err(AuthError::Expired { since_s: 10 })
    );
    assert_eq!(
        verdict(&claims(NOW - HOUR)),
        Err(AuthError::Expired { since_s: HOUR })
    );
}

/// R: A-2
#[test]
fn a_token_must_say_when_it_expires() {
    assert_eq!(verdict(&without("exp")), Err(AuthError::NoExpiry));
    assert_eq!(
        verdict(&with(json!({"exp": null}))),
        Err(AuthError::NoExpiry)
    );
}

/// R: A-2
#[test]
fn a_token_may_live_for_a_day_and_no_longer() {
    let longest = NOW + TOKEN_LIFE_S_MAX + 10;
    assert!(verdict(&with(json!({"exp": longest}))).is_ok());
    let refused = AuthError::LivesTooLong {
        ahead_s: TOKEN_LIFE_S_MAX + 11,
    };
    assert_eq!(verdict(&with(json!({"exp": longest + 1}))), Err(refused));
    let never = verdict(&with(json!({"exp": u64::MAX})));
    assert_eq!(
        never,
        Err(AuthError::LivesTooLong {
            ahead_s: u64::MAX - NOW
        })
    );
}

/// R: A-2
#[test]
fn a_token_is_not_valid_before_its_time() {
    for claim in ["nbf", "iat"] {
        assert!(verdict(&with(json!({claim: NOW + 10}))).is_ok());
        let early = verdict(&with(json!({claim: NOW + 11})));
        assert_eq!(early, Err(AuthError::NotYetValid { wait_s: 11 }), "{claim}");
    }
}

/// R: A-2
#[test]
fn the_issuer_must_be_the_configured_one() {
    assert_eq!(verdict(&without("iss")), Err(AuthError::WrongIssuer));
    assert_eq!(
        verdict(&with(json!({"iss": "Home"}))),
        Err(AuthError::WrongIssuer)
    );
    let rules = Rules {
        issuer: None,
        ..rules()
    };
    let ring = Keyring::from_keys(vec![ed_key()], rules).unwrap();
    assert!(ring.verify(&token(&without("iss")), NOW).is_ok());
}

/// R: A-2
#[test]
fn the_audience_must_list_the_switch() {
    assert!(verdict(&with(json!({"aud": ["mail", "iris"]}))).is_ok());
    assert_eq!(verdict(&without("aud")), Err(AuthError::WrongAudience));
    for other in [json!("mail"), json!([]), json!(["mail", "iri"]), json!("")] {
        assert_eq!(
            verdict(&with(json!({"aud": other}))),
            Err(AuthError::WrongAudience)
        );
    }
}

/// R: A-4
#[test]
fn a_user_that_is_no_user_id_is_refused() {
    assert_eq!(
        verdict(&without("sub")),
        Err(AuthError::BadUser(IdError::Empty))
    );
    let long = "u".repeat(65);
    for bad in ["", "a b", "zo\u{eb}", "a\n", long.as_str()] {
        let refused = verdict(&with(json!({"sub": bad})));
        assert!(
            matches!(refused, Err(AuthError::BadUser(_))),
            "{bad:?}: {refused:?}"
        );
    }
}

/// R: A-5
#[test]
fn a_device_that_is_no_device_id_is_refused() {
    let long = "d".repeat(33);
    for bad in ["", "my phone", long.as_str()] {
        let refused = verdict(&with(json!({"device": bad})));
        assert!(
            matches!(refused, Err(AuthError::BadDevice(_))),
            "{bad:?}: {refused:?}"
        );
    }
    assert_eq!(
        verdict(&with(json!({"device": "tv"})))
            .unwrap()
            .device
            .unwrap()
            .as_str(),
        "tv"
    );
}

/// R: A-5
#[test]
fn a_token_id_is_bounded() {
    let longest = "j".repeat(TOKEN_ID_BYTES_MAX);
    assert!(verdict(&with(json!({"jti": longest}))).is_ok());
    for bad in [String::new(), longest + "j"] {
        assert_eq!(
            verdict(&with(json!({"jti": bad}))),
            Err(AuthError::BadTokenId)
        );
    }
}

#[test]
fn a_token_that_does_not_say_when_it_was_issued_counts_as_the_oldest() {
    assert_eq!(verdict(&without("iat")).unwrap().issued_s, 0);
}

#[test]
fn claims_of_the_wrong_type_are_refused() {
    let wrong = [
        json!({"exp": "1800003600"}),
        json!({"exp": -1}),
        json!({"exp": 1e300}),
        json!({"nbf": {}}),
        json!({"iat": true}),
        json!({"sub": 7}),
        json!({"sub": ["alice"]}),
        json!({"device": 1}),
        json!({"iss": ["home"]}),
        json!({"aud": {"iris": true}}),
        json!({"jti": 12}),
    ];
    for changes in wrong {
        let refused = verdict(&with(changes.clone()));
        assert!(
            matches!(refused, Err(AuthError::BadClaims { .. })),
            "{changes}: {refused:?}"
        );
    }
}

#[test]
fn a_fraction_of_a_second_is_cut_off() {
    let claims = verdict(&with(json!({"exp": (NOW + HOUR) as f64 + 0.9}))).unwrap();
    assert_eq!(claims.expires_s, NOW + HOUR + 10);
}

/// Two readers of the same token must not see two users.
///
/// R: A-4
#[test]
fn a_claim_that_comes_twice_is_refused() {
    let payload = r#"{"sub":"alice","sub":"bob","iss":"home","aud":"iris","exp":1800003600}"#;
    let header = r#"{"alg":"EdDSA","kid":"ed"}"#;
    let token = sign(header, payload, &ed_signing(&PAIRS.ed), Algorithm::EdDsa);
    let refused = ed_ring().verify(&token, NOW);
    assert!(
        matches!(refused, Err(AuthError::BadClaims { .. })),
        "{refused:?}"
    );
}

/// R: A-5
#[test]
fn a_huge_token_is_refused_unread() {
    let huge = "a".repeat(TOKEN_BYTES_MAX + 1);
    let refused = AuthError::TooLarge {
        len: TOKEN_BYTES_MAX + 1,
    };
    assert_eq!(ed_ring().verify(&huge, NOW), Err(refused));
    let filler = "x".repeat(TOKEN_BYTES_MAX);
    let genuine_but_huge = token(&with(json!({"filler": filler})));
    assert!(matches!(
        ed_ring().verify(&genuine_but_huge, NOW),
        Err(AuthError::TooLarge { .. })
    ));
}

#[test]
fn what_is_not_a_jwt_is_refused() {
    let ring = ed_ring();
    for garbage in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b.c.d",
        "\u{1F600}.\u{1F600}.\u{1F600}",
    ] {
        let refused = ring.verify(garbage, NOW);
        assert!(
            matches!(refused, Err(AuthError::Malformed | AuthError::BadHeader)),
            "{garbage:?}: {refused:?}"
        );
    }
}

#[test]
fn unusable_keys_fail_the_start() {
    let refused = |keys: Vec<Key>| Keyring::from_keys(keys, rules()).unwrap_err();
    let ed_private = PAIRS.ed.serialize_pem();
    let kid = || "k".to_owned();
    assert_eq!(refused(vec![]), KeyError::None);
    let many = (0..33)
        .map(|n| key(&n.to_string(), Algorithm::Hs256, SECRET))
        .collect();
    assert_eq!(refused(many), KeyError::TooMany { found: 33 });
    let twice = vec![ed_key(), key("ed", Algorithm::Hs256, SECRET)];
    assert_eq!(refused(twice), KeyError::Duplicate { kid: "ed".into() });
    for bad in ["", "a\nb", &"k".repeat(65)] {
        let one = refused(vec![key(bad, Algorithm::Hs256, SECRET)]);
        assert!(matches!(one, KeyError::BadKid { .. }), "{bad:?}");
    }
    let short = refused(vec![key("k", Algorithm::Hs256, &SECRET[1..])]);
    assert_eq!(
        short,
        KeyError::WeakSecret {
            kid: kid(),
            len: 31
        }
    );
    let pem = refused(vec![key("k", Algorithm::Hs256, PAIRS.ed.public_key_pem())]);
    assert_eq!(pem, KeyError::PemAsSecret { kid: kid() });
    let private = refused(vec![key("k", Algorithm::EdDsa, ed_private)]);
    assert_eq!(private, KeyError::Private { kid: kid() });
    for (algorithm, material) in [
        (Algorithm::EdDsa, PAIRS.ec.public_key_pem()),
        (Algorithm::Es256, PAIRS.ed.public_key_pem()),
        (Algorithm::Rs256, "not a key".to_owned()),
        (
            Algorithm::EdDsa,
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----".to_owned(),
        ),
    ] {
        let wrong = refused(vec![key("k", algorithm, material)]);
        assert_eq!(
            wrong,
            KeyError::NotAKey {
                kid: kid(),
                algorithm
            }
        );
    }
    let lax = Rules {
        leeway_s: LEEWAY_S_MAX + 1,
        ..rules()
    };
    let refused = Keyring::from_keys(vec![ed_key()], lax).unwrap_err();
    assert_eq!(
        refused,
        KeyError::Leeway {
            leeway_s: LEEWAY_S_MAX + 1
        }
    );
}

#[test]
fn a_p384_key_is_not_an_es256_key() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let wrong = Keyring::from_keys(
        vec![key("k", Algorithm::Es256, pair.public_key_pem())],
        rules(),
    );
    assert!(matches!(wrong, Err(KeyError::NotAKey { .. })));
    let private = SigningKey::read("k", pair.serialize_pem().as_bytes());
    assert_eq!(private.unwrap_err(), MintError::NotAPrivateKey);
}

#[test]
fn what_the_keyring_would_refuse_is_not_minted() {
    let key = SigningKey::read("ed", PAIRS.ed.serialize_pem().as_bytes()).unwrap();
    let user = UserId::new("alice").unwrap();
    let request = MintRequest {
        user: &user,
        device: None,
        ttl_s: TOKEN_LIFE_S_MAX,
        now_s: NOW,
        issuer: Some("home"),
        audience: "iris",
        jti: None,
    };
    assert!(
        ed_ring()
            .verify(&mint(&key, &request).unwrap(), NOW)
            .is_ok()
    );
    for ttl_s in [0, TOKEN_LIFE_S_MAX + 1, u64::MAX] {
        let refused = mint(&key, &MintRequest { ttl_s, ..request });
        assert_eq!(refused, Err(MintError::BadLife { ttl_s }));
    }
    let refused = mint(
        &key,
        &MintRequest {
            jti: Some(""),
            ..request
        },
    );
    assert_eq!(refused, Err(MintError::BadTokenId));
    let public = SigningKey::read("ed", PAIRS.ed.public_key_pem().as_bytes());
    assert_eq!(public.unwrap_err(), MintError::NotAPrivateKey);
    let short = SigningKey::read("k", b"short");
    assert!(matches!(
        short.unwrap_err(),
        MintError::Key(KeyError::WeakSecret { .. })
    ));
}

#[test]
fn neither_keys_nor_secrets_are_printed() {
    let key = key("hs", Algorithm::Hs256, SECRET);
    let signing = SigningKey::read("hs", SECRET).unwrap();
    let ring = Keyring::from_keys(vec![key.clone()], rules()).unwrap();
    let printed = format!("{key:?} {signing:?} {ring:?}");
    assert!(!printed.contains("secret"), "{printed}");
    assert!(
        !printed.contains(&format!("{:?}", &SECRET[..4])),
        "{printed}"
    );
}

#[test]
fn an_algorithm_is_known_by_its_exact_name() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.name().parse(), Ok(algorithm));
    }
    for other in ["none", "hs256", "HS512", ""] {
        assert_eq!(
            other.parse::<Algorithm>(),
            Err(UnknownAlgorithm(other.into()))
        );
    }
}

proptest! {
    /// R: A-5
    #[test]
    fn no_text_makes_the_keyring_panic_or_open(text in "\\PC{0,200}(\\.\\PC{0,40}){0,4}") {
        prop_assert!(full_ring().verify(&text, NOW).is_err());
    }

    /// R: A-2
    #[test]
    fn no_single_changed_character_is_accepted(at in 0usize..300, to in "[A-Za-z0-9_-]") {
        static TOKEN: LazyLock<String> = LazyLock::new(|| token(&good()));
        let at = at % TOKEN.len();
        let changed = format!("{}{to}{}", &TOKEN[..at], &TOKEN[at + 1..]);
        prop_assume!(changed != *TOKEN);
        prop_assert!(ed_ring().verify(&changed, NOW).is_err());
    }
}
