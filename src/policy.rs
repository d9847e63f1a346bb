//! Which deckies and paths this worker may touch.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::action::Action;

/// A pattern that is no glob.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is no glob pattern")]
pub struct PolicyError {
    pattern: String,
    #[source]
    source: globset::Error,
}

/// Globs as a person writes them; an empty allow list allows all.
#[derive(Debug, Clone, Default)]
pub struct PolicyRules {
    /// Deckies that may be touched.
    pub allow_decky: Vec<String>,
    /// Deckies that may not, whatever is allowed.
    pub deny_decky: Vec<String>,
    /// Paths that may be touched.
    pub allow_path: Vec<String>,
    /// Paths that may not, whatever is allowed.
    pub deny_path: Vec<String>,
    /// What follows a decky's name in its container's name.
    pub container_suffix: String,
}

/// The rules, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    allow_decky: Option<GlobSet>,
    deny_decky: GlobSet,
    allow_path: Option<GlobSet>,
    deny_path: GlobSet,
    container_suffix: String,
}

impl Policy {
    /// Compiles the rules; `Err` names the pattern that is no glob.
    pub fn new(rules: &PolicyRules) -> Result<Self, PolicyError> {
        let allow = |patterns: &[String]| (!patterns.is_empty()).then(|| set(patterns)).transpose();
        Ok(Self {
            allow_decky: allow(&rules.allow_decky)?,
            deny_decky: set(&rules.deny_decky)?,
            allow_path: allow(&rules.allow_path)?,
            deny_path: set(&rules.deny_path)?,
            container_suffix: rules.container_suffix.clone(),
        })
    }

    /// Whether a decky of this name may be touched at all.
    #[must_use]
    pub fn allows(&self, decky: &str) -> bool {
        !self.deny_decky.is_match(decky)
            && self.allow_decky.as_ref().is_none_or(|allow| allow.is_match(decky))
    }

    /// Says why the action may not run here, or `None` if it may.
    #[must_use]
    pub fn refusal(&self, action: &Action) -> Option<String> {
        for decky in [action.executing_decky().as_str(), action.dst_name.as_str()] {
            if !self.allows(decky) {
                return Some(format!("this worker's policy forbids decky {decky:?}"));
            }
        }
        let decky = action.executing_decky().as_str();
        if could_be_an_id(decky, &self.container_suffix) {
            return Some(format!(
                "the engine could take the container name {:?} for another container's id",
                format!("{decky}{}", self.container_suffix)
            ));
        }
        let path = action.path()?.as_str();
        // A path may repeat its slashes; the kernel reads them as one, and so must the rules.
        let single: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let path_read = format!("/{}", single.join("/"));
        let is_allowed = self.allow_path.as_ref().is_none_or(|allow| allow.is_match(&path_read));
        (!is_allowed || self.deny_path.is_match(&path_read))
            .then(|| format!("this worker's policy forbids path {path:?}"))
    }
}

/// Whether an engine may read a container's name as the beginning of an id, and so reach a container of another
/// name: docker and podman take any unambiguous beginning, and podman reads `_` as any character.
fn could_be_an_id(decky: &str, suffix: &str) -> bool {
    decky.bytes().chain(suffix.bytes()).all(|byte| byte.is_ascii_hexdigit() || byte == b'_')
}

fn set(patterns: &[String]) -> Result<GlobSet, PolicyError> {
    let mut set = GlobSetBuilder::new();
    let wrap = |pattern: &str| {
        let pattern = pattern.to_owned();
        move |source| PolicyError { pattern, source }
    };
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(wrap(pattern))?);
    }
    set.build().map_err(wrap(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::DecodeOptions;

    fn refusal(decky: &str, suffix: &str) -> Option<String> {
        let id = uuid::Uuid::nil().to_string();
        let body = format!(r#"{{"kind":"remove","dst_uuid":"d","dst_name":"{decky}","path":"/f"}}"#);
        let decode = DecodeOptions { message_id: Some(&id), content_bytes_max: 1 };
        let action = Action::decode(body.as_bytes(), decode).expect("an action");
        let rules = PolicyRules { container_suffix: suffix.to_owned(), ..PolicyRules::default() };
        Policy::new(&rules).expect("no globs").refusal(&action)
    }

    #[test]
    fn a_container_name_that_could_be_the_beginning_of_an_id_is_refused() {
        for (decky, suffix) in [("c0ffee123456", ""), ("7", ""), ("A1", ""), ("a_b", ""), ("web", "-ssh")] {
            assert_eq!(refusal(decky, suffix).is_some(), suffix.is_empty(), "{decky}{suffix}");
        }
        assert!(refusal("cafe", "0").is_some(), "a suffix of digits keeps no id apart");
        for decky in ["web-01", "decaf-7", "ghost", "a.b"] {
            assert_eq!(refusal(decky, ""), None, "{decky}");
        }
    }
}
