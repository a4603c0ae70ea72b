//! The one public door: apps by host name, terminals, the link to the workers.
