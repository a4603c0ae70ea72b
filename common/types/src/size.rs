//! How big one node is: CPU, memory and disk, each a limit that the host enforces.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Processor time in thousandths of one CPU. In JSON and on the command line it is a number of CPUs: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(try_from = "f64", into = "f64")]
pub struct Cpu(u32);

impl Cpu {
    /// The smallest share that still boots a node in reasonable time.
    pub const MIN: Self = Self(50);

    #[must_use]
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    #[must_use]
    pub const fn millis(self) -> u32 {
        self.0
    }
}

impl TryFrom<f64> for Cpu {
    type Error = SizeError;
    fn try_from(cpus: f64) -> Result<Self, SizeError> {
        let millis = (cpus * 1000.0).round();
        if !(f64::from(Self::MIN.0)..=1_024_000.0).contains(&millis) {
            return Err(SizeError::Cpu);
        }
        // In range, so the conversion is exact.
        Ok(Self(millis as u32))
    }
}

impl From<Cpu> for f64 {
    fn from(cpu: Cpu) -> f64 {
        f64::from(cpu.0) / 1000.0
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}

/// Why a size is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("cpu is a number of CPUs from 0.05 to 1024")]
    Cpu,
    #[error("memory_mib is from 32 to 16777216 MiB")]
    Memory,
    #[error("disk_mib is from 64 to 1073741824 MiB")]
    Disk,
}

impl SizeError {
    /// The field that the error speaks of, as named in JSON.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Cpu => "size.cpu",
            Self::Memory => "size.memory_mib",
            Self::Disk => "size.disk_mib",
        }
    }
}

/// The limits of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Size {
    /// CPUs, e.g. `0.5`; from 0.05 to 1024.
    #[schema(value_type = f64, example = 1.0)]
    pub cpu: Cpu,
    /// Memory in MiB, swap excluded; from 32.
    #[schema(example = 1024)]
    pub memory_mib: u32,
    /// Disk in MiB of what the node writes over its image; from 64.
    #[schema(example = 8192)]
    pub disk_mib: u32,
}

impl Size {
    /// # Errors
    /// The first limit that is out of its range.
    pub fn new(cpu: f64, memory_mib: u32, disk_mib: u32) -> Result<Self, SizeError> {
        Self { cpu: Cpu::try_from(cpu)?, memory_mib, disk_mib }.checked()
    }

    /// # Errors
    /// The first limit that is out of its range.
    pub fn checked(self) -> Result<Self, SizeError> {
        if !(32..=16_777_216).contains(&self.memory_mib) {
            return Err(SizeError::Memory);
        }
        if !(64..=1_073_741_824).contains(&self.disk_mib) {
            return Err(SizeError::Disk);
        }
        Ok(self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU, {} memory, {} disk", self.cpu, binary_mib(self.memory_mib), binary_mib(self.disk_mib))
    }
}

/// `1536` becomes `1.5 GiB`; under one GiB it stays in MiB.
#[must_use]
pub fn binary_mib(mib: u32) -> String {
    if mib < 1024 {
        format!("{mib} MiB")
    } else if mib.is_multiple_of(1024) {
        format!("{} GiB", mib / 1024)
    } else {
        format!("{:.1} GiB", f64::from(mib) / 1024.0)
    }
}
