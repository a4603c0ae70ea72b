//! Where the configuration is, and what is wrong with it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use docklet_types::config::{Config, ConfigError};
use docklet_types::name::HostName;

/// The environment variable that names the file.
pub const VARIABLE: &str = "DOCKLET_CONF";
const SEARCHED: [&str; 2] = ["./conf/docklet.conf", "/etc/docklet/docklet.conf"];

/// A configuration and the file it came from, as an absolute path.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    pub file: PathBuf,
}

/// What this machine is called in the cluster: HOST_NAME, else made from the machine's own name.
#[must_use]
pub fn host_name(configured: Option<&HostName>) -> HostName {
    configured.cloned().unwrap_or_else(|| {
        let machine = nix::unistd::gethostname().unwrap_or_default();
        HostName::from_machine(&machine.to_string_lossy())
    })
}

/// Why there is no configuration. `Display` has one line per error.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("no configuration file: looked for {}; copy conf/docklet.conf.template to one of them, or name one with --config", SEARCHED.join(" and "))]
    NotFound,
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}", Lines(file, errors))]
    Invalid { file: PathBuf, errors: Vec<ConfigError> },
}

struct Lines<'a>(&'a Path, &'a [ConfigError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.1.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let variable = format!("DOCKLET_{}", error.key);
            if error.line.is_none() && std::env::var_os(&variable).is_some() {
                write!(f, "environment: {variable}: {}", error.message)?;
            } else {
                write!(f, "{}: {error}", self.0.display())?;
            }
        }
        Ok(())
    }
}

/// Reads the configuration: `given` (the `--config` argument), else `$DOCKLET_CONF`, else the first of
/// `./conf/docklet.conf` and `/etc/docklet/docklet.conf` that is there. `DOCKLET_<KEY>` variables win over the file.
///
/// # Errors
/// No file, a file that cannot be read, or everything that is wrong in it.
pub fn load(given: Option<&Path>) -> Result<Loaded, LoadError> {
    let named =
        given.map(Path::to_owned).or_else(|| std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from));
    let file = match named {
        Some(file) => file,
        None => SEARCHED.iter().map(PathBuf::from).find(|f| f.exists()).ok_or(LoadError::NotFound)?,
    };
    let file = std::path::absolute(&file).unwrap_or(file);
    let text = std::fs::read_to_string(&file).map_err(|source| LoadError::Unreadable { file: file.clone(), source })?;
    match Config::parse(
        &text,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    ) {
        Ok(config) => Ok(Loaded { config, file }),
        Err(errors) => Err(LoadError::Invalid { file, errors }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docklet.conf");
        std::fs::write(&file, "# x\n\nPROXY_PROT=1\nSTORAGE=tape\n").unwrap();
        let told = load(Some(&file)).unwrap_err().to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], format!("{}: line 3: PROXY_PROT: unknown key; did you mean PROXY_PORT?", file.display()));
        assert!(lines[1].contains(": line 4: STORAGE: "), "{told}");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        assert!(matches!(load(Some(Path::new("/nowhere/docklet.conf"))), Err(LoadError::Unreadable { .. })));
    }
}
