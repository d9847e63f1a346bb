//! The traces and the limits of changes and reads inside a decky, by python and by each usual shell.

mod support;

use std::time::Duration;

use chrono::Utc;
use deckswain::action::{Action, DeckyName, DecodeOptions};
use deckswain::driver::{Attempt, Driver, DriverOptions, Names};
use deckswain::result::{FailureClass, Outcome};
use deckswain::subprocess::HostCommands;
use serde_json::{Value, json};
use support::means::{Means, decky_with};
use support::{OwnDecky, file, inside, with};

const FLEET: &str = "a-test";

/// One decky and the means that it has.
struct Place {
    decky: OwnDecky,
    means: Means,
    follow_links: bool,
}

impl Place {
    async fn perform(&self, path: &str, fields: Value) -> Outcome {
        let options = DriverOptions {
            container_cli: "docker".to_owned(),
            container_suffix: self.decky.suffix.clone(),
            time_max: Duration::from_secs(30),
            fleet: FLEET.to_owned(),
            follow_links: self.follow_links,
            leftover_age: Duration::ZERO,
        };
        let action = with(file(&self.decky.name, path), fields);
        let decode = DecodeOptions {
            message_id: Some("00000000-0000-4000-8000-00000000000b"),
            content_bytes_max: 1 << 20,
        };
        let action = Action::decode(action.to_string().as_bytes(), decode).expect("an action");
        let attempt = Attempt { now: Utc::now(), is_repeat: false };
        Driver::new(options, HostCommands).perform(&action, attempt).await.expect("run")
    }

    /// Performs it and gives the class of its failure.
    async fn class(&self, path: &str, fields: Value) -> Option<FailureClass> {
        self.perform(path, fields).await.failure.map(|failure| failure.class)
    }

    fn text(&self, script: &str) -> String {
        String::from_utf8(inside(&self.decky.name, &["bash", "-c", script])).expect("text").trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_reads_leave_no_trace_and_keep_their_limits_whatever_a_decky_has() {
    let all = [Means::Python, Means::Dash, Means::Bash, Means::Busybox].map(|means| {
        tokio::spawn(async move {
            let mut place = Place { decky: decky_with(means), means, follow_links: true };
            place.text(
                "install -d -o alice /srv/a /srv/b /srv/c; mkdir /srv/root; ln -s /srv/root /srv/a/link",
            );
            directories_keep_their_times(&place).await;
            times_are_as_sent(&place).await;
            paths_go_to_the_limit_and_below_a_file_there_is_nothing(&place).await;
            leftovers_are_swept_and_nothing_else(&place).await;
            default_acls_do_not_change_a_mode(&place).await;
            links_are_followed_where_root_alone_made_them(&place).await;
            place.follow_links = false;
            no_link_is_followed_where_paths_have_rules(&place).await;
        })
    });
    for place in all {
        place.await.expect("all of it holds");
    }
}

async fn directories_keep_their_times(place: &Place) {
    for directory in ["/srv/b", "/srv/root"] {
        place.text(&format!(
            "touch -d '2021-03-04 05:06:07' {directory}; touch -a -d '2022-03-04 05:06:07' {directory}"
        ));
        let times = || place.text(&format!("/usr/bin/stat -c '%X %Y' {directory}"));
        let before = times();
        let path = format!("{directory}/note");
        for fields in [
            json!({"content": "- [ ] a\n", "owner": "alice"}),
            json!({"kind": "edit", "persona": "p", "content_class": "todo", "previous_body": "- [ ] a\n",
                "synthetic_file_uuid": "s", "expect_previous": true}),
            json!({"kind": "remove"}),
            json!({"kind": "remove"}),
        ] {
            assert_eq!(place.class(&path, fields).await, None, "{:?}", place.means);
            assert_eq!(times(), before, "{:?}", place.means);
        }
        assert_eq!(place.text(&format!("ls -A {directory}")), "");
    }
}

async fn times_are_as_sent(place: &Place) {
    let time = || place.text("find /srv/b/timed -printf %T@");
    let plant = |mtime: &str| json!({"mtime": mtime});
    assert_eq!(place.class("/srv/b/timed", plant("2026-04-20T11:30:00.25+02:00")).await, None);
    let has_fractions = place.means != Means::Busybox;
    assert_eq!(time(), if has_fractions { "1776677400.2500000000" } else { "1776677400.0000000000" });
    let mut seen = Vec::new();
    for _ in 0..2 {
        assert_eq!(place.class("/srv/b/timed", plant("2026-04-20T11:30:00+02:00")).await, None);
        seen.push(time());
    }
    assert_eq!(seen[0], seen[1], "the same action twice leaves the same file");
    assert!(seen[0].starts_with("1776677400."));
    assert_eq!(seen[0].ends_with(".0000000000"), !has_fractions, "{}", seen[0]);
    // The second before 1970 is the one that busybox cannot tell from a failure of its own.
    let second = place.class("/srv/b/timed", plant("1969-12-31T23:59:59.5Z")).await;
    assert_eq!(second, (!has_fractions).then_some(FailureClass::Command));
    // Half a second before 1970 is half a second after the second that began a second before it.
    assert!(!has_fractions || time().starts_with("-1.5"), "{}", time());
    for (mtime, seconds) in [("1900-01-01T00:00:00Z", "-2208988800"), ("2500-01-01T00:00:00Z", "16725225600")]
    {
        let before = time();
        match place.class("/srv/b/timed", plant(mtime)).await {
            None => assert!(place.text("stat -c %Y /srv/b/timed") == seconds, "{mtime}: {}", time()),
            failure => {
                assert_eq!(failure, Some(FailureClass::Command));
                assert_eq!(time(), before, "the file is as it was");
            }
        }
    }
}

async fn paths_go_to_the_limit_and_below_a_file_there_is_nothing(place: &Place) {
    // The kernel takes 4095 bytes.
    let directory = format!("/srv/b/{}{}", "d".repeat(230), format!("/{}", "e".repeat(239)).repeat(16));
    let path = format!("{directory}/{}", "f".repeat(4094 - directory.len()));
    assert_eq!(path.len(), 4095);
    assert_eq!(place.class(&path, json!({"content": "deep"})).await, None, "{:?}", place.means);
    let read = place.perform(&path, json!({"kind": "read"})).await;
    assert_eq!(read.payload["content_bytes"], "ZGVlcA==", "{:?}: {}", place.means, read.payload);
    assert_eq!(place.class(&path, json!({"kind": "remove"})).await, None);
    let read = json!({"kind": "read"});
    for missing in [path.as_str(), "/srv/none/x", "/etc/passwd/x"] {
        assert_eq!(place.class(missing, read.clone()).await, Some(FailureClass::NotFound), "{missing}");
        assert_eq!(place.class(missing, json!({"kind": "remove"})).await, None, "{missing}");
    }
    assert_eq!(place.class("/etc/passwd/x", json!({})).await, Some(FailureClass::Command));
    assert_eq!(place.class("/srv", read).await, Some(FailureClass::Command));
}

async fn leftovers_are_swept_and_nothing_else(place: &Place) {
    let draw = || Names::draw(FLEET, &DeckyName::parse(&place.decky.name).expect("a name"));
    let [staged, strange, not_ours, link] = [draw(), draw(), draw(), draw()];
    let inner = &staged.inner;
    place.text(&format!(
        "cd /srv/c; umask 077; mkdir {0} {1} {2} tmp.0123456789; : >{0}/{inner}; : >{1}/other; \
         chown alice {2}; ln -s {0} {3}",
        staged.outer, strange.outer, not_ours.outer, link.outer
    ));
    let mut expected: Vec<&str> = vec!["f", &strange.outer, &not_ours.outer, &link.outer, "tmp.0123456789"];
    expected.sort_unstable();
    assert_eq!(place.class("/srv/c/f", json!({})).await, None);
    let left = place.text("ls -A /srv/c");
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    assert_eq!(left, expected, "{:?}", place.means);
}

async fn default_acls_do_not_change_a_mode(place: &Place) {
    let plant = json!({"mode": "0640", "owner": "alice"});
    assert_eq!(place.class("/srv/open/f", plant).await, None, "{:?}", place.means);
    assert_eq!(place.text("stat -c '%a %U' /srv/open/f; ls -A /srv/open"), "640 alice\nf");
}

async fn links_are_followed_where_root_alone_made_them(place: &Place) {
    // Debian has /var/run as a link to /run.
    assert_eq!(place.class("/var/run/f", json!({})).await, None);
    assert_eq!(place.text("cat /run/f; ls -A /srv/root"), "");
    let outcome = place.perform("/srv/a/link/f", json!({})).await;
    let failure = outcome.failure.expect("a user's link is not followed");
    assert_eq!(failure.class, FailureClass::Command);
    assert!(failure.message.contains("a link that others than root can change"), "{}", failure.message);
    let removed = place.class("/srv/a/link/f", json!({"kind": "remove"})).await;
    assert_eq!(removed, Some(FailureClass::Command));
    assert_eq!(place.text("ls -A /srv/root"), "");
}

async fn no_link_is_followed_where_paths_have_rules(place: &Place) {
    place.text("echo secret >/srv/root/f; ln -s /srv/root/f /srv/a/file; echo plain >/srv/a/plain");
    let read = || json!({"kind": "read"});
    for path in ["/var/run/f", "/srv/a/link/f"] {
        for fields in [json!({}), json!({"kind": "remove"}), read()] {
            assert_eq!(place.class(path, fields).await, Some(FailureClass::Command), "{path}");
        }
    }
    let secret = place.perform("/srv/a/file", read()).await;
    assert_eq!(secret.payload["content_bytes"], Value::Null, "{}", secret.payload);
    let plain = place.perform("/srv/a/plain", read()).await;
    assert_eq!(plain.payload["content_bytes"], "cGxhaW4K", "{:?}: {}", place.means, plain.payload);
    assert_eq!(place.class("/srv/a/none", read()).await, Some(FailureClass::NotFound));
    assert_eq!(place.class("/srv/a/plain", json!({"kind": "remove"})).await, None);
    assert_eq!(place.text("cat /srv/root/f /run/f"), "secret");
}
