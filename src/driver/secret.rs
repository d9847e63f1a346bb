//! Names that only those who share a fleet's secret can tell from others.

use sha2::{Digest, Sha256};

use crate::action::DeckyName;

/// Letters as `mktemp` draws them.
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// How many of a temporary name's ten letters the workers of a fleet have in common on a decky.
const COMMON_LETTERS: usize = 5;
/// How many letters follow the dot in a name that `mktemp` draws.
const NAME_LETTERS: usize = 10;

/// The names that one change needs beside its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The staging directory, or the file where nobody else can change names.
    pub outer: String,
    /// The file, or tree of directories, inside the staging directory.
    pub inner: String,
}

impl Names {
    /// Draws names that begin as all those of the fleet in the decky.
    pub fn draw(fleet: &str, decky: &DeckyName) -> Self {
        let common = letters(&keyed(fleet, "outer", decky));
        let drawn = letters(uuid::Uuid::new_v4().as_bytes());
        let inner = letters(&keyed(fleet, "inner", decky));
        Self {
            outer: format!("tmp.{}{}", &common[..COMMON_LETTERS], &drawn[..NAME_LETTERS - COMMON_LETTERS]),
            inner: format!("tmp.{}", &inner[..NAME_LETTERS]),
        }
    }
}

/// Digits that depend on the secret, the purpose and the decky, and tell nothing of them.
pub fn keyed(fleet: &str, purpose: &str, decky: &DeckyName) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in [fleet, purpose, decky.as_str()] {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_fleet_begin_alike_on_a_decky_and_nowhere_else() {
        let decky = |name| DeckyName::parse(name).unwrap();
        let draw = |fleet, name| Names::draw(fleet, &decky(name));
        let (one, other) = (draw("a", "web-01"), draw("a", "web-01"));
        assert_eq!(one.outer[..9], other.outer[..9]);
        assert_ne!(one.outer, other.outer);
        assert_eq!(one.inner, other.inner);
        for stranger in [draw("b", "web-01"), draw("a", "web-02")] {
            assert_ne!(one.outer[..9], stranger.outer[..9]);
            assert_ne!(one.inner, stranger.inner);
        }
    }
}
