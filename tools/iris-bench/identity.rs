//! Who the generator's users are to the switch: the development key signs their tokens.

use std::path::Path;
use std::sync::Arc;

use iris::auth::{MintRequest, SigningKey, mint};
use iris::runtime::dev;
use iris::runtime::tls::{Tls, client_config};
use iris_proto::id::UserId;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::connection::DEVICE;

/// Seconds that a token lives: longer than any run.
const TOKEN_LIFE_S: u64 = 24 * 60 * 60 - 60;

/// What the development switch expects as `aud`.
const AUDIENCE: &str = "iris";

/// Makes TLS clients and tokens, for all threads.
#[derive(Debug)]
pub struct Identity {
    key: SigningKey,
    tls: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl Identity {
    /// Reads the development identity under `data`.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn load(data: &Path, server_name: &str) -> Result<Self, String> {
        let files = dev::load(data).map_err(|error| error.to_string())?;
        let ca = std::fs::read(&files.ca)
            .map_err(|error| format!("cannot read {}: {error}", files.ca.display()))?;
        let mut tls = client_config(&ca).map_err(|error| error.to_string())?;
        // Every connection is another user: no ticket of one may be used by the other.
        Arc::make_mut(&mut tls).resumption = Resumption::disabled();
        let server = ServerName::try_from(server_name.to_owned())
            .map_err(|error| format!("--server-name {server_name} is not a name: {error}"))?;
        let key = files.signing_key().map_err(|error| error.to_string())?;
        Ok(Self { key, tls, server })
    }

    /// The client side of a new connection.
    ///
    /// # Errors
    /// What rustls said.
    pub fn tls(&self) -> Result<Tls, String> {
        self.tls_with(&self.tls)
    }

    /// The TLS settings of one client of its own: with a place for its tickets, or without.
    #[must_use]
    pub fn config(&self, resumes: bool) -> Arc<ClientConfig> {
        let mut config = Arc::clone(&self.tls);
        if resumes {
            Arc::make_mut(&mut config).resumption = Resumption::in_memory_sessions(1);
        }
        config
    }

    /// The client side of a new connection with these settings.
    ///
    /// # Errors
    /// What rustls said.
    pub fn tls_with(&self, config: &Arc<ClientConfig>) -> Result<Tls, String> {
        Tls::client(Arc::clone(config), self.server.clone()).map_err(|error| error.to_string())
    }

    /// The client side of a connection that a thread of its own waits for.
    ///
    /// # Errors
    /// What rustls said.
    pub fn blocking(&self) -> Result<ClientConnection, String> {
        let (tls, server) = (Arc::clone(&self.tls), self.server.clone());
        ClientConnection::new(tls, server).map_err(|error| error.to_string())
    }

    /// A token for this user.
    ///
    /// # Errors
    /// Why none could be made.
    pub fn token(&self, user: &str) -> Result<String, String> {
        let user = UserId::new(user).map_err(|error| format!("user {user} {error}"))?;
        let device = iris_proto::id::DeviceId::new(DEVICE).map_err(|error| error.to_string())?;
        let request = MintRequest {
            user: &user,
            device: Some(&device),
            ttl_s: TOKEN_LIFE_S,
            now_s: crate::local::unix_time_s(),
            issuer: Some(dev::ISSUER),
            audience: AUDIENCE,
            jti: None,
        };
        mint(&self.key, &request).map_err(|error| error.to_string())
    }
}
