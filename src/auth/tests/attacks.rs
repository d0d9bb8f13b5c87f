//! Every attack on JWTs that we know of, as a table.
//!
//! Each attack is made as well as an attacker could make it: with the right claims, with everything
//! that is public (key ids, public keys), and with a key of the attacker's own where one helps.

use super::*;

/// One forged token, and the rule that stops it.
struct Attack {
    name: &'static str,
    token: String,
    refused: fn(&AuthError) -> bool,
}

/// The rule, as a pattern.
macro_rules! by {
    ($pattern:pat) => {
        |error| matches!(error, $pattern)
    };
}

fn attack(name: &'static str, token: String, refused: fn(&AuthError) -> bool) -> Attack {
    Attack {
        name,
        token,
        refused,
    }
}

/// A token that the attacker signed with a key of its own, under this header.
fn forged(header: &Value) -> String {
    let key = ed_signing(&PAIRS.other_ed);
    let payload = with(json!({"sub": "mallory"})).to_string();
    sign(&header.to_string(), &payload, &key, Algorithm::EdDsa)
}

/// A token that the right key signed, under this header and with this payload.
fn genuine(header: &str, payload: &str) -> String {
    sign(header, payload, &ed_signing(&PAIRS.ed), Algorithm::EdDsa)
}

/// A genuine token with one part replaced.
fn replaced(part: usize, with: &str) -> String {
    let token = token(&good());
    let mut parts: Vec<&str> = token.split('.').collect();
    parts[part] = with;
    parts.join(".")
}

const HEADER: &str = r#"{"alg":"EdDSA","kid":"ed"}"#;

/// The signature is left out, or is one that holds for every text in careless libraries.
fn unsigned() -> Vec<Attack> {
    let payload = base64(with(json!({"sub": "mallory"})).to_string().as_bytes());
    let none = |alg: &str, signature: &str| {
        let header = json!({"alg": alg, "kid": "ed", "typ": "JWT"}).to_string();
        format!("{}.{payload}.{signature}", base64(header.as_bytes()))
    };
    let genuine = token(&good());
    let (unsigned, signature) = genuine.rsplit_once('.').unwrap();
    vec![
        attack("none", none("none", ""), by!(AuthError::BadHeader)),
        attack("None", none("None", ""), by!(AuthError::BadHeader)),
        attack(
            "NONE with a signature",
            none("NONE", signature),
            by!(AuthError::BadHeader),
        ),
        attack("nOnE", none("nOnE", ""), by!(AuthError::BadHeader)),
        attack(
            "an empty algorithm",
            none("", ""),
            by!(AuthError::BadHeader),
        ),
        attack(
            "none with a space",
            none("none ", ""),
            by!(AuthError::BadHeader),
        ),
        attack(
            "stripped signature",
            format!("{unsigned}."),
            by!(AuthError::BadSignature),
        ),
        attack(
            "stripped signature and dot",
            unsigned.to_owned(),
            by!(AuthError::Malformed),
        ),
    ]
}

/// A signature is there, and is not of this text.
fn another_signature() -> Vec<Attack> {
    let payload = base64(with(json!({"sub": "mallory"})).to_string().as_bytes());
    let honest = base64(HEADER.as_bytes());
    let genuine = token(&good());
    let (unsigned, signature) = genuine.rsplit_once('.').unwrap();
    let ec = base64(br#"{"alg":"ES256","kid":"ec"}"#);
    let hs = base64(br#"{"alg":"HS256","kid":"hs"}"#);
    vec![
        attack(
            "another token's signature",
            format!("{honest}.{payload}.{signature}"),
            by!(AuthError::BadSignature),
        ),
        attack(
            "half a signature",
            format!("{unsigned}.{}", &signature[..signature.len() / 2 + 1]),
            by!(AuthError::BadSignature | AuthError::Malformed),
        ),
        attack(
            "Ed25519 of zeros",
            format!("{honest}.{payload}.{}", base64(&[0; 64])),
            by!(AuthError::BadSignature),
        ),
        attack(
            "ECDSA with r = s = 0",
            format!("{ec}.{payload}.{}", base64(&[0; 64])),
            by!(AuthError::BadSignature),
        ),
        attack(
            "an HMAC of zeros",
            format!("{hs}.{payload}.{}", base64(&[0; 32])),
            by!(AuthError::BadSignature),
        ),
        attack(
            "an empty HMAC",
            format!("{hs}.{payload}."),
            by!(AuthError::BadSignature),
        ),
    ]
}

/// What everybody has, a public key, is used as the secret of an HMAC; or the key of one algorithm
/// with another one.
fn confused() -> Vec<Attack> {
    let payload = with(json!({"sub": "mallory"})).to_string();
    let mut attacks = Vec::new();
    for (kid, pair) in [("ed", &PAIRS.ed), ("ec", &PAIRS.ec), ("rsa", &PAIRS.rsa)] {
        let pem = pair.public_key_pem();
        let trimmed = pem.trim_end().to_owned();
        let der = pair.public_key_raw().to_vec();
        for secret in [pem.into_bytes(), trimmed.into_bytes(), der] {
            let header = json!({"alg": "HS256", "kid": kid}).to_string();
            let key = EncodingKey::from_secret(&secret);
            attacks.push(attack(
                "a public key as the secret",
                sign(&header, &payload, &key, Algorithm::Hs256),
                by!(AuthError::AlgorithmNotTheKeys { .. }),
            ));
        }
    }
    for (alg, kid) in [
        ("HS256", "ed"),
        ("RS256", "hs"),
        ("ES256", "rsa"),
        ("PS256", "rsa"),
        ("HS512", "hs"),
        ("ES384", "ec"),
        ("RS512", "rsa"),
    ] {
        attacks.push(attack(
            "an algorithm that is not the key's",
            forged(&json!({"alg": alg, "kid": kid})),
            by!(AuthError::AlgorithmNotTheKeys { .. }),
        ));
    }
    let weak = EncodingKey::from_secret(b"");
    attacks.push(attack(
        "an HMAC with the empty secret",
        sign(
            r#"{"alg":"HS256","kid":"hs"}"#,
            &payload,
            &weak,
            Algorithm::Hs256,
        ),
        by!(AuthError::BadSignature),
    ));
    attacks
}

/// The header brings or names a key of the attacker's.
fn injected() -> Vec<Attack> {
    let own = PAIRS.other_ed.public_key_raw();
    let own = base64(&own[own.len() - 32..]);
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": own});
    let url = "https://attacker.example/keys.json";
    let mut attacks = Vec::new();
    for extra in [
        json!({"jwk": jwk}),
        json!({"jku": url}),
        json!({"x5u": url}),
        json!({"x5c": ["MIIB"]}),
        json!({"x5t": "AAAA", "x5t#S256": "AAAA"}),
        json!({"jwk": jwk, "jku": url, "x5u": url}),
    ] {
        let mut header = json!({"alg": "EdDSA", "kid": "ed"});
        for (name, value) in extra.as_object().unwrap() {
            header[name] = value.clone();
        }
        attacks.push(attack(
            "a key in the header",
            forged(&header),
            by!(AuthError::BadSignature),
        ));
        header.as_object_mut().unwrap().remove("kid");
        attacks.push(attack(
            "a key and no id",
            forged(&header),
            by!(AuthError::KidMissing),
        ));
    }
    let long = "k".repeat(1_000);
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "file:///etc/passwd",
        "https://attacker.example/key.pem",
        "ed' OR '1'='1",
        "ed\u{0}",
        "ed\n",
        " ed",
        "ED",
        "",
        "*",
        "0",
        long.as_str(),
    ] {
        attacks.push(attack(
            "an id that leads elsewhere",
            forged(&json!({"alg": "EdDSA", "kid": kid})),
            by!(AuthError::UnknownKid),
        ));
    }
    let empty = EncodingKey::from_secret(b"");
    attacks.push(attack(
        "the empty file as the secret",
        sign(
            r#"{"alg":"HS256","kid":"../../dev/null"}"#,
            &good().to_string(),
            &empty,
            Algorithm::Hs256,
        ),
        by!(AuthError::UnknownKid),
    ));
    attacks
}

/// The header means one thing here and another thing elsewhere. All of these are signed by the right key.
fn ambiguous_headers() -> Vec<Attack> {
    let payload = good().to_string();
    let with_header = |header: &str| genuine(header, &payload);
    let unencoded = |header: &str| {
        let message = format!("{}.{payload}", base64(header.as_bytes()));
        let key = ed_signing(&PAIRS.ed);
        let signed = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDsa.jwt());
        format!("{message}.{}", signed.unwrap())
    };
    vec![
        attack(
            "crit",
            with_header(r#"{"alg":"EdDSA","kid":"ed","crit":["exp"],"exp":1}"#),
            by!(AuthError::CriticalExtension),
        ),
        attack(
            "an empty crit",
            with_header(r#"{"alg":"EdDSA","kid":"ed","crit":[]}"#),
            by!(AuthError::CriticalExtension),
        ),
        attack(
            "crit that is no list",
            with_header(r#"{"alg":"EdDSA","kid":"ed","crit":"b64"}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "crit of b64",
            with_header(r#"{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}"#),
            by!(AuthError::CriticalExtension),
        ),
        attack(
            "b64 without crit",
            with_header(r#"{"alg":"EdDSA","kid":"ed","b64":false}"#),
            by!(AuthError::CriticalExtension),
        ),
        attack(
            "a payload that is not encoded",
            unencoded(r#"{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}"#),
            by!(AuthError::CriticalExtension | AuthError::Malformed),
        ),
    ]
}

/// A header that is none, or says things twice or in another type. All of these are signed by the right
/// key.
fn malformed_headers() -> Vec<Attack> {
    let payload = good().to_string();
    let with_header = |header: &str| genuine(header, &payload);
    let huge = format!(
        r#"{{"alg":"EdDSA","kid":"ed","x":"{}"}}"#,
        "y".repeat(8_000)
    );
    let deep = format!(
        r#"{{"alg":"EdDSA","kid":"ed","x":{}{}}}"#,
        "[".repeat(600),
        "]".repeat(600)
    );
    vec![
        attack(
            "two algorithms",
            with_header(r#"{"alg":"none","alg":"EdDSA","kid":"ed"}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "two key ids",
            with_header(r#"{"alg":"EdDSA","kid":"hs","kid":"ed"}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "an algorithm that is a list",
            with_header(r#"{"alg":["EdDSA"],"kid":"ed"}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "a key id that is a number",
            with_header(r#"{"alg":"EdDSA","kid":7}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "no algorithm",
            with_header(r#"{"kid":"ed"}"#),
            by!(AuthError::BadHeader),
        ),
        attack(
            "a header that is a list",
            with_header("[]"),
            by!(AuthError::BadHeader),
        ),
        attack(
            "a header and more",
            with_header(&format!("{HEADER}{{}}")),
            by!(AuthError::BadHeader),
        ),
        attack(
            "a huge header",
            with_header(&huge),
            by!(AuthError::TooLarge { .. }),
        ),
        attack(
            "a deep header",
            with_header(&deep),
            by!(AuthError::BadHeader),
        ),
    ]
}

/// The payload means one thing here and another thing elsewhere. All of these are signed by the right key.
fn ambiguous_payloads() -> Vec<Attack> {
    let claims = |payload: &str| genuine(HEADER, payload);
    vec![
        attack(
            "two users",
            claims(r#"{"sub":"alice","sub":"bob","iss":"home","aud":"iris","exp":1800003600}"#),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "two ends",
            claims(r#"{"sub":"alice","iss":"home","aud":"iris","exp":1,"exp":1800003600}"#),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "a name by escapes, twice",
            claims(
                r#"{"sub":"alice","s\u0075b":"bob","iss":"home","aud":"iris","exp":1800003600}"#,
            ),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "a token in a token",
            claims(&token(&good())),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "a token in a token, declared",
            genuine(
                r#"{"alg":"EdDSA","kid":"ed","cty":"JWT"}"#,
                &format!("\"{}\"", token(&good())),
            ),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "claims in a list",
            claims(&format!("[{}]", good())),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "claims without names",
            claims(r#"["alice",null,"home","iris",null,1800003600,null,null]"#),
            by!(AuthError::BadClaims { .. }),
        ),
        attack(
            "claims and more",
            claims(&format!("{}{{}}", good())),
            by!(AuthError::BadClaims { .. }),
        ),
        attack("no claims", claims(""), by!(AuthError::BadClaims { .. })),
        attack("no end", token(&without("exp")), by!(AuthError::NoExpiry)),
        attack("null", claims("null"), by!(AuthError::BadClaims { .. })),
    ]
}

/// Claims that are not for us, not now, or not for long. All of these are signed by the right key.
fn claims_out_of_bounds() -> Vec<Attack> {
    let changed = |changes: Value| token(&with(changes));
    vec![
        attack(
            "an end of null",
            changed(json!({"exp": null})),
            by!(AuthError::NoExpiry),
        ),
        attack(
            "an end in a year",
            changed(json!({"exp": NOW + 31_536_000})),
            by!(AuthError::LivesTooLong { .. }),
        ),
        attack(
            "an end that wraps",
            changed(json!({"exp": u64::MAX})),
            by!(AuthError::LivesTooLong { .. }),
        ),
        attack(
            "an end long ago",
            changed(json!({"exp": 0})),
            by!(AuthError::Expired { .. }),
        ),
        attack(
            "not before tomorrow",
            changed(json!({"nbf": NOW + 86_400})),
            by!(AuthError::NotYetValid { .. }),
        ),
        attack(
            "issued tomorrow",
            changed(json!({"iat": NOW + 86_400})),
            by!(AuthError::NotYetValid { .. }),
        ),
        attack(
            "for another service",
            changed(json!({"aud": "mail"})),
            by!(AuthError::WrongAudience),
        ),
        attack(
            "for nobody",
            changed(json!({"aud": []})),
            by!(AuthError::WrongAudience),
        ),
        attack(
            "for a longer name",
            changed(json!({"aud": "iris.example"})),
            by!(AuthError::WrongAudience),
        ),
        attack(
            "from another issuer",
            changed(json!({"iss": "home "})),
            by!(AuthError::WrongIssuer),
        ),
        attack(
            "a user with a space",
            changed(json!({"sub": "alice "})),
            by!(AuthError::BadUser(_)),
        ),
        attack(
            "a user with a zero byte",
            changed(json!({"sub": "alice\u{0}"})),
            by!(AuthError::BadUser(_)),
        ),
        attack(
            "a look-alike user",
            changed(json!({"sub": "\u{430}lice"})),
            by!(AuthError::BadUser(_)),
        ),
    ]
}

/// Claims of a type that another reader may take for something else. All signed by the right key.
fn wrong_types() -> Vec<Attack> {
    let changed = |changes: Value| token(&with(changes));
    let mut attacks = Vec::new();
    for wrong in [
        json!({"exp": (NOW + HOUR).to_string()}),
        json!({"exp": [NOW + HOUR]}),
        json!({"exp": true}),
        json!({"exp": -1}),
        json!({"exp": 1e300}),
        json!({"nbf": "now"}),
        json!({"iat": {}}),
        json!({"sub": ["alice"]}),
        json!({"sub": 7}),
        json!({"aud": {"iris": true}}),
        json!({"aud": ["iris", 7]}),
        json!({"iss": ["home"]}),
        json!({"device": 1}),
        json!({"jti": 1}),
    ] {
        attacks.push(attack(
            "a wrong type",
            changed(wrong),
            by!(AuthError::BadClaims { .. }),
        ));
    }
    attacks
}

/// The text is not quite the one that was signed, or not in compact form.
fn bent() -> Vec<Attack> {
    let whole = token(&good());
    let (head, signature) = whole.rsplit_once('.').unwrap();
    let padded = replaced(0, &format!("{}=", base64(HEADER.as_bytes())));
    let mut bent = vec![padded, format!("{whole}="), replaced(1, "")];
    for around in [" ", "\n", "\t", "\0", "\u{feff}", "\u{200b}", "\""] {
        bent.push(format!("{around}{whole}"));
        bent.push(format!("{whole}{around}"));
        bent.push(format!("{head}.{around}{signature}"));
        bent.push(replaced(
            0,
            &format!("{}{around}", base64(HEADER.as_bytes())),
        ));
    }
    bent.extend([
        format!(".{whole}"),
        format!("{whole}."),
        format!("{whole}.{signature}"),
        format!("{whole}.."),
        whole.replacen('.', "..", 1),
        format!("Bearer {whole}"),
        format!("{whole},{whole}"),
        format!("{head}.{signature}.AAAA.AAAA"), // five parts, as an encrypted token has
        json!({"payload": "e30", "signatures": [{"protected": "e30", "signature": ""}]})
            .to_string(),
    ]);
    let refused: fn(&AuthError) -> bool = by!(AuthError::Malformed
        | AuthError::BadHeader
        | AuthError::BadSignature
        | AuthError::BadClaims { .. });
    bent.into_iter()
        .map(|token| attack("a bent text", token, refused))
        .collect()
}

/// R: A-2
#[test]
fn every_known_attack_is_refused_by_the_rule_that_is_for_it() {
    let table = [
        unsigned(),
        another_signature(),
        confused(),
        injected(),
        ambiguous_headers(),
        malformed_headers(),
        ambiguous_payloads(),
        claims_out_of_bounds(),
        wrong_types(),
        bent(),
    ];
    let ring = full_ring();
    let mut tried = 0;
    for Attack {
        name,
        token,
        refused,
    } in table.into_iter().flatten()
    {
        match ring.verify(&token, NOW) {
            Ok(claims) => panic!(
                "{name}: {token} opened a session of {}",
                claims.user.as_str()
            ),
            Err(error) => assert!(refused(&error), "{name}: {token}: {error}"),
        }
        tried += 1;
    }
    assert!(tried > 120, "only {tried} attacks were tried");
    assert!(
        ring.verify(&token(&good()), NOW).is_ok(),
        "and the right one is let in"
    );
}

/// A header that brings keys along is no attack when the right key signed: they are not looked at.
///
/// R: A-2
#[test]
fn keys_in_the_header_of_a_genuine_token_are_ignored() {
    let header = json!({"alg": "EdDSA", "kid": "ed", "jku": "https://example.org/", "x5c": ["AA"],
        "typ": "at+jwt"});
    let token = genuine(&header.to_string(), &good().to_string());
    assert!(full_ring().verify(&token, NOW).is_ok());
}
