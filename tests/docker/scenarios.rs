//! The tests, for any command of Docker Compose.

use crate::compose::{Compose, folder, read};
use anyhow::{Context, Result};
use std::{
    env, fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::{Module, envoy};

pub fn the_commands_of_the_readme_print_what_it_shows(program: &[&str]) -> Result<()> {
    let compose = Compose::new(program, Module::Wasm);
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let mut followed = 0;
    for (index, block) in readme.split("```").enumerate() {
        if index % 2 == 0 {
            continue; // prose
        }
        if let Some(commands) = block.strip_prefix("sh\n") {
            for command in commands.lines().filter(|command| command.starts_with("docker ")) {
                let (succeeded, output) = shell(&compose, command)?;
                assert!(succeeded, "{command}: {output}");
                followed += 1;
            }
        }
        if let Some(session) = block.strip_prefix("console\n") {
            for command in session.split("$ ").skip(1) {
                let (command, expected) = command.split_once('\n').context("a command must end with a line break")?;
                let started = Instant::now();
                loop {
                    let (_, output) = shell(&compose, command)?;
                    let mut lines = output.lines().map(masked);
                    let is_unexpected = expected.trim().is_empty() && !output.is_empty();
                    if !is_unexpected && expected.lines().all(|line| lines.any(|output| output == masked(line))) {
                        break;
                    }
                    // Envoy buffers its access log.
                    let may_retry = command.contains(" logs ") && started.elapsed() < testbed::DEADLINE;
                    assert!(may_retry, "{command}\nprints:\n{output}\nnot, as in README.md:\n{expected}");
                    thread::sleep(Duration::from_millis(200));
                }
                followed += 1;
            }
        }
    }
    assert!(followed > 12, "only {followed} commands were found");
    assert_eq!(compose.call(&["ps", "--quiet"])?, "", "containers are left after the last command");
    Ok(())
}

/// Runs a command of README.md. Returns whether it succeeded, and its output.
fn shell(compose: &Compose, command: &str) -> Result<(bool, String)> {
    // README.md tells users of the older program to say `docker-compose`.
    let older = r#"docker() { shift; case $1 in exec) shift; set -- exec -T "$@" ;; esac; docker-compose "$@"; }"#;
    let prelude = if compose.program.len() == 1 { older } else { "" };
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", &format!("exec 2>&1\n{prelude}\n{command}")]).current_dir(folder());
    let output = shell.stdin(Stdio::null()).output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

/// Masks the values that differ between runs: times, the ports of clients, and the size of curl's request.
fn masked(line: &str) -> String {
    let Some(json) = line.find("{\"").and_then(|start| serde_json::from_str::<serde_json::Value>(&line[start..]).ok())
    else {
        let mask = |word: &str| if word.parse::<u16>().is_ok() { "…".to_owned() } else { word.to_owned() };
        return line.split(' ').map(mask).collect::<Vec<_>>().join(" ");
    };
    let mut json = json;
    for name in ["time", "milliseconds", "received"] {
        json[name] = "…".into();
    }
    for name in ["peer", "source"] {
        let address = json[name].as_str().and_then(|address| address.parse::<std::net::SocketAddr>().ok());
        if let Some(address) = address {
            json[name] = address.ip().to_string().into();
        }
    }
    json.to_string()
}

pub fn the_destination_the_routers_and_the_counters_agree_about_each_connection(
    program: &[&str],
    module: Module,
) -> Result<()> {
    let compose = Compose::up(program, module)?;
    for _ in 0..3 {
        let output = compose.inside("application", "curl --silent --max-time 20 http://198.51.100.80")?;
        assert_eq!(output, "source=198.51.100.21 destination=198.51.100.80 port=80\n");
    }
    for _ in 0..2 {
        let output = compose.inside("application", "nc -d -w 20 2001:db8::80 25")?;
        assert_eq!(output, "source=2001:db8::22 destination=2001:db8::80 port=25\n");
    }
    let sidecar = compose.stats("sidecar")?;
    assert_eq!(envoy::value(&sidecar, "cluster.egress1.upstream_cx_total")?, 3);
    assert_eq!(envoy::value(&sidecar, "cluster.egress2.upstream_cx_total")?, 2);
    assert_eq!(envoy::value(&sidecar, "wasmcustom.sluice.routed.egress1")?, 3);
    assert_eq!(envoy::value(&sidecar, "wasmcustom.sluice.routed.egress2")?, 2);
    assert_eq!(envoy::value(&sidecar, "cluster.unrouted.upstream_cx_none_healthy")?, 0);
    for (router, connections) in [("egress-router1", 3), ("egress-router2", 2)] {
        let stats = compose.stats(router)?;
        assert_eq!(envoy::value(&stats, "cluster.clients.upstream_cx_total")?, connections, "{router}");
        assert_eq!(envoy::value(&stats, "cluster.stranger.upstream_cx_none_healthy")?, 0, "{router}");
    }
    compose.await_lines(
        "egress-router1",
        &[
            "\"source\":\"172.30.80.10:",
            "\"destination\":\"198.51.100.80:80\"",
            "\"identity\":\"spiffe://sluice.example/client\"",
        ],
        3,
    )?;
    let asked = ["\"source\":\"[fd00:172:30:80::11]:", "\"destination\":\"[2001:db8::80]:25\""];
    compose.await_lines("egress-router2", &asked, 2)?;

    for (client, egress) in [("client-even", "egress1\n"), ("client-odd", "egress2\n")] {
        assert_eq!(compose.inside(client, "nc -d -w 20 172.30.80.30 10000")?, egress);
        assert_eq!(compose.inside(client, "nc -d -w 20 fd00:172:30:80::30 10000")?, egress);
    }
    let standalone = compose.stats("standalone")?;
    assert_eq!(envoy::value(&standalone, "cluster.egress1.upstream_cx_total")?, 2);
    assert_eq!(envoy::value(&standalone, "cluster.egress2.upstream_cx_total")?, 2);
    Ok(())
}

pub fn a_stopped_router_is_replaced_by_the_second_one(program: &[&str]) -> Result<()> {
    let compose = Compose::up(program, Module::Wasm)?;
    let started = Instant::now();
    compose.call(&["stop", "egress-router2"])?;
    assert!(started.elapsed() < Duration::from_secs(30), "stopping the router took {:?}", started.elapsed());
    let get = "curl --silent --show-error --max-time 20 http://[2001:db8::80]";
    assert_eq!(compose.inside("application", get)?, "source=2001:db8::24 destination=2001:db8::80 port=80\n");
    compose.call(&["stop", "egress-router2b"])?;
    let refused = compose.inside("application", "curl --silent --show-error --max-time 20 http://[2001:db8::80]");
    let error = format!("{:#}", refused.expect_err("an answer came through a stopped router"));
    assert!(
        error.contains("(52)") || error.contains("(56)"),
        "expected curl to report an empty reply or a reset: {error}"
    );
    let output = compose.inside("application", "curl --silent --max-time 20 http://198.51.100.80")?;
    assert_eq!(output, "source=198.51.100.21 destination=198.51.100.80 port=80\n");
    compose.call(&["start", "egress-router2"])?;
    let again = "curl --silent --max-time 20 --retry 20 --retry-all-errors http://[2001:db8::80]";
    assert_eq!(compose.inside("application", again)?, "source=2001:db8::22 destination=2001:db8::80 port=80\n");
    Ok(())
}

pub fn the_file_with_prometheus_is_valid(program: &[&str]) -> Result<()> {
    let compose = Compose::with(program, "compose.prometheus.yaml");
    let services = compose.call(&["--profile", "prometheus", "config", "--services"])?;
    assert!(services.lines().any(|service| service == "prometheus"), "{services}");
    Ok(())
}

pub fn with_failover_clients_of_a_stopped_egress_use_the_other(program: &[&str]) -> Result<()> {
    let compose = Compose::up_with(program, "compose.failover.yaml")?;
    let get = "curl --silent --show-error --max-time 20 http://[2001:db8::80]";
    assert_eq!(compose.inside("application", get)?, "source=2001:db8::22 destination=2001:db8::80 port=80\n");
    compose.call(&["stop", "egress-router2", "egress-router2b"])?;
    assert_eq!(compose.inside("application", get)?, "source=2001:db8::21 destination=2001:db8::80 port=80\n");
    Ok(())
}

pub fn each_tenant_reaches_its_own_destinations_only(program: &[&str]) -> Result<()> {
    let compose = Compose::up_with(program, "compose.tenants.yaml")?;
    // The last octets are even, so both leave through egress1. Tenant A may use port 80 only.
    let (http, mail) =
        ("curl --silent --show-error --max-time 20 http://198.51.100.80", "nc -d -w 20 198.51.100.80 25");
    let answer = |port: u16| format!("source=198.51.100.21 destination=198.51.100.80 port={port}\n");
    for (application, command, expected) in [
        ("application-a", http, answer(80)),
        ("application-a", mail, String::new()),
        ("application-b", http, answer(80)),
        ("application-b", mail, answer(25)),
    ] {
        assert_eq!(compose.inside(application, command)?, expected, "{application}: {command}");
    }
    for (tenant, chain, count) in
        [("tenant-a", "tenant-a", 1), ("tenant-a", "forbidden", 1), ("tenant-b", "tenant-b", 2)]
    {
        let identity = format!("\"identity\":\"spiffe://sluice.example/{tenant}\"");
        compose.await_lines("egress-router1", &[&identity, &format!("\"chain\":\"{chain}\"")], count)?;
    }
    Ok(())
}

pub fn running_containers_are_not_root_and_have_no_capabilities(program: &[&str]) -> Result<()> {
    let _compose = Compose::up(program, Module::Wasm)?;
    let mut checked = 0;
    for container in read(Command::new("docker").args(["ps", "--quiet", "--no-trunc"]))?.lines() {
        let name = read(Command::new("docker").args(["inspect", "--format", "{{.Name}}", container]))?;
        let of = format!("container:{container}");
        let look =
            ["--user", "0", "--cap-add", "SYS_PTRACE", "sluice-tools", "cat", "/proc/1/status", "/proc/1/mounts"];
        let facts = read(Command::new("docker").args(["run", "--rm", "--pid", &of]).args(look))?;
        let fact = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let user = fact("Uid:").and_then(|ids| ids.split('\t').next());
        let is_proxy = ["envoy", "busybox", "sh"].contains(&fact("Name:").unwrap_or_default());
        let is_operator = name.contains("operator");
        assert_eq!(user, Some(if is_proxy || is_operator { "1337" } else { "65534" }), "{name}");
        for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(fact(capabilities), Some("0000000000000000"), "{name} {capabilities}");
        }
        assert_eq!(fact("NoNewPrivs:"), Some("1"), "{name}");
        let root = facts.lines().find(|line| line.split(' ').nth(1) == Some("/")).context("no mount of /")?;
        assert!(root.contains(" ro,"), "{name}: {root}");
        checked += 1;
    }
    assert_eq!(checked, 13, "the number of running containers");
    Ok(())
}

fn demo(module: Module) -> Result<Command> {
    let mut demo = Command::new(env::var_os("SLUICE_XTASK").context("make test-docker sets SLUICE_XTASK")?);
    let module = match module {
        Module::Wasm => "wasm",
        Module::Native => "native",
    };
    demo.arg("docker-demo").env("MODULE", module).current_dir(testbed::root());
    Ok(demo)
}

pub fn the_demo_shows_the_egress_of_each_source_and_changes_nothing(program: &[&str], module: Module) -> Result<()> {
    let compose = Compose::new(program, module);
    for already_up in [false, true] {
        if already_up {
            compose.call(&["up", "--detach"])?;
        }
        let before = compose.call(&["ps", "--quiet"])?;
        let shown = read(&mut demo(module)?)?;
        let rows: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words.len() == 5 && words[1].starts_with("egress"))
            .collect();
        let sources: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], row[2])).collect();
        assert_eq!(
            sources,
            [
                ("172.30.80.10", "egress1"),
                ("172.30.80.10", "egress1"),
                ("fd00:172:30:80::11", "egress2"),
                ("fd00:172:30:80::11", "egress2"),
                ("172.30.80.4", "egress1"),
                ("172.30.80.5", "egress2"),
                ("fd00:172:30:80::4", "egress1"),
                ("fd00:172:30:80::5", "egress2"),
            ],
            "{shown}"
        );
        assert!(rows.iter().all(|row| row[1] == row[2]), "{shown}");
        assert_eq!(compose.call(&["ps", "--quiet"])?, before);
    }
    Ok(())
}

pub fn the_demo_names_missing_requirements() -> Result<()> {
    let output = demo(Module::Wasm)?.env("DOCKER_HOST", "unix:///nowhere").output()?;
    let error = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && error.starts_with("error: no Docker engine answers: "), "{error}");
    let output = demo(Module::Wasm)?.env("PATH", "/nowhere").output()?;
    let error = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && error.contains("please install Docker and Docker Compose"), "{error}");
    Ok(())
}
