use proptest::prelude::*;

use super::*;

fn why(url: &str) -> String {
    match BrokerAddress::of(url) {
        Err(BrokerError::Address(trouble)) => trouble.why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_part_is_decoded_and_an_ipv6_address_stays_one() {
    let address = BrokerAddress::of("amqps://us%40er:p%2f%3a%25@[2001:db8::1]:1234/v%2fh").expect("valid");
    assert_eq!((address.host.as_str(), address.port, address.tls), ("2001:db8::1", 1234, true));
    assert_eq!((address.user.as_str(), address.vhost.as_str()), ("us@er", "v/h"));
    assert_eq!((address.password.0.as_str(), address.endpoint().as_str()), ("p/:%", "[2001:db8::1]:1234"));
    assert_eq!(address.to_uri().authority.host, "2001:db8::1");
    assert!(BrokerAddress::of("amqp://[::1]").expect("valid").is_local());
    let usual = BrokerAddress::of("amqp://").expect("valid");
    assert_eq!((usual.endpoint().as_str(), usual.vhost.as_str()), ("localhost:5672", "/"));
    assert_eq!(usual.user, "guest");
    assert_eq!(BrokerAddress::of("amqps://h").expect("valid").port, 5671);
    assert_eq!(BrokerAddress::of("amqp://u:p@:x@h/v").expect("valid").password.0, "p@:x");
    assert!(!format!("{address:?}").contains("p/:%"));
}

#[test]
fn each_parameter_is_honoured_or_refused() {
    let url = "amqps://h/v?cacertfile=%2fca.pem&certfile=%2fc.pem&keyfile=%2fk.pem&server_name_indication=n\
        &verify=verify_peer&fail_if_no_peer_cert=true&auth_mechanism=external&heartbeat=7\
        &connection_timeout=1500&channel_max=99&frame_max=8192";
    let address = BrokerAddress::of(url).expect("valid");
    let files = TlsFiles {
        ca: Some("/ca.pem".into()),
        cert: Some("/c.pem".into()),
        key: Some("/k.pem".into()),
        server_name: Some("n".to_owned()),
    };
    assert_eq!(address.tls_files, files);
    assert_eq!(address.connection_timeout, Some(Duration::from_millis(1500)));
    assert!(address.is_external());
    let query = address.to_uri().query;
    assert_eq!((query.heartbeat, query.channel_max, query.frame_max), (Some(7), Some(99), Some(8192)));
    assert_eq!(query.auth_mechanism, Some(SASLMechanism::External));
    for (query, said) in [
        ("verify=verify_none", "verify_peer"),
        ("fail_if_no_peer_cert=false", "can only be true"),
        ("server_name_indication=disable", "not supported"),
        ("depth=2", "depth is not supported"),
        ("password=x", "password is not supported"),
        ("heartbeat=soon", "number of seconds from 0 to 65535"),
        ("frame_max=100", "number of bytes from 4096 to 1048576"),
        ("connection_timeout=0", "milliseconds"),
        ("auth_mechanism=anonymous", "plain, amqplain or external"),
        ("heartbeat=1&heartbeat=2", "its parameter heartbeat is given twice"),
        ("heartbeat=1&hartbeat=2", "parameter 2 of its query is unknown"),
        ("certfile=c", "a client certificate needs its key"),
    ] {
        let why = why(&format!("amqps://h/v?{query}"));
        assert!(why.contains(said), "{query}: {why}");
    }
    assert!(why("amqp://h/v?cacertfile=c").contains("amqps://"));
}

#[test]
fn a_valid_url_is_shown_with_stars_for_its_password() {
    assert_eq!(without_password("amqp://u:p@h:1/%2f"), "amqp://u:***@h:1/%2f");
    assert_eq!(without_password("amqp://u:p@:x@h/v"), "amqp://u:***@h/v");
    assert_eq!(without_password("amqp://h/v"), "amqp://h/v");
}

/// The pieces of a password by which it could be known: no message has three such letters by itself.
fn pieces(password: &str) -> Vec<String> {
    let characters: Vec<char> = password.chars().collect();
    let is_telling = |piece: &&[char]| piece.iter().filter(|it| it.is_ascii_uppercase()).count() > 2;
    characters.windows(4).filter(is_telling).map(|piece| piece.iter().collect()).collect()
}

proptest! {
    #[test]
    fn no_message_shows_a_piece_of_the_password_however_the_url_is_damaged(
        password in "[JKVWXYZ0-9@:/?#%&=+ \\[\\]\\\\]{0,12}[JKVWXYZ]{4}[JKVWXYZ0-9@:/?#%&=+ \\[\\]\\\\]{0,12}",
        damage in 0..10,
        cut in 0_usize..60,
    ) {
        let encoded: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
        let encoded = encoded.replace('+', "%20");
        let url = match damage {
            0 => format!("amqp://user:{encoded}@host:5672/%2f"),
            1 => format!("amqp://user:{password}@host:5672/%2f"),
            2 => format!("user:{password}@host:5672/%2f"),
            3 => format!("http://user:{password}@host:5672/%2f"),
            4 => format!("amqp:/user:{password}@host:5672"),
            5 => format!("amqp://user:{encoded}%zz@host/"),
            6 => format!("amqp://user:{encoded}@"),
            7 => format!("amqp://user:{password}@host:port/%2f"),
            8 => format!("amqps://user:{password}@host/%2f?heartbeat={password}&{password}=1"),
            _ => {
                // One character is missing.
                let whole = format!("amqp://user:{encoded}@host:5672/%2f?heartbeat=5");
                // Without the colon after `user` it is a valid URL of a user with a long name.
                let at = Some(cut % whole.len()).filter(|at| *at != "amqp://user".len()).unwrap_or(0);
                whole.chars().enumerate().filter(|(n, _)| *n != at).map(|(_, c)| c).collect()
            }
        };
        let shown = match BrokerAddress::of(&url) {
            Ok(address) => format!("{address:?} {}", address.endpoint()),
            Err(error) => format!("{error:?} {error}"),
        };
        let shown = shown + &without_password(&url);
        for piece in pieces(&password) {
            prop_assert!(!shown.contains(&piece), "{shown} shows {piece} of {password}");
        }
    }
}
