//! Queries of the admin interface of a sidecar's Envoy.

use crate::pod::{Pod, list};
use anyhow::{Context, Result};
use serde_json::Value;

/// Returns the answer of the admin interface to a path.
pub fn admin(pod: &Pod, path: &str) -> Result<String> {
    pod.host.run(|| crate::get(&format!("http://127.0.0.1:15000{path}")))
}

/// Returns the configuration of the filter that Envoy received by discovery.
pub fn extension(pod: &Pod) -> Result<Value> {
    let dump: Value = serde_json::from_str(&admin(pod, "/config_dump")?)?;
    let filters: Vec<Value> =
        list(&dump, "/configs").into_iter().flat_map(|config| list(&config, "/ecds_filters")).collect();
    let found = filters.iter().find(|filter| filter["ecds_filter"]["name"] == "sluice");
    Ok(found.with_context(|| format!("no filter sluice among {filters:?}"))?["ecds_filter"]["typed_config"].clone())
}

/// Returns the path of the filter's module in the sidecar.
pub fn module_file(filter: &Value) -> Option<&str> {
    filter.pointer("/config/vm_config/code/local/filename")?.as_str()
}

/// Returns the counters and gauges whose name satisfies `named`.
pub fn stats(pod: &Pod, named: impl Fn(&str) -> bool) -> Result<Vec<(String, u64)>> {
    let stats = admin(pod, "/stats")?;
    let stats = stats.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(": ")?;
        named(name).then_some((name.to_owned(), value.parse().ok()?))
    });
    Ok(stats.collect())
}
