//! Deckies whose changes are made by python, or by one shell or another.

use super::{OwnDecky, docker, inside};

/// Makes `/srv/open`, a directory of alice's whose default ACL opens new files to her.
const OPEN_BY_DEFAULT: &str = "
import os, struct
entries = (1, 7, -1), (2, 7, 1000), (4, 5, -1), (16, 7, -1), (32, 5, -1)
acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in entries)
os.mkdir('/srv/open')
os.setxattr('/srv/open', 'system.posix_acl_default', acl)
os.chown('/srv/open', 1000, 1000)
";

/// The programs that a decky without python runs, as busybox has them.
const APPLETS: &str = "sh mkdir mv rmdir rm chmod chown touch stat base64 wc sha256sum readlink date";

/// The means by which changes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    Python,
    Dash,
    Bash,
    Busybox,
}

/// A decky whose changes are made by these means.
pub fn decky_with(means: Means) -> OwnDecky {
    let decky = OwnDecky::start();
    let set_up = match means {
        Means::Python => "true".to_owned(),
        Means::Dash => "rm $(command -v python3)".to_owned(),
        Means::Bash => "rm $(command -v python3); ln -sf bash /bin/sh".to_owned(),
        Means::Busybox => {
            let copied =
                docker(&["cp", "-L", "/bin/busybox", &format!("{}:/usr/local/bin/", decky.container())]);
            assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
            format!(
                "rm $(command -v python3); cd /usr/local/bin; for a in {APPLETS}; do ln -s busybox $a; done; \
                 ln -sf /usr/local/bin/busybox /bin/sh"
            )
        }
    };
    inside(&decky.name, &["python3", "-c", OPEN_BY_DEFAULT]);
    inside(&decky.name, &["bash", "-c", &set_up]);
    decky
}
