//! The page at `/`: what `iris top` shows, with plots, in one file that loads nothing from anywhere.
//!
//! It holds nothing worth a token, so it is shown without one; what it then asks for is not. Its script and
//! its style run because they carry this answer's nonce, and nothing else does: what a user's name holds
//! is text.

use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};

/// Its content type.
pub(super) const HTML: &str = "text/html; charset=utf-8";
const PAGE: &str = include_str!("page.html");
/// What stands for the nonce in it.
const NONCE: &str = "NONCE";

/// Puts the page into an answer.
pub(super) fn adorn(response: &mut Response<String>) {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return; // then it has no nonce, and nothing of it runs
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    *response.body_mut() = PAGE.replace(NONCE, &nonce);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> (String, String) {
        let mut response = Response::new(String::new());
        adorn(&mut response);
        let policy = response.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        (policy.to_owned(), response.into_body())
    }

    /// R: E-2
    #[test]
    fn the_page_loads_nothing_and_each_answer_has_a_nonce_of_its_own() {
        let (policy, body) = shown();
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        let nonce = policy
            .split("'nonce-")
            .nth(1)
            .unwrap()
            .split('\'')
            .next()
            .unwrap();
        assert_eq!(nonce.len(), 32);
        assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        for foreign in [
            "src=",
            "href=",
            "@import",
            "url(",
            "innerHTML",
            " style=",
            "eval(",
        ] {
            assert!(!body.contains(foreign), "{foreign}");
        }
        assert_ne!(shown().0, policy);
    }

    #[test]
    fn the_page_knows_every_reason_of_a_refusal() {
        for (reason, _) in crate::runtime::report::Totals::default().refusals() {
            assert!(PAGE.contains(&format!("\"{reason}\"")), "{reason}");
        }
    }
}
