//! JSON Web Key Sets: what is taken from them, what is passed over, what is refused.

use super::*;

/// The public key of RFC 8037, appendix A.2.
const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

fn set(keys: &Value) -> Result<KeySet, JwksError> {
    KeySet::read(json!({"keys": keys}).to_string().as_bytes())
}

fn refused(key: Value) -> JwksError {
    set(&json!([key])).unwrap_err()
}

/// The last `count` bytes of the public key in DER: where Ed25519 and P-256 have the key itself.
fn tail(pair: &rcgen::KeyPair, count: usize) -> Vec<u8> {
    let raw = pair.public_key_raw();
    raw[raw.len() - count..].to_vec()
}

fn ed_jwk() -> Value {
    let x = base64(&tail(&PAIRS.ed, 32));
    json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig", "x": x})
}

fn ec_jwk() -> Value {
    let point = tail(&PAIRS.ec, 64);
    let (x, y) = (base64(&point[..32]), base64(&point[32..]));
    json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": x, "y": y})
}

fn hs_jwk() -> Value {
    json!({"kty": "oct", "kid": "hs", "alg": "HS256", "k": base64(SECRET)})
}

/// The modulus out of PKCS#1: SEQUENCE { INTEGER n, INTEGER 65537 }, n of 257 bytes with its zero.
fn rsa_jwk() -> Value {
    let der = PAIRS.rsa.public_key_raw();
    let n = &der[der.len() - 5 - 256..der.len() - 5];
    json!({"kty": "RSA", "kid": "rsa", "alg": "RS256", "n": base64(n), "e": "AQAB",
           "key_ops": ["verify"]})
}

fn changed(mut key: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        key[name] = value.clone();
    }
    key
}

fn lacking(mut key: Value, name: &str) -> Value {
    key.as_object_mut().unwrap().remove(name).unwrap();
    key
}

/// R: A-2
#[test]
fn a_key_of_each_kind_in_a_set_opens_a_session() {
    let keys = json!([hs_jwk(), ed_jwk(), ec_jwk(), rsa_jwk()]);
    let ring = Keyring::new(Vec::new(), set(&keys).unwrap(), rules()).unwrap();
    assert_eq!(ring.kids().collect::<Vec<_>>(), ["hs", "ed", "ec", "rsa"]);
    let signing = [
        SigningKey::read("hs", SECRET).unwrap(),
        SigningKey::read("ed", PAIRS.ed.serialize_pem().as_bytes()).unwrap(),
        SigningKey::read("ec", PAIRS.ec.serialize_pem().as_bytes()).unwrap(),
        SigningKey::read("rsa", PAIRS.rsa.serialize_pem().as_bytes()).unwrap(),
    ];
    let request = MintRequest {
        user: &UserId::new("alice").unwrap(),
        device: None,
        ttl_s: HOUR,
        now_s: NOW,
        issuer: Some("home"),
        audience: "iris",
        jti: None,
    };
    for key in &signing {
        let claims = ring.verify(&mint(key, &request).unwrap(), NOW);
        assert_eq!(claims.unwrap().user.as_str(), "alice", "{}", key.kid());
    }
}

/// R: A-2
#[test]
fn keys_of_a_set_stand_beside_those_of_files_and_an_id_is_in_one_place_only() {
    let hs = || key("hs", Algorithm::Hs256, SECRET);
    let ring = Keyring::new(vec![hs()], set(&json!([ed_jwk()])).unwrap(), rules()).unwrap();
    assert!(ring.verify(&token(&good()), NOW).is_ok());
    let twice = Keyring::new(vec![hs()], set(&json!([hs_jwk()])).unwrap(), rules());
    assert_eq!(twice.unwrap_err(), KeyError::Duplicate { kid: "hs".into() });
    assert_eq!(
        set(&json!([ed_jwk(), changed(ec_jwk(), json!({"kid": "ed"}))])).unwrap_err(),
        JwksError::Key(KeyError::Duplicate { kid: "ed".into() })
    );
    let none = Keyring::new(Vec::new(), set(&json!([])).unwrap(), rules());
    assert_eq!(none.unwrap_err(), KeyError::None);
}

#[test]
fn what_is_not_for_us_is_passed_over_and_named() {
    let others = [
        json!({"kty": "AKP", "kid": "pq", "alg": "ML-DSA-44", "pub": "AA"}),
        json!({"kty": "OKP", "crv": "X25519", "kid": "kx", "x": ED_X}),
        json!({"kty": "EC", "crv": "P-384", "kid": "p384", "alg": "ES384"}),
        json!({"kty": "EC", "kid": "no-curve", "alg": "ES256"}),
        changed(rsa_jwk(), json!({"alg": "PS256"})),
        changed(hs_jwk(), json!({"alg": "HS512"})),
        changed(hs_jwk(), json!({"alg": "none"})),
        changed(rsa_jwk(), json!({"use": "enc"})),
        changed(rsa_jwk(), json!({"key_ops": ["encrypt"]})),
        json!({"kty": "\u{7}", "kid": "a\nb"}),
    ];
    let mut keys = others.to_vec();
    keys.push(ed_jwk());
    let set = set(&json!(keys)).unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!(set.skipped.len(), others.len());
    let line = set.skipped[0].to_string();
    assert_eq!(line, "entry 1 (`pq`): its kind (`kty`) is not used here");
    assert_eq!(
        set.skipped.last().unwrap().kid,
        "a\\nb",
        "no line is broken"
    );
}

#[test]
fn the_newer_name_of_ed25519_is_known() {
    let set = set(&json!([changed(ed_jwk(), json!({"alg": "Ed25519"}))])).unwrap();
    let ring = Keyring::new(Vec::new(), set, rules()).unwrap();
    assert!(ring.verify(&token(&good()), NOW).is_ok());
}

/// R: A-2
#[test]
fn a_private_key_in_a_set_is_refused_whichever_part_gives_it_away() {
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth"] {
        for (key, kid) in [(rsa_jwk(), "rsa"), (ec_jwk(), "ec"), (ed_jwk(), "ed")] {
            let error = refused(changed(key, json!({member: "AA"})));
            assert_eq!(error, JwksError::Key(KeyError::Private { kid: kid.into() }));
        }
    }
}

/// R: A-2
#[test]
fn a_key_that_could_not_be_believed_is_refused() {
    let short = json!({"n": base64(&[0xff; 255])});
    let padded = json!({"n": base64(&[&[0; 8][..], &[0xff; 255]].concat())});
    for weak in [short, padded] {
        let error = refused(changed(rsa_jwk(), weak));
        assert_eq!(
            error,
            JwksError::Key(KeyError::ShortRsa { kid: "rsa".into() })
        );
    }
    let error = refused(changed(hs_jwk(), json!({"k": base64(&SECRET[1..])})));
    assert!(matches!(
        error,
        JwksError::Key(KeyError::WeakSecret { len: 31, .. })
    ));
    let pem = PAIRS.ed.public_key_pem();
    let error = refused(changed(hs_jwk(), json!({"k": base64(pem.as_bytes())})));
    assert!(matches!(
        error,
        JwksError::Key(KeyError::PemAsSecret { .. })
    ));
    let error = refused(changed(hs_jwk(), json!({"kid": "a\nb"})));
    assert!(matches!(error, JwksError::Key(KeyError::BadKid { .. })));
    assert_eq!(
        refused(lacking(ed_jwk(), "kid")),
        JwksError::NoKid { entry: 1 }
    );
    let error = refused(lacking(rsa_jwk(), "alg"));
    assert_eq!(error, JwksError::NoAlgorithm { kid: "rsa".into() });
}

/// An HMAC secret that says RS256, or a public key that says HS256, is how confusion begins.
///
/// R: A-2
#[test]
fn an_algorithm_of_another_kind_of_key_is_refused() {
    for (key, alg) in [
        (hs_jwk(), "RS256"),
        (hs_jwk(), "EdDSA"),
        (rsa_jwk(), "HS256"),
        (ec_jwk(), "HS256"),
        (ed_jwk(), "HS256"),
        (ed_jwk(), "ES256"),
    ] {
        let error = refused(changed(key, json!({"alg": alg})));
        assert!(matches!(error, JwksError::OtherKind { .. }), "{error}");
    }
}

#[test]
fn parts_that_are_missing_or_malformed_are_named() {
    let bad = [
        (lacking(hs_jwk(), "k"), "`k`"),
        (changed(hs_jwk(), json!({"k": "a+b/"})), "`k`"),
        (lacking(ed_jwk(), "x"), "`x`"),
        (changed(ed_jwk(), json!({"x": &ED_X[1..]})), "`x`"),
        (
            changed(ed_jwk(), json!({"x": ED_X.replace('_', "/")})),
            "`x`",
        ),
        (lacking(ec_jwk(), "y"), "`y`"),
        (changed(ec_jwk(), json!({"y": "AAAA"})), "`y`"),
        (lacking(rsa_jwk(), "n"), "`n`"),
        (lacking(rsa_jwk(), "e"), "`n` or `e`"),
        (
            changed(rsa_jwk(), json!({"n": base64(&[0xff; 1025])})),
            "`n`",
        ),
        (changed(rsa_jwk(), json!({"e": "AQ"})), "`e`"),
        (changed(rsa_jwk(), json!({"e": "AQAA"})), "`e`"),
        (changed(rsa_jwk(), json!({"e": "AQAAAAAB"})), "`e`"),
    ];
    for (key, part) in bad {
        let error = refused(key.clone());
        assert!(matches!(error, JwksError::BadKey { .. }), "{key}: {error}");
        assert!(error.to_string().contains(part), "{key}: {error}");
    }
}

/// R: A-5
#[test]
fn a_set_is_bounded() {
    let long = vec![b' '; JWKS_BYTES_MAX + 1];
    let len = long.len();
    assert_eq!(
        KeySet::read(&long).unwrap_err(),
        JwksError::TooLarge { len }
    );
    let many: Vec<_> = (0..129).map(|_| json!({"kty": "?"})).collect();
    assert_eq!(
        set(&json!(many)).unwrap_err(),
        JwksError::TooMany { found: 129 }
    );
    assert_eq!(set(&json!(&many[1..])).unwrap().skipped.len(), 128);
    let usable = |n: u32| changed(ed_jwk(), json!({"kid": n.to_string()}));
    let keys: Vec<_> = (0..33).map(usable).collect();
    let ring = Keyring::new(Vec::new(), set(&json!(keys)).unwrap(), rules());
    assert_eq!(ring.unwrap_err(), KeyError::TooMany { found: 33 });
}

#[test]
fn what_is_no_set_is_refused_without_repeating_what_it_says() {
    for text in [
        "",
        "[]",
        "{}",
        "{\"keys\": {}}",
        "{\"keys\": [7]}",
        "[[{\"kty\": \"oct\"}]]",
        "{\"keys\": [[\"oct\", \"s3cret\", \"HS256\"]]}",
        "{\"keys\": [{}]}",
        "{\"keys\": [{\"kty\": 7, \"k\": \"s3cret\"}]}",
        "{\"keys\": [{\"kty\": \"oct\", \"k\": {\"s3cret\": 1}}]}",
        "{\"keys\": [{\"kty\": \"oct\", \"key_ops\": \"s3cret\"}]}",
        "{\"keys\": [],",
        "{\"keys\": []} s3cret",
        "-----BEGIN PUBLIC KEY-----",
    ] {
        let error = KeySet::read(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, JwksError::NotASet { .. }),
            "{text}: {error}"
        );
        let line = error.to_string();
        assert!(!line.contains("s3cret") && !line.contains('\n'), "{line}");
    }
}

#[test]
fn a_sets_secrets_are_not_printed() {
    let printed = format!("{:?}", set(&json!([hs_jwk()])).unwrap());
    assert_eq!(printed, "KeySet { kids: [\"hs\"], skipped: [] }");
}

proptest! {
    /// R: A-5
    #[test]
    fn no_text_makes_the_reader_of_sets_panic(
        text in "\\{\"keys\":\\[(\\{\"(kty|k|n|e|x|kid|alg)\":\"?(RSA|oct|OKP|[A-Za-z0-9_=-]{0,9})\"?\\},?){0,3}\\]\\}"
    ) {
        let _ = KeySet::read(text.as_bytes());
    }
}
