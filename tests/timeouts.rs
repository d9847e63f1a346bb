//! A command that hangs inside a decky is ended on both sides, and nothing of it is left.

mod support;

use serde_json::{Value, json};
use support::{OwnDecky, docker, file, inside, run, with};

const TIMEOUT: &str = "4s";

fn hang(decky: &OwnDecky, action: Value) {
    let (status, results) = run(&["--timeout", TIMEOUT], &[action]);
    let result = &results[0];
    assert_eq!(status, 1);
    assert_eq!(result["failure"]["class"], "timeout", "{result}");
    assert_eq!(result["payload"]["rc"], 124);
    assert_eq!(result["payload"]["stderr"], "timeout");
    assert_eq!(result["container_process"], "gone");
    assert_eq!(decky.processes(), Vec::<String>::new());
    assert_eq!(clients_of(&decky.name), Vec::<String>::new());
}

/// The command lines on the host that name the decky's container, but for this test's own.
fn clients_of(decky: &str) -> Vec<String> {
    let container = format!("{decky}-ssh");
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path().join("cmdline");
        let line = String::from_utf8_lossy(&std::fs::read(path).ok()?).replace('\0', " ");
        (line.contains(&container) && line.contains("exec")).then_some(line)
    });
    processes.collect()
}

#[test]
fn a_read_of_a_fifo_times_out_and_leaves_nothing() {
    let decky = OwnDecky::start();
    inside(&decky.name, &["mkfifo", "/srv/fifo"]);
    hang(&decky, with(file(&decky.name, "/srv/fifo"), json!({"kind": "read"})));
}

#[test]
fn a_plant_through_a_shell_that_sleeps_times_out_and_leaves_nothing() {
    for sleeper in
        ["#!/bin/bash\nsleep 300\n", "#!/bin/bash\nexec sleep 300\n", "#!/bin/bash\nsleep 300 & sleep 301\n"]
    {
        let decky = OwnDecky::start();
        let put = "import os,sys\nopen('/bin/s','w').write(sys.argv[1]);os.chmod('/bin/s',0o755);os.rename('/bin/s','/bin/sh')";
        inside(&decky.name, &["python3", "-c", put, sleeper]);
        hang(&decky, file(&decky.name, "/srv/f"));
    }
}

#[test]
fn a_probe_through_a_python_that_sleeps_times_out_and_leaves_nothing() {
    let decky = OwnDecky::start();
    let put = "cp /usr/bin/python3 /usr/bin/python3.real; rm /usr/bin/python3; printf '#!/bin/bash\\nsleep 300\\n' >/usr/bin/python3; chmod +x /usr/bin/python3";
    inside(&decky.name, &["sh", "-c", put]);
    let action = json!({"kind": "traffic", "src_uuid": "s", "src_name": decky.name, "dst_uuid": "d", "dst_name": "x", "dst_ip": "192.0.2.1"});
    // The ending goes by python first; the shell that follows it must end both.
    hang(&decky, action);
}

#[test]
fn a_plant_that_hangs_midway_leaves_no_file_and_never_does_what_it_would_have_done() {
    let decky = OwnDecky::start();
    // The watchers go on to their next command as soon as the sleeper is gone, if they are let.
    let put = "mv /usr/bin/chmod /usr/bin/chmod.real; printf '#!/bin/sh\\nmkfifo /tmp/p; sleep 30 >/tmp/p & for i in $(seq 80); do (read x </tmp/p; :> /srv/sentinel) & done; sleep 30; touch /srv/sentinel\\n' >/usr/bin/chmod; chmod.real +x /usr/bin/chmod";
    inside(&decky.name, &["sh", "-c", put]);
    inside(&decky.name, &["sh", "-c", "rm $(command -v python3)"]);
    hang(&decky, with(file(&decky.name, "/srv/f"), json!({"mode": "0755"})));
    assert_eq!(inside(&decky.name, &["ls", "-A", "/srv"]), b"");
}

#[test]
fn a_decky_where_nothing_can_be_ended_is_reported_as_unknown() {
    let decky = OwnDecky::start();
    inside(&decky.name, &["mkfifo", "/srv/fifo"]);
    let put = "printf '#!/bin/bash\\nsleep 300\\n' >/srv/s; chmod +x /srv/s; cp /srv/s /usr/bin/python3.new; rm /usr/bin/python3; mv /usr/bin/python3.new /usr/bin/python3; mv /srv/s /bin/sh";
    inside(&decky.name, &["sh", "-c", put]);
    let (_, results) =
        run(&["--timeout", TIMEOUT], &[with(file(&decky.name, "/srv/fifo"), json!({"kind": "read"}))]);
    assert_eq!(results[0]["failure"]["class"], "timeout");
    assert_eq!(results[0]["container_process"], "unknown");
    assert_eq!(clients_of(&decky.name), Vec::<String>::new());
    docker(&["kill", &format!("{}-ssh", decky.name)]);
}
