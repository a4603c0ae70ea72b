//! TLS between masters and workers: 1.3 only, both sides with a certificate of the cluster's authority.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use docklet_types::paths::IdentityFiles;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::authority::fingerprint;

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("there are no certificates here yet ({path})")]
    Missing { path: String },
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: pem::Error,
    },
    #[error("the certificates in {path} cannot be used")]
    Unfit {
        path: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{path} is no authority")]
    Authority {
        path: String,
        #[source]
        source: VerifierBuilderError,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Server and client with the certificates of three files. They are read again when they were replaced.
pub struct Tls {
    files: IdentityFiles,
    /// Whether a client without a certificate is let in, as one that joins.
    anonymous: bool,
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    made_of: [Option<SystemTime>; 3],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    #[must_use]
    pub fn new(files: IdentityFiles) -> Self {
        Self { files, anonymous: false, current: Mutex::new(None) }
    }

    /// Lets clients without a certificate in. What they may do is the caller's to decide.
    #[must_use]
    pub fn with_anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// # Errors
    /// See [`TlsError`].
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        Ok(self.current()?.server)
    }

    /// # Errors
    /// See [`TlsError`].
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        Ok(self.current()?.client)
    }

    fn current(&self) -> Result<Current, TlsError> {
        let files = &self.files;
        let made_of = [&files.authority, &files.certificate, &files.key]
            .map(|file| file.metadata().and_then(|m| m.modified()).ok());
        if made_of[0].is_none() || made_of[1].is_none() {
            return Err(TlsError::Missing { path: files.certificate.display().to_string() });
        }
        let mut current = self.current.lock();
        if let Some(current) = current.as_ref().filter(|c| c.made_of == made_of) {
            return Ok(current.clone());
        }
        let fresh = self.make(made_of)?;
        *current = Some(fresh.clone());
        Ok(fresh)
    }

    fn make(&self, made_of: [Option<SystemTime>; 3]) -> Result<Current, TlsError> {
        let unfit = |source| TlsError::Unfit { path: self.files.certificate.display().to_string(), source };
        let authority = |source| TlsError::Authority { path: self.files.authority.display().to_string(), source };
        let roots = Arc::new(self.roots()?);
        // The authority goes along: who joins knows it by its fingerprint only.
        let mut chain = certificates(&self.files.certificate)?;
        chain.extend(certificates(&self.files.authority)?);
        let key = || {
            PrivateKeyDer::from_pem_file(&self.files.key)
                .map_err(|source| TlsError::Read { path: self.files.key.display().to_string(), source })
        };
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let clients = if self.anonymous { clients.allow_unauthenticated() } else { clients };
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(unfit)?
            .with_client_cert_verifier(clients.build().map_err(authority)?)
            .with_single_cert(chain.clone(), key()?)
            .map_err(unfit)?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(unfit)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .map_err(unfit)?;
        Ok(Current { made_of, server: Arc::new(server), client: Arc::new(client) })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.files.authority)? {
            roots
                .add(certificate)
                .map_err(|source| TlsError::Unfit { path: self.files.authority.display().to_string(), source })?;
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Read { path: path.display().to_string(), source };
    CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)
}

/// A name in certificates, as a client expects it.
///
/// # Errors
/// It is no name.
pub fn server_name(name: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).map_err(io::Error::other)
}

/// A client that knows no authority yet but its fingerprint, and shows no certificate.
///
/// # Errors
/// TLS 1.3 is not to be had.
pub fn joining_client(authority_fingerprint: &str) -> Result<ClientConfig, rustls::Error> {
    let verifier = ByFingerprint { fingerprint: authority_fingerprint.to_owned() };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Takes the authority that the server brings if it has the fingerprint, and then checks by it as usual.
#[derive(Debug)]
struct ByFingerprint {
    fingerprint: String,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|c| fingerprint(c) == self.fingerprint).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let usual =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(|_| unknown())?;
        usual.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never offered.
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
