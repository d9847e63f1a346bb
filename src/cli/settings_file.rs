//! Files that settings come from: they name programs that are run and where passwords go, so only the user or
//! root may have written them.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::unistd::geteuid;

use super::Failed;

const ROOT: u32 = 0;
/// The permission bits by which the group and all others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Reads a file that nobody else can have written.
///
/// # Errors
///
/// Fails where the file belongs to another user than root or the running one, where its group or others may
/// write to it, and where it cannot be read.
pub fn read(path: &Path) -> Result<String, Failed> {
    let failed = |error| Failed::to_read(path, &error);
    // Looked at before it is opened, as opening a FIFO of another user's would wait for that user.
    refuse_untrusted(path, &path.metadata().map_err(failed)?)?;
    let mut file = File::open(path).map_err(failed)?;
    refuse_untrusted(path, &file.metadata().map_err(failed)?)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn refuse_untrusted(path: &Path, metadata: &Metadata) -> Result<(), Failed> {
    match distrust(metadata, geteuid().as_raw()) {
        None => Ok(()),
        Some((why, hint)) => Err(Failed::usage(format!("{} cannot be used", path.display()))
            .why(why)
            .hint(format!("{hint} {}", path.display()))),
    }
}

/// Why someone else may have written the file, and the command that mends it.
fn distrust(metadata: &Metadata, user: u32) -> Option<(String, String)> {
    // Devices such as /dev/null are everybody's, and hold what this user put there.
    if metadata.file_type().is_char_device() {
        return None;
    }
    let owner = metadata.uid();
    if owner != ROOT && owner != user {
        let why = format!("it belongs to user {owner}, neither to root nor to user {user}, who runs this");
        return Some((why, format!("chown {user}")));
    }
    (metadata.mode() & WRITABLE_BY_OTHERS != 0).then(|| {
        let mode = metadata.mode() & 0o7777;
        (format!("its mode {mode:04o} lets others write to it"), "chmod go-w".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_used_only_when_root_or_the_user_alone_can_have_written_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of_mode = |mode| {
            std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            file.path().metadata().unwrap()
        };
        let owner = of_mode(0o600).uid();
        for (mode, is_used) in [(0o600, true), (0o444, true), (0o644, true), (0o664, false), (0o602, false)] {
            assert_eq!(distrust(&of_mode(mode), owner).is_none(), is_used, "{mode:o}");
        }
        // Root's own files are used by everybody, other users' by nobody else.
        assert_eq!(distrust(&of_mode(0o644), owner + 1).is_none(), owner == ROOT);
        assert!(distrust(&Path::new("/dev/null").metadata().unwrap(), owner).is_none());
    }
}
