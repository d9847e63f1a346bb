//! The content classes that the contract knows.

use std::fmt;
use std::str::FromStr;

use super::EditError;

macro_rules! content_classes {
    ($count:literal: $($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What a planted file is, as the planner names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ContentClass {
            $($(#[$doc])* $variant,)*
        }

        impl ContentClass {
            /// Every known class, in the order of the contract.
            pub const ALL: [ContentClass; $count] = [$(ContentClass::$variant,)*];

            /// The name of the class on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(ContentClass::$variant => $name,)*
                }
            }
        }
    };
}

content_classes! { 16:
    /// A free-form note.
    Note => "note",
    /// A list of things to do.
    Todo => "todo",
    /// A document being written.
    Draft => "draft",
    /// A script.
    Script => "script",
    /// The log of the cron daemon.
    LogCron => "log_cron",
    /// The log of other daemons.
    LogDaemon => "log_daemon",
    /// A temporary or cache file.
    CacheTmp => "cache_tmp",
    /// A mail message.
    Email => "email",
    /// Cloud credentials that report their use.
    CanaryAwsCreds => "canary_aws_creds",
    /// An environment file that reports its use.
    CanaryEnvFile => "canary_env_file",
    /// A git configuration that reports its use.
    CanaryGitConfig => "canary_git_config",
    /// An ssh key that reports its use.
    CanarySshKey => "canary_ssh_key",
    /// A document that reports its reading.
    CanaryHoneydoc => "canary_honeydoc",
    /// A word-processor document that reports its reading.
    CanaryHoneydocDocx => "canary_honeydoc_docx",
    /// A PDF that reports its reading.
    CanaryHoneydocPdf => "canary_honeydoc_pdf",
    /// A database dump that reports its use.
    CanaryMysqlDump => "canary_mysql_dump",
}

impl ContentClass {
    /// Whether files of this class report their use.
    #[must_use]
    pub fn is_canary(self) -> bool {
        self.as_str().starts_with("canary_")
    }
}

impl fmt::Display for ContentClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ContentClass {
    type Err = EditError;

    /// Reads a class by its wire name; `Err` is [`EditError::UnknownClass`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == name)
            .ok_or_else(|| EditError::UnknownClass(name.to_owned()))
    }
}
