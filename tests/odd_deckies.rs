//! Deckies that an intruder, or an engine, has made odd.

mod support;

use serde_json::{Value, json};
use support::{OwnDecky, file, inside, run, with};
use uuid::Uuid;

/// A decky in another language, whose working directory is gone and whose root directory holds modules
/// that leave a mark when python loads them.
fn odd() -> OwnDecky {
    let name = format!("odd-{}", &Uuid::new_v4().simple().to_string()[..8]);
    let options = ["-w", "/srv/app", "-e", "LANG=de_DE.UTF-8", "-e", "LC_ALL=de_DE.UTF-8"];
    let decky = OwnDecky::start_with(&name, "-ssh", &options);
    let set_up = "cd / && rmdir /srv/app && for module in stat socket binascii shutil _sha256 hashlib time; do \
                  echo 'open(\"/srv/loaded\", \"a\").write(__name__)' >/$module.py; done";
    let container = decky.container();
    let ended = support::docker(&["exec", "-w", "/", &container, "sh", "-c", set_up]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    decky
}

/// What a command in the root directory prints.
fn told(decky: &OwnDecky, script: &str) -> String {
    let container = decky.container();
    let ended = support::docker(&["exec", "-w", "/", &container, "sh", "-c", script]);
    String::from_utf8(ended.stdout).unwrap().trim().to_owned()
}

fn of(kind: &str, decky: &OwnDecky, path: &str) -> Value {
    json!({"kind": kind, "dst_uuid": "d-1", "dst_name": decky.name, "path": path})
}

fn class(result: &Value) -> &str {
    result["failure"]["class"].as_str().unwrap_or("none")
}

#[test]
fn a_lost_working_directory_foreign_modules_and_another_language_change_nothing() {
    let decky = odd();
    let probe = json!({"kind": "traffic", "dst_uuid": "d-1", "dst_name": decky.name, "dst_ip": "127.0.0.1",
        "src_uuid": "d-1", "src_name": decky.name});
    let plants =
        (0..6).map(|n| with(file(&decky.name, &format!("/srv/f{n}")), json!({"content": n.to_string()})));
    let mut actions: Vec<Value> = plants.collect();
    actions.extend([of("read", &decky, "/srv/f0"), of("remove", &decky, "/srv/f1"), probe]);
    let (status, results) = run(&["--timeout", "60s"], &actions);
    assert_eq!(status, 0, "{results:?}");
    let (_, results) = run(&["--timeout", "60s"], &[of("read", &decky, "/no/such")]);
    assert_eq!(class(&results[0]), "not_found", "{results:?}");
    assert_eq!(
        told(&decky, "cat /srv/loaded; ls -d /__pycache__"),
        "",
        "no module of the decky's own is loaded"
    );
    assert_eq!(told(&decky, "cat /srv/f5"), "5");
}

#[test]
fn a_file_that_the_engine_mounts_cannot_be_replaced_and_nothing_is_left_beside_it() {
    let decky = OwnDecky::start();
    let before = inside(&decky.name, &["ls", "-A", "/etc"]);
    let plant = with(file(&decky.name, "/etc/hosts"), json!({"content": "127.0.0.1 localhost\n"}));
    for means in ["true", "rm $(command -v python3)"] {
        inside(&decky.name, &["sh", "-c", means]);
        let (_, results) = run(&["--timeout", "60s"], std::slice::from_ref(&plant));
        assert_eq!(class(&results[0]), "command", "{results:?}");
        assert_eq!(inside(&decky.name, &["ls", "-A", "/etc"]), before);
    }
}

#[test]
fn a_digest_that_fails_is_a_failed_command_and_no_conflict() {
    let decky = OwnDecky::start();
    let set_up = "rm $(command -v python3) && printf body >/srv/notes && \
                  printf '#!/bin/sh\\nexit 3\\n' >/usr/local/bin/sha256sum && chmod +x /usr/local/bin/sha256sum";
    inside(&decky.name, &["sh", "-c", set_up]);
    let edit = with(
        of("edit", &decky, "/srv/notes"),
        json!({"persona": "alice", "content_class": "note", "previous_body": "body", "expect_previous": true,
            "synthetic_file_uuid": "f-1"}),
    );
    let (_, results) = run(&["--timeout", "60s"], &[edit]);
    assert_eq!(class(&results[0]), "command", "{results:?}");
    assert_eq!(inside(&decky.name, &["cat", "/srv/notes"]), b"body");
}
