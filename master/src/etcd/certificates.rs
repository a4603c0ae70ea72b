//! Certificates for the local etcd: an authority of its own, one for the server, one for its clients. All files are
//! readable by root alone, so no other user of the machine gets in.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make the certificate of {name}")]
    Make {
        name: &'static str,
        #[source]
        source: rcgen::Error,
    },
}

/// Makes `ca.crt`, `server.{crt,key}` and `client.{crt,key}` in `dir` unless they are all there.
///
/// # Errors
/// Where the directory cannot be written.
pub fn ensure(dir: &Path) -> Result<(), CertificateError> {
    let all = ["ca.crt", "server.crt", "server.key", "client.crt", "client.key"];
    if all.iter().all(|name| dir.join(name).exists()) {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| CertificateError::Write { path: dir.to_owned(), source })?;
    let made = |name: &'static str| move |source| CertificateError::Make { name, source };

    let ca_key = KeyPair::generate().map_err(made("the authority"))?;
    let mut ca = CertificateParams::new(Vec::new()).map_err(made("the authority"))?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "docklet local etcd");
    let ca_certificate = ca.self_signed(&ca_key).map_err(made("the authority"))?;
    let issuer = Issuer::new(ca, ca_key);

    for (name, usages) in [
        // etcd also opens a connection to itself as a client, with the server's certificate.
        ("server", vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]),
        ("client", vec![ExtendedKeyUsagePurpose::ClientAuth]),
    ] {
        let key = KeyPair::generate().map_err(made(name))?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).map_err(made(name))?;
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, format!("docklet {name}"));
        let certificate = params.signed_by(&key, &issuer).map_err(made(name))?;
        write(dir, &format!("{name}.crt"), &certificate.pem())?;
        write(dir, &format!("{name}.key"), &key.serialize_pem())?;
    }
    // Last, because a client that finds it takes the others as complete.
    write(dir, "ca.crt", &ca_certificate.pem())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), CertificateError> {
    let path = dir.join(name);
    let attempt = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    attempt().map_err(|source| CertificateError::Write { path: path.clone(), source })
}
