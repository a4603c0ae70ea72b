//! Ids that are never reused, and the range of user ids a tenant owns on every host.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Uuid);

        impl $type {
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// 32 hexadecimal digits, no dashes.
            #[must_use]
            pub fn simple(&self) -> String {
                self.0.simple().to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $type {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::from_str(text).map(Self)
            }
        }
    };
}

id!(/// One incarnation of a vcluster. A new one of the same name has a new id.
    VclusterId);
id!(/// One incarnation of a node. Routes, directories and kernel objects are keyed by it.
    NodeId);
id!(/// A user account.
    UserId);
id!(/// One change somebody asked for (create, start, scale, …), with its steps and outcome.
    OperationId);

/// A user's block of 65,536 ids, the same on every host and never reused: `1000000 + 65536·index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdRange(u32);

impl IdRange {
    /// Ids in one range.
    pub const LEN: u32 = 65_536;
    const FIRST: u32 = 1_000_000;
    /// The last index whose ids still fit 32 bits (with the two reserved ids at the top left out).
    pub const MAX_INDEX: u32 = (u32::MAX - 2 - Self::FIRST) / Self::LEN - 1;

    /// `None` where the index is over [`IdRange::MAX_INDEX`].
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        if index <= Self::MAX_INDEX { Some(Self(index)) } else { None }
    }

    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The host's id of the node's root.
    #[must_use]
    pub const fn first_id(self) -> u32 {
        Self::FIRST + self.0 * Self::LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_touch_and_fit_32_bits() {
        let first = IdRange::new(0).unwrap();
        let second = IdRange::new(1).unwrap();
        assert_eq!(first.first_id(), 1_000_000);
        assert_eq!(first.first_id() + IdRange::LEN, second.first_id());
        let last = IdRange::new(IdRange::MAX_INDEX).unwrap();
        assert!(last.first_id().checked_add(IdRange::LEN).is_some());
        assert!(IdRange::new(IdRange::MAX_INDEX + 1).is_none());
    }
}
