//! The broker's URL: the address that is connected to, and a password that nothing shows.

mod support;

use std::io::Read as _;
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::own_broker::User;
use support::part;
use support::tool::text;

/// `deckswain` in a folder without a settings file.
fn tool(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
    command.args(arguments).current_dir(folder).env_remove("DECKSWAIN_BROKER").stdin(Stdio::null());
    command.envs(variables.iter().copied()).output().unwrap()
}

fn shown(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn an_ipv6_address_in_the_url_is_the_one_that_is_connected_to() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Whoever listens at the same port of 127.0.0.1 must get no user and no password.
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    other.set_nonblocking(true).unwrap();
    let url = format!("amqp://guest:guest@[::1]:{port}/%2f");
    let asking =
        std::thread::spawn(move || tool(Path::new("/"), &["topology"], &[("DECKSWAIN_BROKER", &url)]));
    let mut header = [0; 8];
    let (mut client, _) = listener.accept().unwrap();
    client.read_exact(&mut header).unwrap();
    assert_eq!(&header, b"AMQP\0\0\x09\x01");
    drop(client);
    let said = shown(&asking.join().unwrap());
    assert!(said.contains(&format!("connect to the broker at [::1]:{port}")), "{said}");
    assert!(other.accept().is_err(), "127.0.0.1 was asked as well");
}

#[test]
fn a_password_is_in_no_output_of_any_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broker");
    let urls = [
        "amqp://user:Zw9-Geheim@127.0.0.1:1/%2f",
        "amqp://user:Zw9-Geheim/x@127.0.0.1:1/%2f",
        "user:Zw9-Geheim@127.0.0.1:1",
        "amqp://user:Zw9-Geheim%@127.0.0.1:1",
        "amqp:user:Zw9-Geheim",
        "amqp://user:12/Zw9-Geheim@127.0.0.1/",
    ];
    let commands: [&[&str]; 6] = [
        &["config"],
        &["config", "--json"],
        &["check", "--container-cli", "true"],
        &["topology"],
        &["dead-letters", "list"],
        &["results"],
    ];
    for url in urls {
        for arguments in commands {
            let variables = [("DECKSWAIN_BROKER", url), ("DECKSWAIN_LOG", "trace")];
            let told = shown(&tool(folder.path(), arguments, &variables));
            assert!(!told.is_empty() && !told.contains("Geheim"), "{arguments:?}: {told}");
        }
        for arguments in [&["topology", url][..], &[url], &["worker", "--brokr", url], &["submit", "a", url]]
        {
            let told = tool(folder.path(), arguments, &[]);
            assert_eq!(told.status.code(), Some(2));
            assert!(!shown(&told).contains("Geheim"), "{arguments:?}: {}", shown(&told));
        }
        std::fs::write(&file, url).unwrap();
        let variables = [("DECKSWAIN_BROKER_FILE", file.to_str().unwrap())];
        let help = shown(&tool(folder.path(), &["worker", "--help"], &variables));
        assert!(help.contains("--broker <URL>") && !help.contains("Geheim"), "{help}");
    }
}

#[test]
fn the_log_of_a_login_at_its_finest_level_holds_no_password() {
    let user = User::named(&format!("log-{}", uuid::Uuid::new_v4().simple()));
    user.may(".*", ".*", ".*");
    let url = user.url(&part("DECKSWAIN_BROKER"));
    let variables =
        [("DECKSWAIN_BROKER", url.as_str()), ("DECKSWAIN_LOG", "trace"), ("DECKSWAIN_PREFIX", "none")];
    let output = tool(Path::new("/"), &["topology"], &variables);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "the login works, and nothing is declared: {said}");
    assert!(said.contains("lapin"), "the client library logs: {said}");
    assert!(!said.contains("StartOk") && !said.contains("pw"), "{said}");
}

#[test]
fn a_broker_file_that_every_user_can_read_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broker");
    std::fs::write(&file, "amqp://u:p@127.0.0.1:1/%2f\n").unwrap();
    for (mode, is_warned) in [(0o644, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let variables = [("DECKSWAIN_BROKER_FILE", file.to_str().unwrap())];
        let said = shown(&tool(folder.path(), &["config"], &variables));
        let warning = "every user of this host can read the broker's URL";
        assert_eq!(said.contains(warning), is_warned, "{mode:o}: {said}");
    }
}
