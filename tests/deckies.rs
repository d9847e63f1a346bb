//! The five kinds on real deckies: what the seed's driver gives, and where deckswain is better.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{OwnDecky, alpha, beta, docker, file, fresh_directory, inside, part, run, with};

fn run_one(action: Value) -> Value {
    let (_, mut results) = run(&["--timeout", "60s"], &[action]);
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// `mode owner:group mtime type` of a path in the decky.
fn look(decky: &str, path: &str) -> String {
    let printed = inside(decky, &["stat", "-c", "%a %U:%G %Y %F", path]);
    String::from_utf8(printed).unwrap().trim().to_owned()
}

fn names_in(decky: &str, directory: &str) -> Vec<String> {
    let printed = String::from_utf8(inside(decky, &["ls", "-A", directory])).unwrap();
    printed.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_plant_at_an_awkward_path_has_its_bytes_mode_and_time_and_nothing_beside_it() {
    let directory = fresh_directory(&alpha());
    let names = [
        "with space",
        "it's",
        "say \"hi\"",
        "$HOME",
        "`id`",
        "$(id)",
        "two\nlines",
        "-rf",
        "--",
        "äöü 日本",
        "back\\slash",
        "*",
        "tab\there",
        "semi;colon & more",
        ".hidden",
        &"n".repeat(255),
    ];
    let actions: Vec<Value> = names
        .iter()
        .map(|name| {
            let fields = json!({"content": format!("for {name}"), "mtime": "2024-02-29T23:59:58.9+02:00", "mode": "0640"});
            with(file(&alpha(), &format!("{directory}/{name}/{name}")), fields)
        })
        .collect();
    let (status, results) = run(&["--timeout", "60s"], &actions);
    assert_eq!(status, 0);
    for (name, result) in names.iter().zip(&results) {
        let path = format!("{directory}/{name}/{name}");
        let content = format!("for {name}");
        let payload =
            json!({"dst_decky": alpha(), "path": path, "bytes": content.len(), "rc": 0, "stderr": null});
        assert_eq!(result["payload"], payload);
        assert_eq!(inside(&alpha(), &["cat", "--", &path]), content.as_bytes());
        // 2024-02-29T21:59:58Z, to the second.
        assert_eq!(look(&alpha(), &path), "640 root:root 1709243998 regular file");
        assert_eq!(names_in(&alpha(), &format!("{directory}/{name}")).concat().len(), {
            let shown = inside(
                &alpha(),
                &["sh", "-c", "ls -A -- \"$1\" | tr -d '\\n'", "sh", &format!("{directory}/{name}")],
            );
            String::from_utf8(shown).unwrap().len()
        });
        let count = inside(
            &alpha(),
            &[
                "sh",
                "-c",
                "set -- \"$1\"/* \"$1\"/.[!.]*; n=0; for f; do [ -e \"$f\" ] && n=$((n+1)); done; echo $n",
                "sh",
                &format!("{directory}/{name}"),
            ],
        );
        assert_eq!(count, b"1\n", "{name:?} stands alone in its directory");
    }
}

#[test]
fn every_byte_arrives_whether_none_or_all_values_or_four_mebibytes() {
    let directory = fresh_directory(&alpha());
    let every: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> =
        (0..4 * 1024 * 1024_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [Vec::new(), vec![0], every, large] {
        let path = format!("{directory}/{}", bytes.len());
        let action = with(
            file(&alpha(), &path),
            json!({"content": "loses", "content_bytes": STANDARD.encode(&bytes)}),
        );
        let result = run_one(action);
        assert_eq!(result["success"], true, "{result}");
        assert_eq!(result["payload"]["bytes"], bytes.len());
        assert!(inside(&alpha(), &["cat", &path]) == bytes, "{} bytes", bytes.len());
        let limit = json!({"kind": "read", "max_bytes": bytes.len().max(1)});
        let mut read = with(file(&alpha(), &path), limit);
        let back = run_one(read.clone());
        assert_eq!(back["payload"]["content_bytes"], STANDARD.encode(&bytes));
        assert_eq!(back["payload"]["truncated"], false);
        if bytes.len() > 1 {
            read["max_bytes"] = json!(bytes.len() - 1);
            let cut = run_one(read);
            assert_eq!(cut["payload"]["truncated"], true);
            assert_eq!(cut["payload"]["bytes"], bytes.len() - 1);
        }
    }
}

#[test]
fn the_same_plant_twice_leaves_the_same_file() {
    let path = format!("{}/deep/er/f", fresh_directory(&alpha()));
    let fields =
        json!({"content": "once", "owner": "alice:alice", "mode": "0604", "mtime": "2020-05-06T07:08:09Z"});
    let action = with(file(&alpha(), &path), fields);
    let mut seen = Vec::new();
    for _ in 0..2 {
        assert_eq!(run_one(action.clone())["success"], true);
        seen.push((inside(&alpha(), &["cat", &path]), look(&alpha(), &path)));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].1, "604 alice:alice 1588748889 regular file");
    // A home directory with a subdirectory of root's would look odd.
    let parent = path.trim_end_matches("/f");
    assert!(look(&alpha(), parent).contains("alice:alice"));
}

#[test]
fn what_stands_in_the_way_is_replaced_and_never_written_through() {
    let directory = fresh_directory(&alpha());
    inside(
        &alpha(),
        &[
            "sh",
            "-c",
            &format!(
                "cd {directory} && mkfifo fifo && echo kept >target && ln -s target link && mkdir dir && ln -s dir dirlink && ln -s nowhere dangling && mknod null c 1 3"
            ),
        ],
    );
    for name in ["fifo", "link", "dirlink", "dangling", "null"] {
        let path = format!("{directory}/{name}");
        let result = run_one(with(file(&alpha(), &path), json!({"content": name})));
        assert_eq!(result["success"], true, "{name}: {result}");
        assert!(look(&alpha(), &path).ends_with("regular file"), "{name}");
        assert_eq!(inside(&alpha(), &["cat", &path]), name.as_bytes());
    }
    assert_eq!(inside(&alpha(), &["cat", &format!("{directory}/target")]), b"kept\n");
    assert!(names_in(&alpha(), &format!("{directory}/dir")).is_empty());
}

#[test]
fn a_failed_plant_leaves_nothing_behind() {
    let directory = fresh_directory(&alpha());
    inside(
        &alpha(),
        &[
            "sh",
            "-c",
            &format!("echo x >{directory}/plain && mkdir {directory}/full && : >{directory}/full/f"),
        ],
    );
    let before = inside(&alpha(), &["find", &directory]);
    for (path, fields) in [
        ("plain/below/f", json!({})),
        ("full", json!({})),
        ("new/er/f", json!({"owner": "nosuchuser"})),
        ("new/er/f", json!({"owner": "alice:nosuchgroup"})),
    ] {
        let result = run_one(with(file(&alpha(), &format!("{directory}/{path}")), fields));
        assert_eq!(result["success"], false);
        assert_eq!(result["failure"]["class"], "command");
        assert_eq!(result["disposition"], "completed");
        assert_ne!(result["payload"]["rc"], 0);
        assert!(!result["payload"]["stderr"].as_str().unwrap().is_empty());
        assert_eq!(inside(&alpha(), &["find", &directory]), before, "{path}");
    }
}

#[test]
fn an_edit_writes_the_next_body_and_reports_it() {
    let path = format!("{}/TODO.md", fresh_directory(&alpha()));
    let body = "- [ ] renew the certificate\n- [x] call Bob\n";
    let action = with(
        file(&alpha(), &path),
        json!({"kind": "edit", "action_id": "0b8f5f0e-7a53-4be0-9c64-3b1d6a1f2c55", "persona": "alice",
               "content_class": "todo", "previous_body": body, "synthetic_file_uuid": "s-9",
               "mtime": "2026-04-20T11:30:00Z", "expect_previous": true}),
    );
    let missing = run_one(action.clone());
    assert_eq!(missing["failure"]["class"], "conflict");
    run_one(with(file(&alpha(), &path), json!({"content": body})));
    let result = run_one(action.clone());
    assert_eq!(result["success"], true, "{result}");
    let new_body = result["payload"]["new_body"].as_str().unwrap();
    let payload = json!({"dst_decky": alpha(), "path": path, "bytes": new_body.len(), "rc": 0, "stderr": null,
        "new_body": new_body, "new_body_bytes": new_body.len(), "synthetic_file_uuid": "s-9"});
    assert_eq!(result["payload"], payload);
    assert_eq!(inside(&alpha(), &["cat", &path]), new_body.as_bytes());
    assert!(look(&alpha(), &path).contains(" 1776684600 "));
    assert_ne!(new_body, body);
    assert!(new_body.lines().count() >= 2);
    // The file has moved on, so the same edit no longer fits.
    assert_eq!(run_one(action.clone())["failure"]["class"], "conflict");
    let again = run_one(with(action, json!({"expect_previous": false})));
    assert_eq!(again["payload"]["new_body"], new_body, "a redelivered edit writes the same bytes");
}

#[test]
fn an_edit_without_an_editor_is_unsupported() {
    for (class, words) in [
        ("email", "content_class=email does not support edits"),
        ("nonsense", "unknown content_class: 'nonsense'"),
    ] {
        let fields = json!({"kind": "edit", "persona": "a", "content_class": class, "previous_body": "", "synthetic_file_uuid": "s"});
        let result = run_one(with(file(&alpha(), "/srv/x"), fields));
        assert_eq!(result["failure"]["class"], "unsupported");
        assert_eq!(result["payload"], json!({"dst_decky": alpha(), "path": "/srv/x", "error": words}));
    }
}

#[test]
fn a_missing_file_reads_as_not_found_and_removes_with_success() {
    let path = format!("{}/none", fresh_directory(&alpha()));
    let read = run_one(with(file(&alpha(), &path), json!({"kind": "read"})));
    assert_eq!(read["failure"]["class"], "not_found");
    assert_eq!(read["payload"]["content_bytes"], Value::Null);
    for _ in 0..2 {
        let removed = run_one(with(file(&alpha(), &path), json!({"kind": "remove"})));
        assert_eq!(removed["success"], true);
        assert_eq!(removed["payload"], json!({"dst_decky": alpha(), "path": path, "rc": 0, "stderr": null}));
        // The second time round there is a file.
        inside(&alpha(), &["touch", &path]);
    }
    assert_eq!(
        run_one(with(file(&alpha(), "/srv"), json!({"kind": "remove"})))["failure"]["class"],
        "command"
    );
}

fn probe(from: &str, address: &str) -> Value {
    json!({"kind": "traffic", "src_uuid": "s-1", "src_name": from, "dst_uuid": "d-1", "dst_name": beta(), "dst_ip": address})
}

#[test]
fn a_probe_reports_the_banner_of_a_real_sshd() {
    let address = part("DECKSWAIN_TEST_BETA_IP");
    let result = run_one(probe(&alpha(), &address));
    let banner = result["payload"]["banner"].as_str().unwrap_or_else(|| panic!("no banner: {result}"));
    assert!(banner.starts_with("SSH-2.0-OpenSSH"));
    let payload = json!({"src_decky": alpha(), "dst_decky": beta(), "dst_ip": address, "dst_port": 22, "rc": 0,
        "banner": banner, "stderr": null});
    assert_eq!(result["payload"], payload);
    assert_eq!(result["action"], "exec:tcp_connect:22");
    assert_eq!(result["success"], true);
}

#[test]
fn a_probe_of_a_closed_port_or_of_another_service_fails() {
    let decky = OwnDecky::start();
    // Nothing listens on this loopback address: the decky's sshd is ended and another service takes its port.
    inside(
        &decky.name,
        &[
            "python3",
            "-c",
            "import socket,os\nif os.fork()==0:\n s=socket.socket();s.bind(('127.0.0.9',2222));s.listen()\n os._exit(0)",
        ],
    );
    let closed = run_one(probe(&decky.name, "192.0.2.1"));
    assert_eq!(closed["success"], false);
    assert_eq!(closed["payload"]["banner"], Value::Null);
    assert_eq!(closed["payload"]["rc"], 1);
    assert_eq!(closed["failure"]["class"], "command");
    let stderr = closed["payload"]["stderr"].as_str().unwrap();
    assert!(!stderr.is_empty() && stderr.chars().count() <= 256);

    let result = probe_of(&decky, "c.sendall(b'220 mail ready\\r\\n')");
    assert_eq!(result["success"], false, "{result}");
    assert_eq!(result["payload"]["rc"], 0);
    assert_eq!(result["payload"]["banner"], Value::Null);
    assert_eq!(result["failure"]["class"], "command");
}

/// Probes a service of the test's own, which does `answer` with each connection `c` on port 22.
fn probe_of(decky: &OwnDecky, answer: &str) -> Value {
    let container = decky.container();
    let label = support::label();
    let other = format!("{}-web", decky.name);
    let service = format!(
        "import socket,time\ns=socket.socket();s.bind(('',22));s.listen()\nwhile 1:\n c,_=s.accept()\n try:{answer}\n except OSError:pass\n c.close()"
    );
    let image = part("DECKSWAIN_TEST_IMAGE");
    let started =
        docker(&["run", "-d", "--name", &other, "--label", &label, &image, "python3", "-c", &service]);
    assert!(started.status.success());
    let address =
        docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &other]);
    let address = String::from_utf8(address.stdout).unwrap().trim().to_owned();
    let wait = "import socket,sys,time\nwhile 1:\n try: socket.create_connection((sys.argv[1],22),1).recv(3);break\n except OSError: time.sleep(.05)";
    docker(&["exec", &container, "python3", "-c", wait, &address]);
    let result = run_one(probe(&decky.name, &address));
    docker(&["rm", "-f", "-v", &other]);
    result
}

#[test]
fn a_banner_that_comes_in_pieces_and_after_other_lines_is_read_to_its_end() {
    let pieces = ["Welcome\\r\\nno SSH-\\r\\nSS", "H-2.0-x", " of a kind\\r\\nrest"];
    let answer = pieces.map(|piece| format!("c.sendall(b'{piece}')")).join(";time.sleep(.2);");
    let result = probe_of(&OwnDecky::start(), &answer);
    assert_eq!(result["payload"]["banner"], "SSH-2.0-x of a kind", "{result}");
    assert_eq!(result["success"], true);
}

#[test]
fn a_missing_or_stopped_decky_and_a_missing_client_are_infrastructure() {
    for decky in ["never-was".to_owned(), part("DECKSWAIN_TEST_STOPPED")] {
        for action in [
            file(&decky, "/srv/x"),
            with(file(&decky, "/srv/x"), json!({"kind": "read"})),
            with(file(&decky, "/srv/x"), json!({"kind": "remove"})),
            probe(&decky, "192.0.2.1"),
        ] {
            let result = run_one(action);
            assert_eq!(result["failure"]["class"], "infrastructure", "{result}");
            assert_eq!(result["disposition"], "completed");
        }
    }
    let (status, results) = run(&["--container-cli", "/no/such/client"], &[file(&alpha(), "/srv/x")]);
    assert_eq!(status, 1);
    assert_eq!(results[0]["payload"]["rc"], 127);
    assert!(results[0]["payload"]["stderr"].as_str().unwrap().starts_with("argv[0] not found: "));
    assert_eq!(results[0]["failure"]["class"], "infrastructure");
}
