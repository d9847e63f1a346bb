//! The bound on names and messages from outside, before they travel into results, logs and headers.

use std::borrow::Cow;

/// How much of a name travels, in characters.
pub const NAME_CHARS_MAX: usize = 256;
/// How much of a message travels, in characters: a name, and the words around it.
pub const MESSAGE_CHARS_MAX: usize = 512;

/// Cuts a text to `chars_max` characters, of which the last says that there were more.
#[must_use]
pub fn cut(text: &str, chars_max: usize) -> Cow<'_, str> {
    // A character takes at least one byte.
    if text.len() <= chars_max || text.chars().nth(chars_max).is_none() {
        return Cow::Borrowed(text);
    }
    let kept = text.chars().take(chars_max.saturating_sub(1));
    Cow::Owned(kept.chain(['…']).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_stays_and_a_longer_one_ends_in_an_ellipsis() {
        assert_eq!(cut("häß", 3), "häß");
        assert_eq!(cut("häßlich", 3), "hä…");
        assert_eq!(cut("", 0), "");
    }
}
