use super::*;

fn layers(sources: &[&str], environment: &[(&str, &str)]) -> Layers {
    let sources = Sources {
        flags: sources.iter().map(ToString::to_string).collect(),
        environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        file: None,
    };
    Layers::new(&sources).expect("layers")
}

const PORTAL: [&str; 3] =
    ["portal.base_url=http://127.0.0.1:8080", "portal.token=t-123", "portal.secret_key=s-456"];

fn with_portal(more: &[&str]) -> Layers {
    layers(&[&PORTAL[..], more].concat(), &[])
}

fn mistakes(layers: &Layers) -> String {
    Config::load(layers, Needs::Portal).expect_err("mistakes").to_string()
}

#[test]
fn the_defaults_lack_only_what_has_no_default() {
    let text = mistakes(&layers(&[], &[]));
    let keys: Vec<&str> =
        text.lines().skip(1).filter_map(|line| line.trim().split(':').next()).collect();
    assert_eq!(keys, ["portal.base_url", "portal.token", "portal.secret_key"], "{text}");
    assert!(Config::load(&layers(&[], &[]), Needs::Broker).is_ok());
    let config = Config::load(&with_portal(&[]), Needs::Portal).expect("complete");
    let url = config.portal.url.expect("set").to_string();
    assert_eq!(url, "http://127.0.0.1:8080/airpay/ms/cards/api/update-customer");
}

#[test]
fn all_mistakes_are_told_at_once_with_key_source_and_way_out() {
    let layers = layers(
        &["worker.in_flight=none", "worker.in_flightt=3", "retry.first_delay=9d"],
        &[("CUSTOMER_RELAY__BROKER__DECLARE", "maybe"), ("PATH", "/bin")],
    );
    let text = mistakes(&layers);
    for part in [
        "worker.in_flight (--set): expected an integer from 1 to 2000",
        "worker.in_flightt (--set): unknown setting; [worker] has grace_period, in_flight",
        "broker.declare (environment CUSTOMER_RELAY__BROKER__DECLARE): expected \"apply\" or",
        "retry.first_delay",
        "portal.base_url: not set",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn deliveries_are_held_until_a_control_call_can_tell_something() {
    let text = mistakes(&with_portal(&["outage.hold=10s", "outage.witness_wait=10s"]));
    assert!(text.contains("outage.hold (--set): must exceed outage.witness_wait"), "{text}");
}

#[test]
fn what_may_be_in_hand_is_bounded_in_bytes() {
    let settings = ["broker.prefetch=8", "worker.in_flight=2", "event.max_bytes=1000"];
    let with = |bytes| [&settings[..], &[bytes]].concat();
    let text = mistakes(&with_portal(&with("worker.max_bytes_in_hand=9999")));
    assert!(text.contains("worker.max_bytes_in_hand (--set): must hold"), "{text}");
    assert!(text.contains("10000 or more"), "{text}");
    let layers = with_portal(&with("worker.max_bytes_in_hand=10000"));
    assert!(Config::load(&layers, Needs::Portal).is_ok());
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, "[worker]\nin_flight = 1\n[broker]\nprefetch = 1\nprefix = \"f\"\n")
        .expect("written");
    let environment =
        [("CUSTOMER_RELAY__BROKER__PREFETCH", "2"), ("CUSTOMER_RELAY__WORKER__IN_FLIGHT", "2")];
    let sources = Sources {
        file: Some(file),
        environment: environment.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
        flags: vec!["worker.in_flight=3".into()],
    };
    let layers = Layers::new(&sources).expect("layers");
    let config = Config::load(&layers, Needs::Broker).expect("no mistakes");
    assert_eq!((config.worker.in_flight, config.broker.prefetch), (3, 2));
    assert_eq!(config.broker.topology.work_queue(), "f.work");
}

#[test]
fn secrets_are_never_shown() {
    let layers = with_portal(&["broker.url=amqp://crm:hunter2@127.0.0.1/x,amqp://b:hunter2@h/"]);
    let shown = format!("{}{}", layers.to_toml(), layers.to_json());
    for secret in ["t-123", "s-456", "hunter2"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    assert!(shown.contains("amqp://crm:***@127.0.0.1/x"));
    let config = Config::load(&layers, Needs::Portal).expect("complete");
    assert!(!format!("{config:?}").contains("456"));
    let text = mistakes(&with_portal(&["broker.url=hunter2", "portal.token=hun ter2"]));
    assert!(!text.contains("ter2"), "{text}");
}

#[test]
fn a_secret_comes_from_a_file_less_one_newline() {
    use secrecy::ExposeSecret;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    std::fs::write(&path, "key \n\n").expect("written");
    let file = format!("portal.secret_key_file={}", path.display());
    let both = mistakes(&with_portal(&[&file]));
    assert!(both.contains("portal.secret_key (--set): set together with"), "{both}");
    let layers = layers(&[PORTAL[0], PORTAL[1], &file], &[]);
    let config = Config::load(&layers, Needs::Portal).expect("complete");
    assert_eq!(config.portal.secret_key.value.expose_secret(), "key \n");
}

#[test]
fn the_base_url_is_safe_or_refused() {
    for (url, problem) in [
        ("http://portal.example.com", "must be https"),
        ("ftp://127.0.0.1", "must be https"),
        ("https://u:p@portal.example.com", "user or password"),
        ("https://portal.example.com/?x=1", "query"),
        ("https://portal.example.com/airpay/ms/cards/api/update-customer/", "is appended"),
        ("portal", "not a URL"),
    ] {
        let error = portal_url(url).expect_err(url);
        assert!(error.contains(problem), "{url}: {error}");
    }
    assert!(portal_url("http://[::1]:8080/").is_ok());
    let based = portal_url("https://portal.example.com/base/").expect("a URL");
    assert_eq!(based.path(), "/base/airpay/ms/cards/api/update-customer");
}
