//! The example `explain`, run as a user does.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const CONFIG: &str = "tests/data/example.json";

/// Cargo builds the examples of a package before it runs its tests.
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

fn refused(arguments: &[&str]) -> String {
    let output = explain(arguments);
    assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_route_and_why_the_others_do_not_match() {
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
    assert_eq!(explained(&[CONFIG, "10.1.0.5", "-"]), "on_error: deny, as the destination is no IP address\n");
    for source in ["2001:db8:1:2:3:4:5:6", "[2001:db8:1:2:3:4:5:6]:7", "::ffff:10.0.0.8"] {
        assert_eq!(explained(&["standalone", source, "10.0.0.1"]), "routes[0]: matches\ncluster egress1\n", "{source}");
    }
    assert_eq!(explained(&["istio", "10.0.0.2", "198.51.100.7:443"]).lines().count(), 3);
}

#[test]
fn a_list_of_connections() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("connections");
    std::fs::write(&list, "10.1.0.5 198.51.100.7:80 a.example.com\n\n10.1.0.5 198.51.100.7:25\n- 198.51.100.7:25\n")
        .unwrap();
    assert_eq!(
        explained(&["--table", CONFIG, list.to_str().unwrap()]),
        "10.1.0.5 198.51.100.7:80 a.example.com\troutes[0]\tcluster egress3\n\
         10.1.0.5 198.51.100.7:25\troutes[1]\tdeny\n\
         - 198.51.100.7:25\t-\ton_error: deny, as the source is no IP address\n"
    );
    std::fs::write(&list, "10.1.0.5 198.51.100.7:80\n10.1.0.5\n").unwrap();
    let list = list.to_str().unwrap();
    assert_eq!(refused(&["--table", CONFIG, list]), format!("{list}:2: not SOURCE DESTINATION [SNI]\n"));
}

#[test]
fn what_is_wrong_is_told_in_the_modules_words() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, r#"{"routes": [{"action": "drop"}]}"#).unwrap();
    assert_eq!(
        refused(&[config.to_str().unwrap(), "10.0.0.2", "10.0.0.3"]),
        "sluice: plugin configuration: routes[0].action: \"drop\" is neither continue nor deny\n"
    );
    assert_eq!(refused(&[CONFIG, "10.0.0.256", "10.0.0.3"]), "SOURCE: 10.0.0.256 is no IP address\n");
    let port = "is no IP address and port, and a route asks for the port\n";
    assert_eq!(refused(&[CONFIG, "10.0.0.2", "nowhere"]), format!("DESTINATION: nowhere {port}"));
    assert_eq!(refused(&[CONFIG, "10.0.0.2", "10.0.0.3"]), format!("DESTINATION: 10.0.0.3 {port}"));
    assert_eq!(refused(&["standalone", "10.0.0.2", "nowhere"]), "DESTINATION: nowhere is no IP address\n");
    assert!(refused(&["nowhere.json", "10.0.0.2", "10.0.0.3"]).starts_with("nowhere.json: No such file"));
    assert!(refused(&[]).starts_with("usage: explain CONFIG SOURCE DESTINATION [SNI]"));
}
