use std::collections::HashSet;

use chrono::{DateTime, FixedOffset, TimeZone, Utc};

use super::{ContentClass, EditError, next_body};

const EDITED: [ContentClass; 6] = [
    ContentClass::Todo,
    ContentClass::Note,
    ContentClass::Draft,
    ContentClass::Script,
    ContentClass::LogCron,
    ContentClass::LogDaemon,
];

fn when() -> DateTime<FixedOffset> {
    Utc.with_ymd_and_hms(2026, 4, 2, 11, 30, 7).unwrap().fixed_offset()
}

fn edit(class: ContentClass, body: &str, seed: u64) -> String {
    next_body(class, "John Smith", body, when(), seed).unwrap()
}

#[test]
fn every_known_class_edits_or_refuses() {
    for class in ContentClass::ALL {
        assert_eq!(class.as_str().parse(), Ok(class));
        let outcome = next_body(class, "john", "", when(), 1);
        if EDITED.contains(&class) {
            assert!(outcome.unwrap().ends_with('\n'));
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), format!("content_class={class} does not support edits"));
        }
    }
}

#[test]
fn an_unknown_class_is_quoted_as_python_quotes() {
    let message = |name: &str| name.parse::<ContentClass>().unwrap_err().to_string();
    assert_eq!(message("nope"), "unknown content_class: 'nope'");
    assert_eq!(message("it's"), "unknown content_class: \"it's\"");
    assert_eq!(message("'\"\n\u{1b}é"), "unknown content_class: '\\'\"\\n\\x1bé'");
    assert_eq!("Note".parse::<ContentClass>(), Err(EditError::UnknownClass("Note".into())));
}

#[test]
fn twenty_edits_are_repeatable_distinct_grow_and_stay_discreet() {
    for class in EDITED {
        let mut body = String::new();
        for seed in 0..20 {
            let next = edit(class, &body, seed);
            assert_eq!(next, edit(class, &body, seed));
            assert_ne!(next, body);
            assert!(next.lines().count() >= body.lines().count());
            assert!(!super::holds_forbidden_word(&next));
            body = next;
        }
        let lines: Vec<&str> = body.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.iter().collect::<HashSet<_>>().len(), lines.len(), "{body}");
    }
}

#[test]
fn a_todo_keeps_its_own_bullets_and_its_marks() {
    for seed in 0..50 {
        let next = edit(ContentClass::Todo, "# list\n  * [X] one\n  * [ ] two\n\ntext\n", seed);
        assert!(next.ends_with("\n\ntext\n") && !next.contains("[x]"), "{next}");
        assert!(next.lines().filter(|line| line.starts_with("  * [")).count() >= 2);
    }
    assert!(edit(ContentClass::Todo, "* one\n", 3).contains("\n* [ ] "));
}

#[test]
fn a_script_gets_one_comment_line_whatever_the_persona() {
    for seed in 0..50 {
        let body = "#!/bin/sh\nexit 0";
        let persona = "x\nrm -rf /\r\u{1b}[2J";
        let next = next_body(ContentClass::Script, persona, body, when(), seed).unwrap();
        let added = next.strip_prefix("#!/bin/sh\nexit 0\n").unwrap();
        assert!(added.starts_with("# ") && added.lines().count() == 1 && !added.contains('\r'));
    }
}

#[test]
fn a_cron_line_takes_its_form_from_the_lines_there() {
    let body = "Apr  1 10:17:01 web7 CROND[4100]: (root) CMD (run-parts /etc/cron.hourly)\n";
    let added = edit(ContentClass::LogCron, body, 5).split_off(body.len());
    assert!(added.starts_with("Apr  2 11:30:07 web7 CROND[4"), "{added}");
    let body = "2026-04-01T10:17:01.123456+02:00 web7 systemd[1]: Started a.\n";
    let added = edit(ContentClass::LogDaemon, body, 5).split_off(body.len());
    assert!(added.starts_with("2026-04-02T13:30:07."), "{added}");
    assert!(added[26..].starts_with("+02:00 web7 systemd[1]: "), "{added}");
}

#[test]
fn crlf_files_keep_their_line_endings() {
    for class in EDITED {
        for seed in 0..20 {
            let next = edit(class, "- [ ] one\r\n- [ ] two\r\nthree", seed);
            assert_eq!(next.matches('\n').count(), next.matches("\r\n").count(), "{next:?}");
        }
    }
}

/// Usual and utmost times, each at every offset that could carry it over the edge.
fn hostile_times() -> impl Iterator<Item = DateTime<FixedOffset>> {
    let times = [when().to_utc(), DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC];
    let offsets = [0, 86_399, -86_399].map(|seconds| FixedOffset::east_opt(seconds).unwrap());
    times.into_iter().flat_map(move |time| offsets.map(|offset| time.with_timezone(&offset)))
}

#[test]
fn hostile_bodies_and_personas_never_panic() {
    let huge = "- [ ] é\n".repeat(5_000);
    let bodies = [
        "",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "é",
        "Aprééééééééééééé",
        "Apr  1 10:17:01 h CRON[99999999999]: (a) CMD (b)",
        "Apr  1 10:17:01 h x[4294967295]: y",
        "Apr  1 10:17:01 h x[4194304]: y",
        "999999. [ ] a",
        "[",
        "- [",
        "2026-04-0é x",
        "9999-12-31T23:59:60.9999999999999Z h t: m",
        "\u{feff}- [ ]",
        huge.as_str(),
    ];
    for class in EDITED {
        for body in bodies {
            for persona in ["", "\n\0", "é ü", "decky", "a b c d e f"] {
                for at in hostile_times() {
                    assert!(
                        next_body(class, persona, body, at, 9).unwrap().lines().count()
                            >= body.lines().count()
                    );
                }
            }
        }
    }
}
