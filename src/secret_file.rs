//! Files that hold a password or a key.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tracing::warn;

/// The permission of every user of the host to read a file.
const OTHERS_READ: u32 = 0o004;

/// Warns of a file with a secret in it that every user of this host can read.
pub fn warn_if_readable_by_all(path: &Path, secret: &str) {
    if std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0) {
        warn!(path = %path.display(), "every user of this host can read {secret}: `chmod o= FILE` ends that");
    }
}
