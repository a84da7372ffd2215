//! The plugin configuration's bytes → the table of routes, or an error that says what is wrong with them.

use crate::{
    filter_state::Override,
    line::Line,
    route::{Route, Table},
};
use alloc::vec;

/// Why a plugin configuration was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError<'a> {
    /// The text is none of the presets.
    UnknownPreset(&'a [u8]),
}

impl ConfigError<'_> {
    /// The error as a line of the log.
    #[must_use]
    pub fn line(&self) -> Line {
        match self {
            Self::UnknownPreset(text) => Line::new("plugin configuration: ")
                .quoted(text)
                .text(" is not a preset: leave it empty, or write standalone or istio"),
        }
    }
}

/// The table that a plugin configuration asks for; nothing at all means `standalone`.
pub fn parse(text: &[u8]) -> Result<Table, ConfigError<'_>> {
    match text {
        b"" | b"standalone" => Ok(Table(vec![parity(None, "egress1", "egress2")])),
        // An egress router's port 8081 takes what was meant for port 80, its port 8080 all the rest.
        b"istio" => Ok(Table(vec![
            parity(
                Some(80),
                "outbound|8081||egress-router1.default.svc.cluster.local",
                "outbound|8081||egress-router2.default.svc.cluster.local",
            ),
            parity(
                None,
                "outbound|8080||egress-router1.default.svc.cluster.local",
                "outbound|8080||egress-router2.default.svc.cluster.local",
            ),
        ])),
        _ => Err(ConfigError::UnknownPreset(text)),
    }
}

fn parity(destination_port: Option<u16>, even: &str, odd: &str) -> Route {
    Route { destination_port, clusters: vec![Override::new(even), Override::new(odd)] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn refusal(text: &[u8]) -> String {
        String::from_utf8(parse(text).unwrap_err().line().into_bytes()).unwrap()
    }

    #[test]
    fn nothing_means_standalone() {
        assert_eq!(parse(b""), parse(b"standalone"));
        assert!(parse(b"").is_ok());
        assert_ne!(parse(b""), parse(b"istio"));
    }

    #[test]
    fn text_that_is_no_preset_is_refused_by_name() {
        for text in ["Standalone", " istio", "istio\n", "istio\0", "{}", "standalon", "standalone1"] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(
            refusal(b"Standalone"),
            "sluice: plugin configuration: \"Standalone\" is not a preset: leave it empty, or write standalone or istio"
        );
    }

    #[test]
    fn a_long_or_unreadable_text_is_named_in_one_short_line() {
        let line = refusal(&[b'x'; 70_000]);
        assert!(line.contains("xxxx\"... (70000 bytes) is not a preset"), "{line}");
        assert!(line.len() < 250, "{line}");
        assert!(refusal(b"a\n\xff").contains(r#""a\x0a\xff" is not a preset"#));
    }
}
