//! Which dead letters are meant.

use chrono::{DateTime, Utc};
use clap::Args;
use clap::builder::PossibleValuesParser;
use globset::GlobMatcher;

use super::letter::Letter;
use crate::cli::settings::glob;

/// Filters that all have to hold; none means all dead letters.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only this action (may be given more than once)
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only actions of this kind
    #[arg(long, value_parser = PossibleValuesParser::new(["traffic", "file", "edit", "read", "remove"]))]
    kind: Option<String>,
    /// Only actions that run on deckies which match this glob
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    decky: Option<GlobMatcher>,
    /// Only failures of this class
    #[arg(long, value_parser = PossibleValuesParser::new(["invalid", "unsupported", "expired", "refused", "conflict", "not_found", "command", "timeout", "infrastructure"]))]
    class: Option<String>,
    /// Only what died at this time or later: RFC 3339, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<DateTime<Utc>>,
    /// Only what died before this time
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<DateTime<Utc>>,
    /// At most so many: `list` takes the newest, all others the oldest
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Selection {
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    pub fn wants(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        (self.id.is_empty() || self.id.iter().any(|id| letter.is_of(id)))
            && is(&self.kind, &letter.kind)
            && is(&self.class, &letter.class)
            && self.decky.as_ref().is_none_or(|glob| glob.is_match(&letter.decky))
            // A letter that does not tell when it died is in no span of time.
            && self.since.is_none_or(|since| letter.died_at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| letter.died_at.is_some_and(|at| at < until))
    }
}

fn when(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| chrono::Duration::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "write it like 2026-01-31T09:00:00Z, or how long ago, like 2h".to_owned())
}
