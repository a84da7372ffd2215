//! The containers of `envoy-docker/compose.yaml`, exactly as they ship, on a Docker engine of the tests' own. `make
//! test-docker` starts that, and no registry is asked: the image of Envoy is made of the pinned program and the
//! libraries that it loads, under the official image's name; the base of the tools' image is made by debootstrap.

use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use testbed::envoy;

macro_rules! tests {
    ($compose:expr) => {
        #[test]
        #[ignore = "make test-docker starts a Docker engine"]
        fn the_readme_can_be_followed_line_by_line() -> anyhow::Result<()> {
            super::the_readme_can_be_followed_line_by_line(&$compose)
        }

        #[test]
        #[ignore = "make test-docker starts a Docker engine"]
        fn destination_routers_and_counters_tell_the_same_of_each_connection() -> anyhow::Result<()> {
            super::destination_routers_and_counters_tell_the_same_of_each_connection(&$compose)
        }

        #[test]
        #[ignore = "make test-docker starts a Docker engine"]
        fn a_router_that_stops_takes_only_its_own_clients_with_it() -> anyhow::Result<()> {
            super::a_router_that_stops_takes_only_its_own_clients_with_it(&$compose)
        }

        #[test]
        #[ignore = "make test-docker starts a Docker engine"]
        fn nothing_that_stays_is_root_or_may_do_more_than_others() -> anyhow::Result<()> {
            super::nothing_that_stays_is_root_or_may_do_more_than_others(&$compose)
        }

        #[test]
        #[ignore = "make test-docker starts a Docker engine"]
        fn the_demo_shows_each_source_with_its_egress_and_leaves_all_as_it_was() -> anyhow::Result<()> {
            super::the_demo_shows_each_source_with_its_egress_and_leaves_all_as_it_was(&$compose)
        }
    };
}

mod compose_1 {
    tests!(["docker-compose"]);
}

mod compose_2 {
    tests!(["docker", "compose"]);

    #[test]
    #[ignore = "make test-docker starts a Docker engine"]
    fn a_demo_says_what_it_misses() -> anyhow::Result<()> {
        super::a_demo_says_what_it_misses()
    }
}

fn folder() -> PathBuf {
    testbed::root().join("envoy-docker")
}

/// What a command writes to its standard output, if it succeeds.
fn read(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Docker Compose at the shipped file; the tests take turns, as its addresses are fixed.
struct Compose<'a> {
    program: &'a [&'a str],
    _turn: MutexGuard<'static, ()>,
}

impl<'a> Compose<'a> {
    fn new(program: &'a [&'a str]) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        Self { program, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// With everything up.
    fn up(program: &'a [&'a str]) -> Result<Self> {
        let compose = Self::new(program);
        compose.call(&["up", "--detach"])?;
        for router in ["egress-router1", "egress-router2"] {
            compose.inside(
                "client-even",
                &format!("curl --silent --fail --retry 20 --retry-connrefused {router}:8082/ready"),
            )?;
        }
        Ok(compose)
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.program[0]);
        read(command.args(&self.program[1..]).args(arguments).current_dir(folder()))
    }

    /// What a command, whose words are separated by spaces, says in a service's container.
    fn inside(&self, service: &str, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        self.call(&[&["exec", "-T", service], &words[..]].concat())
    }

    fn container(&self, service: &str) -> Result<String> {
        Ok(self.call(&["ps", "--quiet", service])?.trim().to_owned())
    }

    /// What Envoy's admin interface says of counters, in the network namespace of this service.
    fn stats(&self, service: &str) -> Result<String> {
        let network = format!("container:{}", self.container(service)?);
        let get = ["sluice-tools", "curl", "--silent", "--fail", "127.0.0.1:9901/stats"];
        read(Command::new("docker").args(["run", "--rm", "--network", &network]).args(get))
    }

    /// Waits until this many lines of a service's log hold all of these.
    fn await_lines(&self, service: &str, words: &[&str], times: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            let log = self.call(&["logs", "--no-color", service])?;
            let found = log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
            if found == times {
                return Ok(());
            }
            ensure!(started.elapsed() < testbed::DEADLINE, "{words:?} stand {found} times, not {times}, in:\n{log}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        // Where this fails the next test fails too, at bringing it up.
        _ = self.call(&["down", "--volumes"]);
    }
}

fn the_readme_can_be_followed_line_by_line(program: &[&str]) -> Result<()> {
    let compose = Compose::new(program);
    let readme = fs::read_to_string(folder().join("README.md"))?;
    let mut followed = 0;
    for (index, block) in readme.split("```").enumerate() {
        if index % 2 == 0 {
            continue; // prose
        }
        if let Some(commands) = block.strip_prefix("sh\n") {
            for command in commands.lines().filter(|command| command.starts_with("docker ")) {
                let (succeeded, said) = shell(&compose, command)?;
                assert!(succeeded, "{command}: {said}");
                followed += 1;
            }
        }
        if let Some(session) = block.strip_prefix("console\n") {
            for command in session.split("$ ").skip(1) {
                let (command, expected) = command.split_once('\n').context("a command without an end")?;
                let started = Instant::now();
                loop {
                    let (_, said) = shell(&compose, command)?;
                    let mut lines = said.lines().map(masked);
                    let silence = expected.trim().is_empty() && !said.is_empty();
                    if !silence && expected.lines().all(|line| lines.any(|said| said == masked(line))) {
                        break;
                    }
                    // Envoy writes its access log now and then.
                    let patience = command.contains(" logs ") && started.elapsed() < testbed::DEADLINE;
                    assert!(patience, "{command}\nsays:\n{said}\nand not, as README.md has it:\n{expected}");
                    thread::sleep(Duration::from_millis(200));
                }
                followed += 1;
            }
        }
    }
    assert!(followed > 12, "only {followed} commands were found");
    assert_eq!(compose.call(&["ps", "--quiet"])?, "", "the last command leaves nothing behind");
    Ok(())
}

/// Whether a line of README.md succeeds, and all that it says.
fn shell(compose: &Compose, command: &str) -> Result<(bool, String)> {
    // README.md says what is different with the older program.
    let older = r#"docker() { shift; case $1 in exec) shift; set -- exec -T "$@" ;; esac; docker-compose "$@"; }"#;
    let prelude = if compose.program.len() == 1 { older } else { "" };
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", &format!("exec 2>&1\n{prelude}\n{command}")]).current_dir(folder());
    let output = shell.stdin(Stdio::null()).output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

/// A line without what is different each time: times, the ports of clients, the length of what curl asks.
fn masked(line: &str) -> String {
    let mask = |word: &str| match word.split_once('=') {
        None if word.ends_with('Z') || word.parse::<u16>().is_ok() => "…".to_owned(),
        Some((name @ ("milliseconds" | "received"), _)) => format!("{name}=…"),
        Some((name @ ("peer" | "source"), address)) => match address.parse::<std::net::SocketAddr>() {
            Ok(address) => format!("{name}={}", address.ip()),
            Err(_) => word.to_owned(),
        },
        _ => word.to_owned(),
    };
    line.split(' ').map(mask).collect::<Vec<_>>().join(" ")
}

fn destination_routers_and_counters_tell_the_same_of_each_connection(program: &[&str]) -> Result<()> {
    let compose = Compose::up(program)?;
    for _ in 0..3 {
        let said = compose.inside("application", "curl --silent --max-time 20 http://198.51.100.80")?;
        assert_eq!(said, "source=198.51.100.21 destination=198.51.100.80 port=80\n");
    }
    for _ in 0..2 {
        let said = compose.inside("application", "nc -d -w 20 2001:db8::80 25")?;
        assert_eq!(said, "source=2001:db8::22 destination=2001:db8::80 port=25\n");
    }
    let sidecar = compose.stats("sidecar")?;
    assert_eq!(envoy::value(&sidecar, "cluster.egress1.upstream_cx_total")?, 3);
    assert_eq!(envoy::value(&sidecar, "cluster.egress2.upstream_cx_total")?, 2);
    assert_eq!(envoy::value(&sidecar, "wasmcustom.sluice.routed.egress1")?, 3);
    assert_eq!(envoy::value(&sidecar, "wasmcustom.sluice.routed.egress2")?, 2);
    assert_eq!(envoy::value(&sidecar, "cluster.unrouted.upstream_cx_none_healthy")?, 0);
    for (router, connections) in [("egress-router1", 3), ("egress-router2", 2)] {
        let stats = compose.stats(router)?;
        assert_eq!(envoy::value(&stats, "cluster.destination.upstream_cx_total")?, connections, "{router}");
        assert_eq!(envoy::value(&stats, "cluster.stranger.upstream_cx_none_healthy")?, 0, "{router}");
    }
    compose.await_lines(
        "egress-router1",
        &[" source=172.30.80.10:", " destination=198.51.100.80:80 ", " flags=- "],
        3,
    )?;
    let asked = [" source=[fd00:172:30:80::11]:", " destination=[2001:db8::80]:25 ", " flags=- "];
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

fn a_router_that_stops_takes_only_its_own_clients_with_it(program: &[&str]) -> Result<()> {
    let compose = Compose::up(program)?;
    compose.call(&["stop", "egress-router2"])?;
    let refused = compose.inside("application", "curl --silent --show-error --max-time 20 http://[2001:db8::80]");
    let why = format!("{:#}", refused.expect_err("an answer came by a router that is down"));
    assert!(why.contains("(52)") || why.contains("(56)"), "it was not closed: {why}"); // nothing came, or a reset
    let said = compose.inside("application", "curl --silent --max-time 20 http://198.51.100.80")?;
    assert_eq!(said, "source=198.51.100.21 destination=198.51.100.80 port=80\n");
    compose.call(&["start", "egress-router2"])?;
    let again = "curl --silent --max-time 20 --retry 20 --retry-all-errors http://[2001:db8::80]";
    assert_eq!(compose.inside("application", again)?, "source=2001:db8::22 destination=2001:db8::80 port=80\n");
    Ok(())
}

fn nothing_that_stays_is_root_or_may_do_more_than_others(program: &[&str]) -> Result<()> {
    let _compose = Compose::up(program)?;
    let mut seen = 0;
    for container in read(Command::new("docker").args(["ps", "--quiet", "--no-trunc"]))?.lines() {
        let name = read(Command::new("docker").args(["inspect", "--format", "{{.Name}}", container]))?;
        let of = format!("container:{container}");
        let look =
            ["--user", "0", "--cap-add", "SYS_PTRACE", "sluice-tools", "cat", "/proc/1/status", "/proc/1/mounts"];
        let facts = read(Command::new("docker").args(["run", "--rm", "--pid", &of]).args(look))?;
        let fact = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let user = fact("Uid:").and_then(|ids| ids.split('\t').next());
        let envoy = fact("Name:") == Some("envoy");
        assert_eq!(user, Some(if envoy { "1337" } else { "65534" }), "{name}");
        for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(fact(capabilities), Some("0000000000000000"), "{name} {capabilities}");
        }
        assert_eq!(fact("NoNewPrivs:"), Some("1"), "{name}");
        let root = facts.lines().find(|line| line.split(' ').nth(1) == Some("/")).context("no root in the mounts")?;
        assert!(root.contains(" ro,"), "{name}: {root}");
        seen += 1;
    }
    assert_eq!(seen, 10, "containers that stay");
    Ok(())
}

fn demo() -> Result<Command> {
    let mut demo = Command::new(env::var_os("SLUICE_XTASK").context("make test-docker sets SLUICE_XTASK")?);
    demo.arg("docker-demo").current_dir(testbed::root());
    Ok(demo)
}

fn the_demo_shows_each_source_with_its_egress_and_leaves_all_as_it_was(program: &[&str]) -> Result<()> {
    let compose = Compose::new(program);
    for already_up in [false, true] {
        if already_up {
            compose.call(&["up", "--detach"])?;
        }
        let before = compose.call(&["ps", "--quiet"])?;
        let shown = read(&mut demo()?)?;
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

fn a_demo_says_what_it_misses() -> Result<()> {
    let output = demo()?.env("DOCKER_HOST", "unix:///nowhere").output()?;
    let why = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && why.starts_with("error: no Docker engine answers: "), "{why}");
    let output = demo()?.env("PATH", "/nowhere").output()?;
    let why = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && why.contains("please install Docker and Docker Compose"), "{why}");
    Ok(())
}
