//! Who may do what in etcd: masters everything, each worker what its host needs and nothing else.
//!
//! A user of etcd is the common name of a certificate; nobody has a password. Before version 3.4.44 etcd can be talked
//! past these limits (CVE-2026-44283).

use etcd_client as api;

use docklet_types::join::MASTER_IDENTITY;
use docklet_types::name::HostName;

use crate::etcd::{EtcdStore, steady, within};
use crate::keys::{Key, Keys};
use crate::{Result, StoreError};

/// etcd insists on a user of this name. No certificate has it.
const ROOT: &str = "root";
/// All keys of all installations.
const OURS: &str = "/docklet/";
/// The first version whose limits hold.
const SOUND: (u32, u32, u32) = (3, 4, 44);

/// Whether etcd tells its clients apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limits {
    Hold,
    /// They are set, but this version can be talked past them.
    Weak {
        version: String,
    },
    /// Not ours to set: users or keys of somebody else are there.
    Foreign,
}

impl EtcdStore {
    /// Sees to it that only users with rights get in. Does nothing where that is so, or where etcd serves others, too.
    ///
    /// # Errors
    /// etcd cannot be reached or refuses.
    pub async fn ensure_limits(&self) -> Result<Limits> {
        steady(|| self.limits()).await
    }

    async fn limits(&self) -> Result<Limits> {
        let users = match within("list etcd's users", self.client.auth_client().user_list()).await {
            // Access control is on, and it is not ours to administer.
            Err(StoreError::Refused { .. }) => return Ok(Limits::Foreign),
            other => other?,
        };
        let known = |name: &str| users.users().iter().any(|u| u == name);
        if !known(MASTER_IDENTITY) && (!users.users().is_empty() || self.has_foreign_keys().await?) {
            return Ok(Limits::Foreign);
        }
        for user in [ROOT, MASTER_IDENTITY] {
            if !known(user) {
                self.add_user(user).await?;
            }
            let mut auth = self.client.auth_client();
            within("grant etcd's root role", auth.user_grant_role(user, ROOT)).await?;
        }
        within("turn on etcd's access control", self.client.auth_client().auth_enable()).await?;
        let status = within("ask etcd's version", self.client.maintenance_client().status()).await?;
        let version = status.version().to_owned();
        Ok(if is_sound(&version) { Limits::Hold } else { Limits::Weak { version } })
    }

    async fn has_foreign_keys(&self) -> Result<bool> {
        let mut kv = self.client.kv_client();
        let all = api::GetOptions::new().with_all_keys().with_count_only();
        let all = within("count keys", kv.get("", Some(all))).await?.count();
        let ours = api::GetOptions::new().with_prefix().with_count_only();
        let ours = within("count keys", kv.get(OURS, Some(ours))).await?.count();
        Ok(all != ours)
    }

    async fn add_user(&self, name: &str) -> Result<()> {
        let options = api::UserAddOptions::new().with_no_pwd();
        let mut auth = self.client.auth_client();
        there_already(within("add a user to etcd", auth.user_add(name, "", Some(options))).await)
    }

    /// Lets the worker of a host do its work under that identity, and nothing else. Repeating it does no harm.
    ///
    /// # Errors
    /// etcd cannot be reached or refuses.
    pub async fn admit_worker(&self, keys: &Keys, host: &HostName, identity: &str) -> Result<()> {
        // Each step changes rights, and another master may be at it as well.
        steady(|| self.admit(keys, host, identity)).await
    }

    async fn admit(&self, keys: &Keys, host: &HostName, identity: &str) -> Result<()> {
        let mut auth = self.client.auth_client();
        there_already(within("add a role to etcd", auth.role_add(identity)).await)?;
        let rights = [
            api::Permission::read(keys.plans_of(host)).with_prefix(),
            api::Permission::read_write(keys.reports_of(host)).with_prefix(),
            api::Permission::read_write(keys.write(&Key::Host(host.clone()))),
            api::Permission::read_write(keys.write(&Key::Alive(host.clone()))),
        ];
        for right in rights {
            within("grant a right in etcd", auth.role_grant_permission(identity, right)).await?;
        }
        self.add_user(identity).await?;
        within("grant a role in etcd", auth.user_grant_role(identity, identity)).await.map(|_| ())
    }

    /// The identities of workers that are let in.
    ///
    /// # Errors
    /// etcd cannot be reached or refuses.
    pub async fn admitted_workers(&self, keys: &Keys) -> Result<Vec<String>> {
        steady(|| self.list_admitted(keys)).await
    }

    async fn list_admitted(&self, keys: &Keys) -> Result<Vec<String>> {
        let users = within("list etcd's users", self.client.auth_client().user_list()).await?;
        let mut admitted = Vec::new();
        for name in users.users().iter().filter(|name| name.starts_with("worker-")) {
            // Another installation may share this etcd.
            let role = within("read a role of etcd", self.client.auth_client().role_get(name.as_str())).await;
            let ours = match role {
                Ok(role) => role.permissions().iter().any(|p| p.key().starts_with(keys.root().as_bytes())),
                Err(StoreError::Refused { .. }) => false,
                Err(error) => return Err(error),
            };
            if ours {
                admitted.push(name.clone());
            }
        }
        Ok(admitted)
    }

    /// Lets nobody in under that identity any more. One that is not there is no error.
    ///
    /// # Errors
    /// etcd cannot be reached or refuses.
    pub async fn dismiss_worker(&self, identity: &str) -> Result<()> {
        steady(|| self.dismiss(identity)).await
    }

    async fn dismiss(&self, identity: &str) -> Result<()> {
        let mut auth = self.client.auth_client();
        gone_already(within("remove a user from etcd", auth.user_delete(identity)).await)?;
        gone_already(within("remove a role from etcd", auth.role_delete(identity)).await)
    }
}

fn is_sound(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|p| p.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next()) >= SOUND
}

fn there_already<T>(outcome: Result<T>) -> Result<()> {
    unless(outcome, "already exists")
}

fn gone_already<T>(outcome: Result<T>) -> Result<()> {
    unless(outcome, "not found")
}

/// Whether etcd says so is told by its message alone.
fn unless<T>(outcome: Result<T>, told: &str) -> Result<()> {
    match outcome {
        Err(StoreError::Refused { source, .. }) if source.to_string().contains(told) => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for sound in ["3.4.44", "3.5.0", "3.10.1", "4.0.0-rc.1"] {
            assert!(is_sound(sound), "{sound}");
        }
        for weak in ["3.4.23", "3.4.43", "3.3.99", ""] {
            assert!(!is_sound(weak), "{weak}");
        }
    }
}
