//! `make bench`: the cost of loading the module and of routing a connection in a real Envoy, compared with alternatives.
//! The variants take turns for several rounds. The report contains medians and confidence intervals.

mod echo;
mod measure;
mod report;
mod variant;

use anyhow::{Context, Result, bail};
use measure::{Connections, Running};
use report::{Figure, Report};
use std::{env, net::SocketAddr, path::Path, process::ExitCode, time::Duration};
use testbed::{config, envoy};
use variant::Variant;

const WORKERS: [(u32, Figure, Figure); 2] =
    [(1, Figure::Load1, Figure::Resident1), (8, Figure::Load8, Figure::Resident8)];

/// The numbers of routes of the measured tables.
const ROUTES: [usize; 3] = [10, 100, 1_000];
/// The same for the native module.
const NATIVE_ROUTES: [usize; 2] = [10, 1_000];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let folder = tempfile::tempdir()?;
    let mut variants = vec![Variant::none(), Variant::floor(folder.path())?];
    match *arguments {
        // For tuning: measures only the loading, of any modules.
        ["load", ref modules @ ..] => {
            for module in modules {
                variants.push(Variant::module((*module).into(), module.as_ref(), "")?);
            }
            let mut bench = Bench::new(variants)?;
            bench.load(rounds(21)?)?;
            print!(
                "{}\nminimum CPU time to load, 1 worker, minus that of no filter, ms:\n{}",
                bench.report.table(),
                bench.report.least()
            );
        }
        ["limits", ref modules @ ..] => {
            let table = config::table_at_limits();
            for (name, module) in ["sluice", "native"].into_iter().zip(modules) {
                for (kind, configuration) in [("preset", ""), ("all limits", &*table)] {
                    variants.push(Variant::module(format!("{name}, {kind}"), module.as_ref(), configuration)?);
                }
            }
            let mut bench = Bench::new(variants)?;
            bench.load(rounds(15)?)?;
            bench.traffic(rounds(15)?)?;
            print!("{}", bench.report.table());
        }
        [shipped, direct, plain, native] => {
            let [shipped, direct, plain, native] = [shipped, direct, plain, native].map(Path::new);
            variants.insert(1, Variant::cel());
            variants.push(Variant::module("plain cargo build, preset".into(), plain, "")?);
            variants.push(Variant::module("preset, calls inlined by V8".into(), direct, "")?);
            variants.push(Variant::module("sluice, preset".into(), shipped, "")?);
            for routes in ROUTES {
                let table = config::table_of(routes);
                variants.push(Variant::module(format!("sluice, {routes} routes"), shipped, &table)?);
            }
            variants.push(Variant::module("native, preset".into(), native, "")?);
            for routes in NATIVE_ROUTES {
                let table = config::table_of(routes);
                variants.push(Variant::module(format!("native, {routes} routes"), native, &table)?);
            }
            let peers = Variant::peers()?;
            let ours_alone = peers.is_empty();
            variants.extend(peers);
            let mut bench = Bench::new(variants)?;
            bench.load(rounds(15)?)?;
            bench.traffic(rounds(15)?)?;
            bench.report.write(ours_alone)?;
        }
        _ => bail!(
            "usage: bench SHIPPED DIRECT-CALLS PLAIN NATIVE | bench load MODULE… | bench limits SHIPPED NATIVE; ROUNDS=number"
        ),
    }
    Ok(())
}

fn rounds(usual: usize) -> Result<usize> {
    match env::var("ROUNDS") {
        Ok(rounds) => rounds.parse().with_context(|| format!("ROUNDS: {rounds:?}, expected a number")),
        Err(_) => Ok(usual),
    }
}

struct Bench {
    program: std::path::PathBuf,
    backends: [SocketAddr; 2],
    variants: Vec<Variant>,
    report: Report,
}

impl Bench {
    fn new(variants: Vec<Variant>) -> Result<Self> {
        let program = envoy::program()?;
        let report = Report::new(&variants, &envoy::version(&program)?)?;
        Ok(Self { program, backends: [echo::start(b'1')?, echo::start(b'2')?], variants, report })
    }

    fn start(&self, variant: &Variant, workers: u32) -> Result<Running> {
        Running::start(&self.program, variant, self.backends, workers)
    }

    /// Measures the CPU time until Envoy is idle, and its memory then.
    fn load(&mut self, rounds: usize) -> Result<()> {
        for round in 0..rounds {
            eprintln!("loading, round {} of {rounds}", round + 1);
            for (workers, cpu, resident) in WORKERS {
                for index in turns(self.variants.len(), round) {
                    let running = self.start(&self.variants[index], workers)?;
                    self.report.add(index, cpu, running.cpu()?.as_secs_f64() * 1e3);
                    self.report.add(index, resident, running.resident()?);
                }
            }
        }
        Ok(())
    }

    /// Measures connections. All variants run at once, each with one worker, and take turns.
    fn traffic(&mut self, rounds: usize) -> Result<()> {
        let running: Result<Vec<Running>> = self.variants.iter().map(|variant| self.start(variant, 1)).collect();
        let running = running?;
        for envoy in &running {
            envoy.connections(2_000)?; // warms up
        }
        // Takes short samples of each variant in turn, so that other load on the machine affects all variants alike. The CPU time
        // for a connection differs least between variants, so it gets the shortest samples, and the most.
        for round in 0..rounds * 20 {
            if round.is_multiple_of(20) {
                eprintln!("connections, round {} of {rounds}", round / 20 + 1);
            }
            for index in turns(running.len(), round) {
                self.report.add(index, Figure::Connection, running[index].connections(200)?.cpu);
            }
        }
        for round in 0..rounds {
            eprintln!("traffic, round {} of {rounds}", round + 1);
            for index in turns(running.len(), round) {
                let Connections { latencies, .. } = running[index].connections(2_000)?;
                let percentile = |of_hundred: usize| latencies[latencies.len() * of_hundred / 100];
                self.report.add(index, Figure::Median, percentile(50));
                self.report.add(index, Figure::Slowest, percentile(99));
            }
            for index in turns(running.len(), round) {
                self.report.add(index, Figure::Small, running[index].echo(64, 4_000)?);
            }
            for index in turns(running.len(), round) {
                self.report.add(index, Figure::Large, running[index].echo(echo::LARGE, 500)?);
            }
            for index in turns(running.len(), round) {
                let a_second = running[index].saturated(4, Duration::from_secs(1))?;
                self.report.add(index, Figure::Saturated, a_second);
            }
        }
        Ok(())
    }
}

/// Each index once, in an order that starts with a different index in each round.
fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + round) % count)
}
