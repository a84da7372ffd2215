//! The ledger of all connections, which is compared with the requests that the egresses received and with Envoy's counters.

use crate::{
    client::{Conversation, Kind, Outcome},
    egress::{Received, Seen},
    proxy::Subject,
    tables::{self, CLUSTERS, DEFAULT, RESETS, RESTARTS, SILENT, SLOW, Verdict, verdict},
};
use anyhow::{Result, ensure};
use std::{collections::HashMap, net::Ipv4Addr};
use testbed::{Envoy, envoy::value};

/// How long Envoy may take to accept a connection that its client has left already, in milliseconds.
const ACCEPTED_WITHIN: u32 = 3_000;

/// A connection in the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub id: u64,
    /// Milliseconds after the start of the run.
    pub opened: u32,
    pub source: Ipv4Addr,
    pub kind: Kind,
    /// The generations of the table that was in force when the client connected, and of the last one that was sent before
    /// the connection ended.
    pub window: (u32, u32),
    pub conversation: Conversation,
}

/// The connections of a run, summed up by outcome, cluster and decision.
#[derive(Default)]
pub struct Sums {
    pub answered: u64,
    pub closed: u64,
    pub cut: u64,
    pub left: u64,
    /// The number of connections to each cluster, without those whose cluster the ledger does not know.
    clusters: Vec<u64>,
    denied: u64,
    /// The number of connections that no egress saw and that were opened shortly before or during a replacement of the table.
    unknown: u64,
}

/// Checks each connection. Fails if one reached a cluster that neither the table in force when it opened nor the next
/// table, if that was sent before the connection ended, selects.
pub fn check(entries: &[Entry], sent_at: &[u32], seen: &Seen, subject: Subject) -> Result<Sums> {
    let mut received: HashMap<u64, Received> = HashMap::with_capacity(seen.received.len());
    for request in &seen.received {
        ensure!(received.insert(request.id, *request).is_none(), "request {} reached two egresses", request.id);
    }
    let mut sums = Sums { clusters: vec![0; CLUSTERS], ..Sums::default() };
    for entry in entries {
        let Entry { id, opened, source, kind, window: (first, last), conversation } = *entry;
        let request = received.remove(&id);
        ensure!(last <= first + 1, "more than two tables are possible: {entry:?}");
        if let Some(request) = request {
            let same = (request.length, request.hash) == (conversation.length, conversation.hash);
            ensure!(same, "the request was changed on its way: {entry:?}");
        }
        let by = request.map(|request| request.egress);
        if let Some(answered_by) = conversation.answered_by {
            ensure!(
                by == Some(answered_by),
                "answered by an egress that did not receive the request: {entry:?} {by:?}"
            );
        }
        let by = by.map(usize::from);
        let asks = matches!(kind, Kind::Asks | Kind::HalfCloses);
        let outcome = conversation.outcome;
        match outcome {
            Outcome::Answered => sums.answered += 1,
            Outcome::Closed => sums.closed += 1,
            Outcome::Cut => sums.cut += 1,
            Outcome::Left => sums.left += 1,
        }
        let possible = |role| [tables::cluster(first, role), tables::cluster(last, role)];
        if subject == Subject::Plain {
            let right = by.is_none_or(|by| (0..tables::ROLES.len()).any(|role| possible(role).contains(&by)));
            ensure!(right, "misrouted to {by:?}: {entry:?}");
            continue;
        }
        match verdict(source) {
            Verdict::Denied => {
                ensure!(by.is_none() && (!asks || outcome == Outcome::Closed), "not denied: {entry:?} {by:?}");
                sums.denied += 1;
            }
            Verdict::Default => {
                ensure!(by.is_none_or(|by| by == DEFAULT), "misrouted to {by:?}: {entry:?}");
                ensure!(!asks || outcome == Outcome::Answered, "lost: {entry:?}");
                sums.clusters[DEFAULT] += 1;
            }
            Verdict::Role(role) => {
                ensure!(by.is_none_or(|by| possible(role).contains(&by)), "misrouted to {by:?}: {entry:?}");
                let right = match role {
                    RESTARTS | SLOW => outcome != Outcome::Left,
                    SILENT if kind == Kind::HalfCloses => matches!(outcome, Outcome::Left | Outcome::Closed),
                    SILENT => outcome == Outcome::Left,
                    RESETS => outcome == Outcome::Closed,
                    _ => outcome == Outcome::Answered,
                };
                ensure!(!asks || right, "unexpected outcome for the behaviour of the egress: {entry:?} {by:?}");
                let next = sent_at.get(first as usize + 1).copied().unwrap_or(u32::MAX);
                let is_decided = first == last && opened + ACCEPTED_WITHIN < next;
                match by.or_else(|| is_decided.then(|| tables::cluster(first, role))) {
                    Some(cluster) => sums.clusters[cluster] += 1,
                    None => sums.unknown += 1,
                }
            }
        }
    }
    ensure!(received.is_empty(), "{} requests at the egresses belong to no connection of the ledger", received.len());
    Ok(sums)
}

/// Compares the ledger with Envoy's counters. `removed` holds the sums of the counters that Envoy has removed, by cluster.
/// Returns a summary of the counters.
pub fn compare(
    entries: &[Entry],
    sums: &Sums,
    seen: &Seen,
    removed: &[u64],
    subject: Subject,
    envoy: &Envoy,
) -> Result<String> {
    let stats = envoy.get("/stats")?;
    let total = entries.len() as u64;
    let counted = value(&stats, "listener.127.0.0.1_10000.downstream_cx_total")?;
    ensure!(counted == total, "the listener counts {counted} connections, the ledger {total}");
    let of_cluster = |cluster, name| value(&stats, &format!("cluster.{}.{name}", tables::name(cluster)));
    // A connection to a cluster got an upstream connection, failed, or ended while it waited for one. `upstream_cx_total` may be
    // lower: if an attempt is refused, Envoy fails all connections that wait, and later ones use the attempts still in progress.
    let upstream = |cluster| -> Result<u64> {
        let outcomes = ["upstream_rq_total", "upstream_rq_pending_failure_eject", "upstream_rq_cancelled"];
        outcomes.into_iter().map(|name| of_cluster(cluster, name)).sum()
    };
    if subject == Subject::Plain {
        let upstream: u64 = (0..CLUSTERS).map(upstream).sum::<Result<u64>>()?;
        ensure!(upstream == total, "{upstream} connections to clusters, {total} to the listener");
        return Ok(format!("{upstream} to clusters"));
    }
    let sluice = |name: &str| value(&stats, &format!("wasmcustom.sluice.{name}"));
    let (mut routed, mut missing) = (0, 0);
    for (cluster, removed) in removed.iter().enumerate().take(CLUSTERS) {
        let (name, known) = (tables::name(cluster), sums.clusters[cluster]);
        let counter = if cluster == DEFAULT { "continued".to_owned() } else { format!("routed.{name}") };
        let counted = sluice(&counter)? + removed;
        let upstream = upstream(cluster)?;
        ensure!(counted == upstream, "{name}: sluice counted {counted} connections, Envoy {upstream}");
        ensure!(
            (known..=known + sums.unknown).contains(&counted),
            "{name}: {counted} counted, {known} known, {} unknown",
            sums.unknown
        );
        // Only the fast egresses and the default one accept every connection that Envoy opens. The others refuse some, and Envoy
        // abandons some while it connects.
        let (accepted, opened) = (seen.accepted[cluster], of_cluster(cluster, "upstream_cx_total")?);
        let all_accepted = cluster == DEFAULT || cluster % tables::ROLES.len() < RESTARTS;
        ensure!(!all_accepted || accepted == opened, "{name}: {opened} connections opened, {accepted} accepted");
        routed += counted;
        missing += counted - known;
    }
    ensure!(
        missing == sums.unknown,
        "the counters exceed the ledger by {missing} connections, but {} are unknown",
        sums.unknown
    );
    ensure!(sluice("denied")? == sums.denied, "{} denied, {} expected", sluice("denied")?, sums.denied);
    let outcomes = routed + sums.denied;
    ensure!(outcomes == total, "{outcomes} outcomes of {total} connections");
    for name in ["unreadable", "host_errors", "panics"] {
        ensure!(sluice(name)? == 0, "sluice.{name}: {}", sluice(name)?);
    }
    let Sums { denied, unknown, .. } = sums;
    Ok(format!("{routed} to clusters ({unknown} of them known by counters only), {denied} denied"))
}
