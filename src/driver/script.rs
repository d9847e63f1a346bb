//! The texts that run inside a decky.
//!
//! They are kept to what dash, bash and busybox ash have in common.

use crate::action::Look;

/// The exit status by which the plant says that the file holds something else than expected.
pub const STATUS_CONFLICT: i32 = 73;

/// Opens TCP 22 of its first argument and prints what answers.
pub const PROBE: &str = include_str!("probe.py");

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// One file to be written.
pub struct Plant<'a> {
    /// Where.
    pub path: &'a str,
    /// The directory of `path`.
    pub directory: &'a str,
    /// Letters and digits that no other plant uses.
    pub mark: &'a str,
    /// How many bytes must arrive.
    pub len: usize,
    /// Mode, owner and time.
    pub look: &'a Look,
    /// What the file must hold beforehand, as hex SHA-256.
    pub expected_sha256: Option<&'a str>,
}

impl Plant<'_> {
    /// The name beside the target that `sed -i` would use.
    pub fn temporary(&self) -> String {
        format!("{}/sed{}", self.directory.trim_end_matches('/'), &self.mark[..6])
    }

    /// Writes beside the target, checks the length, sets the look, renames; on failure takes all of it back.
    ///
    /// The length is checked because a client that dies midway looks like the end of the input.
    pub fn script(&self) -> String {
        let mut script =
            format!("f={}\nd={}\nt={}\n", quote(self.path), quote(self.directory), quote(&self.temporary()));
        if let Some(sha256) = self.expected_sha256 {
            script.push_str(&format!(
                "[ -f \"$f\" ] && [ ! -h \"$f\" ] && [ \"$(sha256sum <\"$f\" | cut -c1-64)\" = {sha256} ] || \
                 {{ echo 'file changed' >&2; exit {STATUS_CONFLICT}; }}\n"
            ));
        }
        script.push_str(
            "n=$d\nm=\n\
             while [ ! -e \"$n\" ] && [ ! -h \"$n\" ]; do m=$n; n=${n%/*}; [ -n \"$n\" ] || n=/; done\n\
             u() { r=$?; rm -f -- \"$t\"; while [ -n \"$m\" ]; do rmdir -- \"$d\" 2>/dev/null || [ ! -e \"$d\" ] || break; \
             [ \"$d\" = \"$m\" ] && break; d=${d%/*}; done; exit $r; }\n\
             mkdir -p -- \"$d\" || u\n\
             (umask 077; set -C; base64 -d >\"$t\") || u\n",
        );
        script.push_str(&format!(
            "[ $(wc -c <\"$t\") -eq {} ] || {{ echo 'short write' >&2; (exit 74); u; }}\n",
            self.len
        ));
        if let Some(owner) = &self.look.owner {
            let owner = quote(owner.as_str());
            script.push_str(&format!(
                "chown -- {owner} \"$t\" || u\n\
                 n=$d; while [ -n \"$m\" ]; do chown -- {owner} \"$n\" || u; [ \"$n\" = \"$m\" ] && break; n=${{n%/*}}; done\n"
            ));
        }
        script.push_str(&format!("chmod {} \"$t\" || u\n", self.look.mode));
        if let Some(mtime) = self.look.mtime {
            script.push_str(&format!("TZ=UTC0 touch -t {} \"$t\" || u\n", mtime.format("%Y%m%d%H%M.%S")));
        }
        script.push_str(
            "[ -h \"$f\" ] && [ -d \"$f\" ] && rm -f -- \"$f\"\n\
             [ ! -d \"$f\" ] || { echo 'Is a directory' >&2; (exit 1); u; }\n\
             mv -f -- \"$t\" \"$f\" || u\n",
        );
        script
    }
}

/// Ends every process that bears the mark, and what shares a session with it; says `gone` when none is left.
///
/// The mark and a file to remove come on standard input: in an argument they would match this very process.
pub const END_PYTHON: &str = include_str!("end.py");

/// The same for a decky without python, with what every shell has.
pub const END_SHELL: &str = include_str!("end.sh");
