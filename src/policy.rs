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
}

/// The rules, compiled.
#[derive(Debug, Clone)]
pub struct Policy {
    allow_decky: Option<GlobSet>,
    deny_decky: GlobSet,
    allow_path: Option<GlobSet>,
    deny_path: GlobSet,
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
        let path = action.path()?.as_str();
        // A path may repeat its slashes; the kernel reads them as one, and so must the rules.
        let single: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let path_read = format!("/{}", single.join("/"));
        let is_allowed = self.allow_path.as_ref().is_none_or(|allow| allow.is_match(&path_read));
        (!is_allowed || self.deny_path.is_match(&path_read))
            .then(|| format!("this worker's policy forbids path {path:?}"))
    }
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
