//! The keys of a vcluster: one pair to sign in between its nodes, one for its nodes to prove who they are.

use docklet_types::name::UserName;
use docklet_types::spec::{SshKeyPair, VclusterKeys};
use rand::TryRngCore as _;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the operating system gives no randomness")]
    Randomness(#[source] rand::rand_core::OsError),
    #[error("an ssh key cannot be written")]
    Encode(#[source] ssh_key::Error),
}

fn pair(comment: &str) -> Result<SshKeyPair, KeyError> {
    let mut seed = [0u8; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut seed).map_err(KeyError::Randomness)?;
    let key =
        PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed)), comment).map_err(KeyError::Encode)?;
    Ok(SshKeyPair {
        private: key.to_openssh(LineEnding::LF).map_err(KeyError::Encode)?.to_string(),
        public: key.public_key().to_openssh().map_err(KeyError::Encode)?,
    })
}

/// New keys with the owner's name for a comment; a few tenths of a millisecond of work.
///
/// # Errors
/// See [`KeyError`].
pub(super) fn generate(owner: &UserName) -> Result<VclusterKeys, KeyError> {
    Ok(VclusterKeys { user: pair(owner.as_str())?, host: pair(owner.as_str())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_can_be_read_back() {
        let keys = generate(&"alice".parse().unwrap()).unwrap();
        let private = PrivateKey::from_openssh(&keys.user.private).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), keys.user.public);
        assert!(keys.user.public.starts_with("ssh-ed25519 AAAA") && keys.user.public.ends_with("alice"));
        assert_ne!(keys.user.public, keys.host.public);
    }
}
