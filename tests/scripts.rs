//! The scripts behind `make up`, `make demo` and `make test`: they end what they started, and nothing else.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use support::{docker, part, wait_until};
use uuid::Uuid;

fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The processes of brokers whose files lie at or below `folder`.
fn brokers_of(folder: &Path) -> Vec<String> {
    let variable = format!("RABBITMQ_MNESIA_BASE={}", folder.display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_of = |process: &PathBuf| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).split('\0').any(|set| set.starts_with(&variable))
    };
    let name = |process: PathBuf| std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    processes.filter(is_of).map(name).collect()
}

/// A container of the user's own, with something in its volume.
struct Precious(String);

impl Precious {
    fn start(name: &str) -> Self {
        let keep = "echo precious >/data/evidence; exec sleep 3000";
        let (label, image) = (support::label(), part("DECKSWAIN_TEST_IMAGE"));
        let run = ["run", "-d", "--name", name, "-v", "/data", "--label", &label, &image, "sh", "-c", keep];
        Self(succeeded(docker(&run)))
    }

    fn is_as_before(&self, name: &str) -> bool {
        let read = docker(&["exec", &self.0, "cat", "/data/evidence"]);
        let id = docker(&["inspect", "--format", "{{.Id}} {{.State.Running}}", name]);
        read.stdout == b"precious\n"
            && String::from_utf8_lossy(&id.stdout).trim() == format!("{} true", self.0)
    }
}

impl Drop for Precious {
    fn drop(&mut self) {
        docker(&["rm", "-f", "-v", &self.0]);
    }
}

fn runs() -> BTreeSet<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/run");
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_container_that_has_the_name_already_is_named_and_not_touched() {
    let own = Uuid::new_v4().simple().to_string();
    let (free, taken) = (format!("a{}", &own[..8]), format!("b{}", &own[..8]));
    let container = format!("{taken}-ssh");
    let precious = Precious::start(&container);
    let before = runs();
    let mut parts = script("parts");
    parts.arg("up").env("PARTS_DECKIES", format!("{free} {taken}"));
    parts.env("PARTS_OWNER", std::process::id().to_string());
    let refused = parts.output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    let told = format!("a container {container} is there already");
    assert!(
        said(&refused).contains(&told) && said(&refused).contains("PARTS_DECKIES="),
        "{}",
        said(&refused)
    );
    assert!(precious.is_as_before(&container));
    assert!(!docker(&["inspect", &format!("{free}-ssh")]).status.success(), "its own decky is left");
    let left: Vec<PathBuf> = runs().difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
    let suite = brokers_of(Path::new(&part("PARTS_DIR"))).len();
    let all = brokers_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/run/parts."));
    assert_eq!(all.len(), suite, "a broker is left: {all:?}");
}

/// `scripts/broker up`, which is ended as soon as `is_time`.
fn ended_while_it_starts(is_time: impl Fn(&Path) -> bool) {
    let folder = Path::new(&part("PARTS_DIR")).join(format!("own-broker.{}", Uuid::new_v4().simple()));
    let mut up: Child = script("broker").arg("up").arg(&folder).spawn().unwrap();
    wait_until("the broker has begun to start", || is_time(&folder));
    let pid = up.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(up.wait().unwrap().code(), Some(143));
    wait_until("no process of the broker is left", || brokers_of(&folder).is_empty());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_broker_that_is_ended_while_it_starts_leaves_no_process() {
    ended_while_it_starts(|folder| folder.join("script.pid").exists());
    ended_while_it_starts(|folder| brokers_of(folder).iter().any(|name| name.starts_with("beam")));
}
