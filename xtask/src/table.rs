//! The table that the demos print: the expected egress of each source, the one that answered, and Envoy's counter.

use anyhow::{Result, ensure};
use std::net::IpAddr;

/// A table that is printed as it grows.
pub struct Table {
    rows: usize,
    wrong: usize,
}

impl Table {
    /// Prints the heading.
    pub fn begin() -> Self {
        println!("{:<20} {:<9} {:<9} Envoy's counter", "source", "expected", "answered");
        Self { rows: 0, wrong: 0 }
    }

    /// Connects and prints a row. A row is right if the egress for the source's last octet answered, and `count` counted it once.
    pub fn row(
        &mut self,
        source: IpAddr,
        answer: impl FnOnce() -> Result<String>,
        count: impl Fn(&str) -> Result<u64>,
    ) -> Result<()> {
        let last = match source {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        let expected = if last.is_multiple_of(2) { "egress1" } else { "egress2" };
        let counter = format!("cluster.{expected}.upstream_cx_total");
        let before = count(&counter)?;
        let answered = match answer() {
            Ok(answer) if answer.is_empty() => "nobody".to_owned(),
            Ok(answer) => answer,
            Err(error) => format!("{error:#}"),
        };
        let counted = count(&counter)?;
        let right = answered == expected && counted == before + 1;
        self.rows += 1;
        self.wrong += usize::from(!right);
        let mark = if right { "" } else { "  WRONG" };
        println!("{:<20} {expected:<9} {answered:<9} {counter}: {counted}{mark}", source.to_string());
        Ok(())
    }

    /// Fails and shows this log if a row was wrong.
    pub fn end(self, log: impl FnOnce() -> String) -> Result<()> {
        println!();
        ensure!(self.wrong == 0, "{} of {} connections are wrong; Envoy's log:\n{}", self.wrong, self.rows, log());
        println!("{} connections, each answered by the egress for its source.", self.rows);
        Ok(())
    }
}
