//! What a certificate says.

use docklet_types::time::Micros;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::GeneralName;

/// The first certificate of a PEM text.
#[must_use]
pub fn der(pem: &str) -> Option<Vec<u8>> {
    Some(CertificateDer::from_pem_slice(pem.as_bytes()).ok()?.to_vec())
}

/// Its DNS names; none where it cannot be read.
#[must_use]
pub fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = parse_x509_certificate(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}

/// Its common name.
#[must_use]
pub fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

/// When it begins and ends to be good.
#[must_use]
pub fn validity(der: &[u8]) -> Option<(Micros, Micros)> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let at = |seconds: i64| Micros(seconds.saturating_mul(1_000_000));
    let validity = certificate.validity();
    Some((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

/// Whether it should be renewed: two thirds of its time are over, or it cannot be read.
#[must_use]
pub fn is_due(der: &[u8], now: Micros) -> bool {
    validity(der).is_none_or(|(begin, end)| (now.0 - begin.0) / 2 >= (end.0 - begin.0) / 3)
}

/// The key in it, as its SubjectPublicKeyInfo in DER.
pub(crate) fn public_key(pem: &str) -> Option<Vec<u8>> {
    let der = der(pem)?;
    let (_, certificate) = parse_x509_certificate(&der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}
