//! The report: a table, JSON, a chart, and the numbers in `docs/benchmarks.md`.

use crate::variant::Variant;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write, fs};
use svg::{
    Document,
    node::element::{Rectangle, Style, Text},
};
use testbed::root;

/// A measured figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// CPU time to start, with one worker.
    Load1,
    /// CPU time to start, with eight workers.
    Load8,
    /// Resident memory after that.
    Resident1,
    /// The same with eight workers.
    Resident8,
    /// CPU time for a connection.
    Connection,
    /// Connections per second.
    Saturated,
    /// CPU time for a small message.
    Small,
    /// CPU time for a large message.
    Large,
    /// Median time to the first byte.
    Median,
    /// 99th percentile of the time to the first byte.
    Slowest,
}
use Figure::{Connection, Large, Load1, Load8, Median, Resident1, Resident8, Saturated, Slowest, Small};

impl Figure {
    /// The key in the JSON, the heading in the table and the number of decimals in the table.
    fn describe(self) -> (&'static str, &'static str, usize) {
        match self {
            Load1 => ("load_cpu_ms_1_worker", "to load, 1 worker, ms", 1),
            Load8 => ("load_cpu_ms_8_workers", "8 workers, ms", 1),
            Resident1 => ("resident_mib_1_worker", "resident, 1 worker, MiB", 1),
            Resident8 => ("resident_mib_8_workers", "8 workers, MiB", 1),
            Connection => ("connection_cpu_us", "a connection, µs", 1),
            Saturated => ("connections_per_second", "connections/s", 0),
            Small => ("message_64_b_cpu_us", "64 B echoed, µs", 1),
            Large => ("message_64_kib_cpu_us", "64 KiB echoed, µs", 1),
            Median => ("first_byte_us_p50", "first byte p50, µs", 0),
            Slowest => ("first_byte_us_p99", "p99, µs", 0),
        }
    }
}

/// The median, the quartiles and the 95 % confidence interval of the median.
#[derive(Clone, Copy)]
struct Summary {
    median: f64,
    quartiles: [f64; 2],
    interval: [f64; 2],
}

impl Summary {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let rank = part * (samples.len() - 1) as f64;
            let (low, high) = (samples[rank.floor() as usize], samples[rank.ceil() as usize]);
            low + (high - low) * rank.fract()
        };
        // From the ranks of the samples, so it is valid for every distribution.
        let margin = 0.98 / (samples.len() as f64).sqrt();
        let interval = [at((0.5 - margin).max(0.0)), at((0.5 + margin).min(1.0))];
        Self { median: at(0.5), quartiles: [at(0.25), at(0.75)], interval }
    }

    fn show(self, decimals: usize) -> String {
        format!("{:.decimals$} ±{:.decimals$}", self.median, (self.interval[1] - self.interval[0]) / 2.0)
    }

    fn json(self) -> Value {
        let round = |number: f64| (number * 1e3).round() / 1e3;
        json!({
            "median": round(self.median),
            "quartiles": self.quartiles.map(round),
            "interval_95": self.interval.map(round),
        })
    }
}

struct Measured {
    name: String,
    bytes: Option<u64>,
    samples: BTreeMap<Figure, Vec<f64>>,
}

/// All samples and a description of the machine.
pub struct Report {
    machine: Value,
    variants: Vec<Measured>,
}

impl Report {
    /// A report without samples.
    pub fn new(variants: &[Variant], envoy: &str) -> Result<Self> {
        let measured = |variant: &Variant| -> Result<Measured> {
            let bytes = variant.module.as_ref().map(|path| path.metadata()).transpose()?.map(|file| file.len());
            Ok(Measured { name: variant.name.clone(), bytes, samples: BTreeMap::new() })
        };
        let variants: Result<Vec<Measured>> = variants.iter().map(measured).collect();
        Ok(Self { machine: machine(envoy)?, variants: variants? })
    }

    /// Adds a sample of a variant.
    pub fn add(&mut self, variant: usize, figure: Figure, sample: f64) {
        self.variants[variant].samples.entry(figure).or_default().push(sample);
    }

    fn summary(&self, variant: &Measured, figure: Figure) -> Option<Summary> {
        variant.samples.get(&figure).cloned().map(Summary::of)
    }

    /// The difference from no filter in each round. `None` for no filter itself, which is the first variant.
    fn added(&self, variant: &Measured, figure: Figure) -> Option<Summary> {
        let (base, samples) = (self.variants[0].samples.get(&figure)?, variant.samples.get(&figure)?);
        let added = samples.iter().zip(base).map(|(sample, base)| sample - base).collect();
        (variant.name != self.variants[0].name).then(|| Summary::of(added))
    }

    /// The figures as Markdown. CPU times are differences from no filter.
    pub fn table(&self) -> String {
        let loading = self.columns(&[Load1, Load8, Resident1, Resident8]);
        let traffic = self.columns(&[Connection, Saturated, Median, Slowest, Small, Large]);
        format!("{loading}\n{traffic}")
    }

    fn columns(&self, figures: &[Figure]) -> String {
        let figures: Vec<Figure> =
            figures.iter().copied().filter(|figure| self.variants[0].samples.contains_key(figure)).collect();
        if figures.is_empty() {
            return String::new();
        }
        let sized = figures.contains(&Load1);
        let mut table = String::from("| variant |");
        table += if sized { " bytes |" } else { "" };
        for figure in &figures {
            _ = write!(table, " {} |", figure.describe().1);
        }
        table += "\n| --- |";
        table += &" ---: |".repeat(figures.len() + usize::from(sized));
        for variant in &self.variants {
            _ = write!(table, "\n| {} |", variant.name);
            if sized {
                table += &variant.bytes.map_or(" |".into(), |bytes| format!(" {} |", thousands(bytes)));
            }
            for &figure in &figures {
                let decimals = figure.describe().2;
                let added = matches!(figure, Load1 | Load8 | Connection).then(|| self.added(variant, figure)).flatten();
                let cell = match added {
                    Some(added) => format!("{}{}", if added.median < 0.0 { "" } else { "+" }, added.show(decimals)),
                    None => self.summary(variant, figure).map_or(String::new(), |summary| summary.show(decimals)),
                };
                _ = write!(table, " {cell} |");
            }
        }
        table + "\n"
    }

    /// The minimum CPU time to load with one worker, minus that of no filter. It is steadier than the median on a busy machine.
    pub fn least(&self) -> String {
        let least = |variant: &Measured| {
            variant
                .samples
                .get(&Load1)
                .map_or(f64::NAN, |samples| samples.iter().copied().fold(f64::INFINITY, f64::min))
        };
        let base = least(&self.variants[0]);
        self.variants.iter().map(|variant| format!("{}: {:+.1}\n", variant.name, least(variant) - base)).collect()
    }

    fn json(&self) -> Value {
        let variants = self.variants.iter().map(|variant| {
            let mut figures = serde_json::Map::new();
            for &figure in variant.samples.keys() {
                let key = figure.describe().0;
                figures.extend(self.summary(variant, figure).map(|summary| (key.to_owned(), summary.json())));
                figures.extend(self.added(variant, figure).map(|added| (format!("{key}_added"), added.json())));
            }
            json!({ "name": variant.name, "bytes": variant.bytes, "figures": figures })
        });
        json!({ "machine": self.machine, "variants": variants.collect::<Vec<_>>() })
    }

    /// Prints the table and writes the report to the repository. If a peer took part, writes it to `target/` and leaves
    /// `docs/benchmarks.md` unchanged.
    pub fn write(&self, publish: bool) -> Result<()> {
        let folder = root().join(if publish { "bench" } else { "target/bench" });
        fs::create_dir_all(&folder)?;
        let table = self.table();
        print!("{table}");
        fs::write(folder.join("results.json"), serde_json::to_string_pretty(&self.json())? + "\n")?;
        svg::save(folder.join("results.svg"), &self.chart())?;
        if publish {
            let machine = |key: &str| self.machine[key].as_str().unwrap_or_default().to_owned();
            let measured = format!(
                "Measured on {} by `make bench`: {}, {}, {}, load {} before, Envoy {}.\n",
                machine("date"),
                machine("cpu"),
                machine("memory"),
                machine("kernel"),
                machine("load_before"),
                machine("envoy")
            );
            write_page(&format!("{table}\n{measured}"))?;
        }
        println!("\n{}", folder.display());
        Ok(())
    }

    /// A bar chart of the modules' sizes, the cost of loading them and the cost of a connection.
    fn chart(&self) -> Document {
        const LEFT: usize = 230;
        const WIDTH: usize = 380;
        const STEP: usize = 20;
        let mut document = Document::new().add(Style::new(
            "text{font:13px system-ui,sans-serif;fill:#57606a}.head{font-weight:600;fill:#1f2328}.bar{fill:#8c959f}.ours{fill:#1f6feb}\
             @media(prefers-color-scheme:dark){text{fill:#9198a1}.head{fill:#f0f6fc}.bar{fill:#656c76}.ours{fill:#4493f8}}",
        ));
        let mut y = 0;
        let bytes = |variant: &Measured| variant.bytes.map(|bytes| (bytes as f64, thousands(bytes)));
        let added = |figure| {
            move |variant: &Measured| {
                self.added(variant, figure).map(|added| (added.median, format!("{:+.1}", added.median)))
            }
        };
        type Bar<'a> = &'a dyn Fn(&Measured) -> Option<(f64, String)>;
        let panels: [(&str, Bar<'_>); 3] = [
            ("Module, bytes", &bytes),
            ("Envoy's CPU to load it, one worker, ms", &added(Load1)),
            ("Envoy's CPU for a connection, added, µs", &added(Connection)),
        ];
        for (head, bar) in panels {
            let bars: Vec<_> =
                self.variants.iter().filter_map(|variant| Some((&variant.name, bar(variant)?))).collect();
            let most = bars.iter().map(|(_, (value, _))| *value).fold(f64::MIN_POSITIVE, f64::max);
            y += STEP;
            document = document.add(Text::new(head).set("class", "head").set("x", 0).set("y", y));
            for (name, (value, label)) in bars {
                y += STEP;
                let width = (value.max(0.0) / most * WIDTH as f64).max(1.0).round() as usize;
                let class = if ["sluice", "native"].iter().any(|ours| name.starts_with(ours)) { "ours" } else { "bar" };
                let label = Text::new(label).set("x", LEFT + width + 6).set("y", y);
                let bar = Rectangle::new().set("class", class).set("x", LEFT).set("y", y - 11);
                document = document
                    .add(Text::new(name.as_str()).set("x", 0).set("y", y))
                    .add(bar.set("width", width).set("height", 13))
                    .add(label);
            }
            y += STEP / 2;
        }
        let (width, height) = (LEFT + WIDTH + 80, y + STEP / 2);
        document.set("viewBox", (0, 0, width, height)).set("width", width).set("height", height)
    }
}

/// Puts the text between the two marks of `docs/benchmarks.md`.
fn write_page(text: &str) -> Result<()> {
    let path = root().join("docs/benchmarks.md");
    let page = fs::read_to_string(&path)?;
    let (start, end) = ("<!-- make bench writes this -->\n", "<!-- to here -->\n");
    let (head, rest) = page.split_once(start).context("docs/benchmarks.md: no mark where the numbers begin")?;
    let (_, tail) = rest.split_once(end).context("docs/benchmarks.md: no mark where the numbers end")?;
    fs::write(path, format!("{head}{start}\n{text}\n{end}{tail}"))?;
    Ok(())
}

fn machine(envoy: &str) -> Result<Value> {
    let (cpus, memory) = (fs::read_to_string("/proc/cpuinfo")?, fs::read_to_string("/proc/meminfo")?);
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("unknown".into(), |(_, value)| value.trim().to_owned())
    };
    let kib: f64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("unknown");
    eprintln!("load of the machine before: {load}; a load much above 0 disturbs the measurement");
    let date = std::process::Command::new("date").args(["--utc", "+%F"]).output()?;
    Ok(json!({
        "date": String::from_utf8(date.stdout)?.trim(),
        "cpu": format!("{} × {}", std::thread::available_parallelism()?, field(&cpus, "model name")),
        "memory": format!("{:.0} GiB", kib / 1_048_576.0),
        "kernel": format!("Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()),
        "load_before": load,
        // The fields are commit, version, state, kind of build and TLS library.
        "envoy": envoy.split('/').nth(1).unwrap_or(envoy),
    }))
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}
