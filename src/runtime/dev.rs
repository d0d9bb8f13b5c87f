//! The development identity: what `iris serve --dev` needs before it can speak TLS and check tokens.
//!
//! ```text
//! DATA/dev/ca.pem            the authority that clients trust            0644
//!          certificate.pem   for localhost, 127.0.0.1 and ::1            0644
//!          key.pem           its private key (P-256)                     0600
//!          token-signing.pem Ed25519, signs tokens (`iris token`)        0600
//!          token-verify.pem  its public half, what the switch reads      0644
//! ```
//!
//! The directory appears whole or not at all: it is filled under another name, synced, and renamed.
//! Two processes that start at once end with one identity. The authority's private key is dropped as
//! soon as it has signed, so the authority can never vouch for anything else.
//!
//! Certificate and authority are good for a year and a month; the switch says so when they end. Then
//! remove the directory: the next start makes another.
//!
//! Not for production: whoever can read this directory can be anyone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use zeroize::Zeroizing;

use super::clock::Clock;
use crate::auth::{MintError, SigningKey};

/// The key id of the development key.
pub const KID: &str = "dev";
/// The issuer of development tokens.
pub const ISSUER: &str = "iris-dev";
/// The names that the development certificate is good for.
pub const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How long certificate and authority are good for: what scanners of certificates call sane, 397 days.
const LIFE: Duration = Duration::from_secs(397 * 24 * 60 * 60);
/// They are good from so long before they were made, for clocks that are behind.
const BEHIND: Duration = Duration::from_secs(24 * 60 * 60);

const DIRECTORY: &str = "dev";
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Where the files of a development identity are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevFiles {
    /// The authority that clients trust.
    pub ca: PathBuf,
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The key that signs tokens.
    pub token_signing: PathBuf,
    /// The key that verifies them.
    pub token_verify: PathBuf,
}

/// Why there is no development identity.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// It was never made.
    #[error(
        "there is no development identity in {path}; start `iris serve --dev` there once, or name \
             its directory with --data"
    )]
    Missing {
        /// The directory looked for.
        path: PathBuf,
    },
    /// The directory is there, a file in it is not.
    #[error(
        "the development identity lacks {path}; remove its directory and start `iris serve --dev`, \
             which makes a new one (old tokens end with it)"
    )]
    Incomplete {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error(
        "cannot {doing} {path} ({source}); check that the directory exists, is yours, and has space"
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Keys or certificates could not be made.
    #[error(
        "cannot make the development certificate ({0}); this is a defect of iris, please report it"
    )]
    Certificate(#[from] rcgen::Error),
    /// The signing key does not sign.
    #[error(
        "the development signing key {path} is unusable ({source}); remove its directory and start \
             `iris serve --dev`, which makes a new one"
    )]
    SigningKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MintError,
    },
}

impl DevFiles {
    /// The paths under `data`, whether or not anything is there.
    #[must_use]
    pub fn at(data: &Path) -> Self {
        let directory = data.join(DIRECTORY);
        Self {
            ca: directory.join("ca.pem"),
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
            token_signing: directory.join("token-signing.pem"),
            token_verify: directory.join("token-verify.pem"),
        }
    }

    const fn all(&self) -> [&PathBuf; 5] {
        [
            &self.ca,
            &self.certificate,
            &self.key,
            &self.token_signing,
            &self.token_verify,
        ]
    }

    /// Reads the key that signs development tokens.
    pub fn signing_key(&self) -> Result<SigningKey, DevError> {
        let path = &self.token_signing;
        let material = Zeroizing::new(fs::read(path).map_err(failed("read", path))?);
        SigningKey::read(KID, &material).map_err(|source| DevError::SigningKey {
            path: path.clone(),
            source,
        })
    }
}

/// The identity under `data`, made first if there is none.
pub fn ensure(data: &Path) -> Result<DevFiles, DevError> {
    match load(data) {
        Err(DevError::Missing { .. }) => {
            create(data)?;
            load(data)
        }
        other => other,
    }
}

/// The identity under `data`, which must be there and whole.
pub fn load(data: &Path) -> Result<DevFiles, DevError> {
    let directory = data.join(DIRECTORY);
    if !directory.is_dir() {
        return Err(DevError::Missing { path: directory });
    }
    let files = DevFiles::at(data);
    if let Some(path) = files.all().into_iter().find(|path| !path.is_file()) {
        return Err(DevError::Incomplete { path: path.clone() });
    }
    Ok(files)
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DevError {
    let path = path.to_owned();
    move |source| DevError::Io {
        doing,
        path,
        source,
    }
}

fn create(data: &Path) -> Result<(), DevError> {
    fs::create_dir_all(data).map_err(failed("create", data))?;
    let draft = tempfile_name(data);
    // Left behind by a process of the same number that died half-way.
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(failed("remove", &draft))?;
    }
    let made = fill(&draft).and_then(|()| publish(&draft, &data.join(DIRECTORY)));
    if made.is_err() {
        // The first error is the one to tell; a draft that stays is harmless.
        let _ = fs::remove_dir_all(&draft);
    }
    made?;
    sync_directory(data)
}

fn tempfile_name(data: &Path) -> PathBuf {
    data.join(format!(".{DIRECTORY}-{}", std::process::id()))
}

fn fill(draft: &Path) -> Result<(), DevError> {
    DirBuilder::new()
        .mode(0o700)
        .create(draft)
        .map_err(failed("create", draft))?;
    let tls = tls_identity()?;
    let signing = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let files = [
        ("ca.pem", PUBLIC, tls.ca),
        ("certificate.pem", PUBLIC, tls.certificate),
        ("key.pem", SECRET, tls.key),
        ("token-signing.pem", SECRET, signing.serialize_pem()),
        ("token-verify.pem", PUBLIC, signing.public_key_pem()),
    ];
    for (name, mode, text) in files {
        let path = draft.join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(&path);
        let mut file = file.map_err(failed("create", &path))?;
        file.write_all(text.as_bytes())
            .map_err(failed("write", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
    }
    sync_directory(draft)
}

fn publish(draft: &Path, directory: &Path) -> Result<(), DevError> {
    match fs::rename(draft, directory) {
        Ok(()) => Ok(()),
        // Another process was first; its identity is as good.
        Err(_) if directory.is_dir() => fs::remove_dir_all(draft).map_err(failed("remove", draft)),
        Err(source) => Err(failed("create", directory)(source)),
    }
}

fn sync_directory(path: &Path) -> Result<(), DevError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", path))
}

struct TlsIdentity {
    ca: String,
    certificate: String,
    key: String,
}

fn tls_identity() -> Result<TlsIdentity, rcgen::Error> {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(Clock::read().unix_ms);
    let date = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (now - BEHIND, now + (LIFE - BEHIND));
    };
    let mut authority = CertificateParams::new(Vec::new())?;
    date(&mut authority);
    authority
        .distinguished_name
        .push(DnType::CommonName, "iris development authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let ca = authority.self_signed(&authority_key)?;

    let mut server = CertificateParams::new(NAMES.map(String::from))?;
    date(&mut server);
    server
        .distinguished_name
        .push(DnType::CommonName, "iris development server");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &Issuer::from_params(&authority, &authority_key))?;
    Ok(TlsIdentity {
        ca: ca.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use iris_proto::id::UserId;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

    use super::*;
    use crate::auth::{Algorithm, Key, Keyring, MintRequest, Rules, mint};

    fn read_all(files: &DevFiles) -> Vec<Vec<u8>> {
        files
            .all()
            .into_iter()
            .map(|path| fs::read(path).unwrap())
            .collect()
    }

    #[test]
    fn it_is_made_once_and_then_kept() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path().join("not/there/yet");
        let first = ensure(&data).unwrap();
        let before = read_all(&first);
        assert_eq!(ensure(&data).unwrap(), first);
        assert_eq!(read_all(&first), before);
        let names: Vec<_> = fs::read_dir(&data)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["dev"], "drafts stayed behind");
    }

    #[test]
    fn processes_that_start_at_once_end_with_one_identity() {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join(DIRECTORY);
        ensure(data.path()).unwrap();
        let before = read_all(&DevFiles::at(data.path()));
        let draft = data.path().join(".dev-other");
        fill(&draft).unwrap();
        publish(&draft, &directory).unwrap();
        assert_eq!(read_all(&load(data.path()).unwrap()), before);
        assert!(!draft.exists());
    }

    #[test]
    fn secrets_are_readable_by_their_owner_alone() {
        let data = tempfile::tempdir().unwrap();
        let files = ensure(data.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files.key), 0o600);
        assert_eq!(mode(&files.token_signing), 0o600);
        assert_eq!(mode(files.key.parent().unwrap()), 0o700);
    }

    /// R: A-2
    #[test]
    fn its_tokens_open_its_keyring() {
        let data = tempfile::tempdir().unwrap();
        let files = ensure(data.path()).unwrap();
        let key = Key {
            kid: KID.into(),
            algorithm: Algorithm::EdDsa,
            material: fs::read(&files.token_verify).unwrap().into(),
        };
        let rules = Rules {
            issuer: Some(ISSUER.into()),
            audience: "iris".into(),
            leeway_s: 0,
        };
        let ring = Keyring::from_keys(vec![key], rules).unwrap();
        let user = UserId::new("alice").unwrap();
        let request = MintRequest {
            user: &user,
            device: None,
            ttl_s: 60,
            now_s: 1_000,
            issuer: Some(ISSUER),
            audience: "iris",
            jti: None,
        };
        let token = mint(&files.signing_key().unwrap(), &request).unwrap();
        assert_eq!(ring.verify(&token, 1_001).unwrap().user, user);
    }

    /// R: A-1
    #[test]
    fn a_client_that_trusts_the_authority_trusts_the_certificate() {
        let data = tempfile::tempdir().unwrap();
        let files = ensure(data.path()).unwrap();
        let ca = CertificateDer::from_pem_file(&files.ca).unwrap();
        let leaf = CertificateDer::from_pem_file(&files.certificate).unwrap();
        PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = builder.build().unwrap();
        let now = UnixTime::now();
        let check = |name: &'static str| {
            use rustls::client::danger::ServerCertVerifier;
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&leaf, &[], &name, &[], now)
        };
        for name in NAMES {
            check(name).unwrap();
        }
        check("example.org").unwrap_err();
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(load(data.path()), Err(DevError::Missing { .. })));
        let files = ensure(data.path()).unwrap();
        fs::remove_file(&files.token_verify).unwrap();
        let error = ensure(data.path()).unwrap_err();
        assert!(matches!(&error, DevError::Incomplete { path } if *path == files.token_verify));
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn a_place_that_cannot_hold_it_is_named() {
        let error = ensure(Path::new("/dev/null/data")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot create /dev/null/data"),
            "{error}"
        );
    }
}
