//! The names, paths and modes that an action may hold.

use std::fmt;

/// Why a string is not what it should be, as a phrase that begins with "expected".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(pub &'static str);

/// The name of a decky: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeckyName(String);

/// The uuid of a decky: `[A-Za-z0-9_-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeckyUuid(String);

/// An absolute path inside a decky without NUL, dot segments or trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeckyPath(String);

/// Permission bits, at most `0777`; `0644` by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(u16);

/// `user` or `user:group`, each a name or a numeric id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(String);

impl DeckyName {
    /// Checks a name; `Err` says what was expected.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let fits = text.len() <= 63
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError("expected a decky name: [A-Za-z0-9][A-Za-z0-9_.-]{0,62}"))
        }
    }
}

impl DeckyUuid {
    /// Checks a uuid; `Err` says what was expected.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError("expected a decky uuid: [A-Za-z0-9_-]{1,64}"))
        }
    }
}

impl DeckyPath {
    /// Checks a path; `Err` says what was expected.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if !text.starts_with('/') {
            return Err(NameError("expected an absolute path"));
        }
        if text.len() > 4096 {
            return Err(NameError("expected a path of at most 4096 bytes"));
        }
        if text.contains('\0') {
            return Err(NameError("expected a path without NUL"));
        }
        if text.ends_with('/') {
            return Err(NameError("expected a path without a trailing slash"));
        }
        for segment in text.split('/') {
            if segment == "." || segment == ".." {
                return Err(NameError("expected a path without \".\" or \"..\" segments"));
            }
            if segment.len() > 255 {
                return Err(NameError("expected path segments of at most 255 bytes"));
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The directory that holds the path; `/` for a path at the root.
    #[must_use]
    pub fn directory(&self) -> &str {
        match self.0.trim_end_matches(|c| c != '/').trim_end_matches('/') {
            "" => "/",
            directory => directory,
        }
    }
}

impl FileMode {
    /// The permission bits.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Reads an octal string of one to four digits; `Err` says what was expected.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let digits = if text.len() == 4 { text.strip_prefix('0') } else { Some(text) };
        digits
            .filter(|d| (1..=3).contains(&d.len()) && d.bytes().all(|b| (b'0'..=b'7').contains(&b)))
            .and_then(|d| u16::from_str_radix(d, 8).ok())
            .map(Self)
            .ok_or(NameError("expected an octal mode of at most \"0777\""))
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl Owner {
    /// Checks an owner; `Err` says what was expected.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = |part: &str| {
            (1..=32).contains(&part.len())
                && part
                    .bytes()
                    .enumerate()
                    .all(|(i, b)| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && b".-".contains(&b)))
        };
        let fits = match text.split_once(':') {
            None => name(text),
            Some((user, group)) => name(user) && name(group),
        };
        if fits { Ok(Self(text.to_owned())) } else { Err(NameError("expected \"user\" or \"user:group\"")) }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl $name {
            /// The text as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

as_text!(DeckyName, DeckyUuid, DeckyPath, Owner);
