//! Sites: Docklets of their own that share their accounts, and that a user chooses among.

use std::str::FromStr;

/// A site as the operator lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// For people.
    pub name: String,
    /// The address of its portal, without a slash at the end.
    pub url: String,
}

/// All sites in the operator's order; none where there is only one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sites(pub Vec<Site>);

/// Why a text lists no sites.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SitesError {
    #[error("{0:?} is not NAME=URL, such as Basel=https://basel.example.org")]
    Form(String),
    #[error("{0:?} is not a name: 1 to 40 letters, digits, spaces, dots and dashes")]
    Name(String),
    #[error("the address of {0} does not start with http:// or https://, or has more than a host and a port")]
    Url(String),
    #[error("{0:?} is there twice")]
    Twice(String),
}

fn is_name(text: &str) -> bool {
    (1..=40).contains(&text.chars().count())
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, ' ' | '.' | '-'))
}

/// Scheme, host and port; nothing that would leave the quotes of a page.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    rest.is_some_and(|rest| !rest.is_empty() && rest.len() <= 255 && rest.chars().all(plain))
}

impl FromStr for Sites {
    type Err = SitesError;
    fn from_str(text: &str) -> Result<Self, SitesError> {
        let mut sites: Vec<Site> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, url) = part.split_once('=').ok_or_else(|| SitesError::Form(part.to_owned()))?;
            let (name, url) = (name.trim(), url.trim().trim_end_matches('/'));
            if !is_name(name) {
                return Err(SitesError::Name(name.to_owned()));
            }
            if !is_origin(url) {
                return Err(SitesError::Url(name.to_owned()));
            }
            if sites.iter().any(|site| site.name == name || site.url == url) {
                return Err(SitesError::Twice(
                    if sites.iter().any(|s| s.name == name) { name } else { url }.to_owned(),
                ));
            }
            sites.push(Site { name: name.to_owned(), url: url.to_owned() });
        }
        Ok(Self(sites))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_named_addresses() {
        let sites: Sites = "Basel = https://basel.example.org/, Zürich=http://10.0.0.1:8000".parse().unwrap();
        let site = |name: &str, url: &str| Site { name: name.to_owned(), url: url.to_owned() };
        assert_eq!(sites.0, [site("Basel", "https://basel.example.org"), site("Zürich", "http://10.0.0.1:8000")]);
        assert_eq!("".parse::<Sites>().unwrap(), Sites::default());
        for (text, error) in [
            ("basel.example.org", SitesError::Form("basel.example.org".to_owned())),
            ("=https://a", SitesError::Name(String::new())),
            ("a<b=https://a", SitesError::Name("a<b".to_owned())),
            ("a=ftp://a", SitesError::Url("a".to_owned())),
            ("a=https://a/x", SitesError::Url("a".to_owned())),
            ("a=https://a\"b", SitesError::Url("a".to_owned())),
            ("a=javascript:alert(1)", SitesError::Url("a".to_owned())),
            ("a=https://a,a=https://b", SitesError::Twice("a".to_owned())),
            ("a=https://a,b=https://a", SitesError::Twice("https://a".to_owned())),
        ] {
            assert_eq!(text.parse::<Sites>(), Err(error), "{text}");
        }
    }
}
