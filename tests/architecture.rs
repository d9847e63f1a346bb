//! Who may name what: the invariants of the module map, held over the sources.

use std::path::{Path, PathBuf};

/// A source file: its path below `src/` and the paths (`a::b::c`) that its code names.
struct Source {
    file: String,
    paths: Vec<String>,
    /// Whether it acks or rejects a delivery.
    settles: bool,
}

/// A `use` or an expression, split into identifiers, `::` and single characters.
type Tokens = Vec<String>;

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let tokens = tokens(&std::fs::read_to_string(file).unwrap());
            Source {
                file: file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
                paths: paths(&tokens),
                settles: settles(&tokens),
            }
        })
        .collect();
    assert!(sources.len() >= 20, "the walk found only {} files", sources.len());
    sources
}

/// The code without its comments and the insides of its literals.
fn tokens(code: &str) -> Tokens {
    let mut tokens = Tokens::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(len) = raw_string(rest) {
            len
        } else if first == '"' {
            1 + quoted(&rest[1..], '"')
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(rest[..len].to_owned());
            len
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    tokens
}

fn settles(tokens: &[String]) -> bool {
    tokens.windows(3).any(|call| call[0] == "." && ["ack", "reject"].contains(&&*call[1]) && call[2] == "(")
}

fn raw_string(rest: &str) -> Option<usize> {
    let hashes_on = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let text = hashes_on.trim_start_matches('#');
    let end = format!("\"{}", "#".repeat(hashes_on.len() - text.len()));
    let inside = text.strip_prefix('"')?;
    let len = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + len)
}

/// The length of a literal's rest, its closing quote included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal, or of the quote that begins a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest[1..].chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => 1 + quoted(&rest[1..], '\''),
        _ => 1,
    }
}

/// Every path of the code, with the groups of `use` written out.
fn paths(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path_at(tokens, at, "", &mut found).max(at + 1);
    }
    found
}

/// Reads one path, and the group that may end it, from `at`; tells where it ends.
fn path_at(tokens: &[String], mut at: usize, before: &str, found: &mut Vec<String>) -> usize {
    let mut path = before.to_owned();
    while let Some(token) = tokens.get(at) {
        if token == "{" && path.ends_with("::") {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                at = path_at(tokens, at, &path, found).max(at + 1);
            }
            return at + 1;
        }
        let is_name = token.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '*');
        let continues = path.is_empty() || path.ends_with("::");
        if (token == "::" && !continues) || (is_name && continues) {
            path.push_str(token);
            at += 1;
        } else {
            break;
        }
    }
    if path != before {
        found.push(path);
    }
    at
}

impl Source {
    fn is_below(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.file == *place || self.file.starts_with(&format!("{place}/")))
            || places.contains(&self.file.trim_end_matches(".rs"))
    }

    /// The first path that holds `name` as whole segments.
    fn names(&self, name: &str) -> Option<&str> {
        let held = |path: &&String| format!("::{path}::").contains(&format!("::{name}::"));
        self.paths.iter().find(held).map(String::as_str)
    }
}

/// Only what is below `places` names any of `names`, and that does.
fn assert_only(places: &[&str], names: &[&str]) {
    let sources = sources();
    for name in names {
        for source in sources.iter().filter(|source| !source.is_below(places)) {
            assert_eq!(source.names(name), None, "src/{} names {name}", source.file);
        }
    }
    let named =
        |source: &Source| source.is_below(places) && names.iter().any(|name| source.names(name).is_some());
    assert!(sources.iter().any(named), "nobody names {names:?}: has it moved?");
}

#[test]
fn only_the_broker_adapter_names_the_amqp_client() {
    assert_only(&["broker/amqp"], &["lapin"]);
}

#[test]
fn only_the_subprocess_module_starts_processes() {
    // The test of the panic hook starts itself anew.
    assert_only(&["subprocess", "cli/panic"], &["tokio::process", "process::Command", "CommandExt"]);
}

#[test]
fn a_worker_settles_its_deliveries_only_where_it_counts_what_they_left_behind() {
    let counting =
        ["worker/pipeline/settling.rs", "worker/pipeline/unreadable.rs", "worker/pipeline/away.rs"];
    // The workers' own markers of a move leave nothing behind.
    let markers = "worker/local.rs";
    let sources = sources();
    let settling = sources.iter().filter(|source| {
        source.settles
            && source.is_below(&["worker"])
            && !source.file.ends_with("/tests.rs")
            && source.file != markers
    });
    let settling: Vec<&str> = settling.map(|source| source.file.as_str()).collect();
    assert_eq!(settling.len(), counting.len(), "{settling:?}");
    assert!(counting.iter().all(|file| settling.contains(file)), "{settling:?}");
    assert!(settles(&tokens("delivery.settle.ack().await")) && !settles(&tokens("fn ack(self) {}")));
}

#[test]
fn the_pure_modules_name_no_runtime_no_client_no_files_and_no_clock() {
    let pure = ["action", "cut", "result", "realism", "policy", "driver/script", "broker/topology", "schema"];
    let impure = [
        "tokio",
        "lapin",
        "fs",
        "std::io",
        "File::open",
        "File::create",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "std::env",
        "Utc::now",
        "Local::now",
        "SystemTime",
        "Instant",
        "Uuid::new_v4",
    ];
    let sources = sources();
    for place in pure {
        let mut held = sources.iter().filter(|source| source.is_below(&[place])).peekable();
        assert!(held.peek().is_some(), "src/{place} is gone: has it moved?");
        for source in held {
            assert!(!source.paths.is_empty(), "src/{} names nothing at all", source.file);
            for name in impure {
                assert_eq!(source.names(name), None, "src/{} names {name}", source.file);
            }
        }
    }
}

#[test]
fn the_reading_of_sources_sees_through_groups_comments_and_literals() {
    let code = r##"
        // use lapin::Channel;
        use std::{io, process::{Command, Stdio}, fmt};
        fn f<'a>(x: &'a str) { let _ = ("lapin::x", '"', r#"tokio::process"#, b'\''); chrono::Utc::now(); }
    "##;
    let paths = paths(&tokens(code));
    for path in ["std::io", "std::process::Command", "std::process::Stdio", "std::fmt", "chrono::Utc::now"] {
        assert!(paths.iter().any(|found| found == path), "{path} in {paths:?}");
    }
    assert!(!paths.iter().any(|path| path.contains("lapin") || path.contains("tokio")), "{paths:?}");
}
