//! Runs the example `explain` as a user does.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const CONFIG: &str = "tests/data/example.json";

/// Runs the example. A plain `cargo test` builds it before the tests run; `cargo test --test native` does not.
fn explain(arguments: &[&str]) -> Output {
    let test = env::current_exe().unwrap();
    let program: PathBuf = test.parent().and_then(Path::parent).unwrap().join("examples/explain");
    Command::new(program).args(arguments).current_dir(testbed::root()).output().unwrap()
}

fn explained(arguments: &[&str]) -> String {
    let output = explain(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn rejected(arguments: &[&str]) -> String {
    let output = explain(arguments);
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn explain_names_the_matching_route_and_why_others_do_not_match() {
    assert_eq!(
        explained(&[CONFIG, "10.1.0.5", "198.51.100.7:80", "a.example.com"]),
        "routes[0]: matches\ncluster egress3\n"
    );
    assert_eq!(
        explained(&[CONFIG, "10.1.0.5:1234", "10.96.0.1:443"]),
        "routes[0]: destination does not match\nroutes[1]: destination_ports does not match\nroutes[2]: matches\n\
         continue: tcp_proxy's own cluster\n"
    );
    assert_eq!(explained(&[CONFIG, "2001:db8::5", "[2001:db8::7]:25"]).lines().last(), Some("deny"));
    assert_eq!(explained(&[CONFIG, "10.1.0.5", "-"]), "on_error: deny, because the destination is not an IP address\n");
    for source in ["2001:db8:1:2:3:4:5:6", "[2001:db8:1:2:3:4:5:6]:7", "::ffff:10.0.0.8"] {
        assert_eq!(explained(&["standalone", source, "10.0.0.1"]), "routes[0]: matches\ncluster egress1\n", "{source}");
    }
    assert_eq!(explained(&["istio", "10.0.0.2", "198.51.100.7:443"]).lines().count(), 3);
}

#[test]
fn explain_decides_a_list_of_connections() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("connections");
    std::fs::write(&list, "10.1.0.5 198.51.100.7:80 a.example.com\n\n10.1.0.5 198.51.100.7:25\n- 198.51.100.7:25\n")
        .unwrap();
    assert_eq!(
        explained(&["--table", CONFIG, list.to_str().unwrap()]),
        "10.1.0.5 198.51.100.7:80 a.example.com\troutes[0]\tcluster egress3\n\
         10.1.0.5 198.51.100.7:25\troutes[1]\tdeny\n\
         - 198.51.100.7:25\t-\ton_error: deny, because the source is not an IP address\n"
    );
    std::fs::write(&list, "10.1.0.5 198.51.100.7:80\n10.1.0.5\n").unwrap();
    let list = list.to_str().unwrap();
    assert_eq!(rejected(&["--table", CONFIG, list]), format!("{list}:2: expected SOURCE DESTINATION [SNI]\n"));
}

#[test]
fn explain_says_that_the_mode_observe_applies_no_decision() {
    let folder = tempfile::tempdir().unwrap();
    let (config, list) = (folder.path().join("config.json"), folder.path().join("connections"));
    std::fs::write(&config, r#"{"routes": [{"clusters": ["a", "b"]}], "otherwise": "deny", "mode": "observe"}"#)
        .unwrap();
    std::fs::write(&list, "- 10.0.0.9\n").unwrap();
    let (config, list) = (config.to_str().unwrap(), list.to_str().unwrap());
    assert_eq!(
        explained(&[config, "10.0.0.3", "10.0.0.9"]),
        "routes[0]: matches\ncluster b (not applied: mode is observe)\n"
    );
    assert_eq!(
        explained(&["--table", config, list]),
        "- 10.0.0.9\t-\ton_error: deny, because the source is not an IP address (not applied: mode is observe)\n"
    );
}

#[test]
fn explain_reports_errors_as_the_module_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, r#"{"routes": [{"action": "drop"}]}"#).unwrap();
    assert_eq!(
        rejected(&[config.to_str().unwrap(), "10.0.0.2", "10.0.0.3"]),
        "sluice: plugin configuration: routes[0].action: \"drop\", expected one of: continue deny\n"
    );
    assert_eq!(rejected(&[CONFIG, "10.0.0.256", "10.0.0.3"]), "SOURCE: 10.0.0.256 is not an IP address\n");
    let port = "is not an IP address and port; a route asks for the port\n";
    assert_eq!(rejected(&[CONFIG, "10.0.0.2", "nowhere"]), format!("DESTINATION: nowhere {port}"));
    assert_eq!(rejected(&[CONFIG, "10.0.0.2", "10.0.0.3"]), format!("DESTINATION: 10.0.0.3 {port}"));
    assert_eq!(rejected(&["standalone", "10.0.0.2", "nowhere"]), "DESTINATION: nowhere is not an IP address\n");
    assert!(rejected(&["nowhere.json", "10.0.0.2", "10.0.0.3"]).starts_with("nowhere.json: No such file"));
    assert!(rejected(&[]).starts_with("usage: explain CONFIG SOURCE DESTINATION [SNI]"));
}
