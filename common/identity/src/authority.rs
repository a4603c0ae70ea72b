//! Making certificates. Only masters hold an [`Authority`].

use std::io;
use std::path::Path;

use docklet_types::join::{MASTER_IDENTITY, worker_identity};
use docklet_types::name::HostName;
use docklet_types::paths::IdentityFiles;
use docklet_types::time::Micros;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::certificate;
use crate::files::{FileError, install, read, write_private};

/// The authority's own certificate lasts this long, in seconds: ten years.
const AUTHORITY_LIFETIME_S: i64 = 3650 * 24 * 3600;
/// Certificates begin this much before they are made, in seconds: clocks differ.
const BACKDATED_S: i64 = 3600;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    File(FileError),
    #[error("cannot make the certificate of {name}")]
    Make {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("{path} is not the key of an authority, or not of the one beside it")]
    Key {
        path: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("the request for a certificate cannot be read")]
    Request(#[source] rcgen::Error),
}

/// For whom a certificate is.
#[derive(Debug, Clone)]
pub enum Holder<'a> {
    Master,
    /// An etcd server, reached at these names and addresses.
    Etcd {
        reached_at: &'a [String],
    },
    /// A worker, by the identity of its join.
    Worker {
        host: &'a HostName,
        identity: &'a str,
    },
}

impl Holder<'_> {
    /// The common name.
    fn name(&self) -> String {
        match self {
            Self::Master => MASTER_IDENTITY.to_owned(),
            Self::Etcd { .. } => "docklet-etcd".to_owned(),
            Self::Worker { identity, .. } => (*identity).to_owned(),
        }
    }

    fn alternative_names(&self) -> Vec<String> {
        match self {
            Self::Master => vec![MASTER_IDENTITY.to_owned()],
            Self::Etcd { reached_at } => reached_at.to_vec(),
            Self::Worker { host, identity } => vec![worker_identity(host), (*identity).to_owned()],
        }
    }
}

/// A name for one join of a host, never used again.
#[must_use]
pub fn new_worker_identity(host: &HostName) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", worker_identity(host), &unique[..8])
}

/// See the module.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// The authority of these files; `None` where there is no key.
    ///
    /// # Errors
    /// They cannot be read, or are no authority.
    pub fn load(certificate: &Path, key: &Path) -> Result<Option<Self>, AuthorityError> {
        let key_text = match read(key) {
            Err(FileError { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(AuthorityError::File)?,
        };
        let text = read(certificate).map_err(AuthorityError::File)?;
        let wrong = |source| AuthorityError::Key { path: key.display().to_string(), source };
        let pair = KeyPair::from_pem(&key_text).map_err(wrong)?;
        if certificate::public_key(&text).as_deref() != Some(pair.subject_public_key_info().as_slice()) {
            return Err(wrong(rcgen::Error::CouldNotParseKeyPair));
        }
        Ok(Some(Self { issuer: Issuer::from_ca_cert_pem(&text, pair).map_err(wrong)?, certificate: text }))
    }

    /// Makes a new one. The certificate is written last: whoever finds it finds the key, too.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn make(name: &str, certificate: &Path, key: &Path, now: Micros) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Make { name: name.to_owned(), source };
        let pair = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        lasts(&mut params, now, AUTHORITY_LIFETIME_S);
        let text = params.self_signed(&pair).map_err(failed)?.pem();
        write_private(key, &pair.serialize_pem()).map_err(AuthorityError::File)?;
        write_private(certificate, &text).map_err(AuthorityError::File)?;
        Ok(Self { issuer: Issuer::new(params, pair), certificate: text })
    }

    /// PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// SHA-256 of the certificate, as hexadecimal digits: what a join token carries.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&certificate::der(&self.certificate).unwrap_or_default())
    }

    fn issue(
        &self,
        holder: &Holder<'_>,
        key: &impl PublicKeyData,
        now: Micros,
        lifetime_s: i64,
    ) -> Result<Certificate, AuthorityError> {
        let name = holder.name();
        let failed = |source| AuthorityError::Make { name: name.clone(), source };
        let mut params = CertificateParams::new(holder.alternative_names()).map_err(failed)?;
        // Each is server to some and client to others; etcd is a client of itself.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
        params.distinguished_name.push(DnType::CommonName, name.clone());
        lasts(&mut params, now, lifetime_s);
        params.signed_by(key, &self.issuer).map_err(failed)
    }

    /// Makes key and certificate and puts them in their place, with the authority's beside.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn equip(
        &self,
        holder: &Holder<'_>,
        files: &IdentityFiles,
        now: Micros,
        lifetime_s: i64,
    ) -> Result<(), AuthorityError> {
        let key = KeyPair::generate().map_err(|source| AuthorityError::Make { name: holder.name(), source })?;
        let certificate = self.issue(holder, &key, now, lifetime_s)?.pem();
        install(files, &key.serialize_pem(), &certificate, &self.certificate).map_err(AuthorityError::File)
    }

    /// A certificate in PEM for the key of a request. What else the request says does not count.
    ///
    /// # Errors
    /// The request is none.
    pub fn answer(
        &self,
        request: &str,
        holder: &Holder<'_>,
        now: Micros,
        lifetime_s: i64,
    ) -> Result<String, AuthorityError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)?;
        Ok(self.issue(holder, &request.public_key, now, lifetime_s)?.pem())
    }
}

/// Of a certificate in DER.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex::encode(Sha256::digest(der))
}

fn lasts(params: &mut CertificateParams, now: Micros, lifetime_s: i64) {
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let now = now.0 / 1_000_000;
    params.not_before = at(now - BACKDATED_S);
    params.not_after = at(now + lifetime_s);
}

/// A new key and a request for its certificate, both in PEM.
///
/// # Errors
/// The operating system gives no randomness.
pub fn request() -> Result<(String, String), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Request)?;
    Ok((key.serialize_pem(), request_for(&key)?))
}

/// A request for a new certificate of a key that is there, in PEM.
///
/// # Errors
/// The file has no key.
pub fn request_again(key: &Path) -> Result<String, AuthorityError> {
    let text = read(key).map_err(AuthorityError::File)?;
    let pair =
        KeyPair::from_pem(&text).map_err(|source| AuthorityError::Key { path: key.display().to_string(), source })?;
    request_for(&pair)
}

fn request_for(key: &KeyPair) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(AuthorityError::Request)?;
    // Left out, because the master decides it.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(key).and_then(|r| r.pem()).map_err(AuthorityError::Request)
}
