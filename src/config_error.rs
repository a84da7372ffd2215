//! The error for a rejected configuration.

use crate::text::Text;
use alloc::boxed::Box;
use core::fmt;

/// A rejected configuration. Boxed, because a `Result` is passed on often and an error is rare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Box<Details>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Details {
    /// The path, `: ` unless the path is empty, and the message.
    text: Text,
    path_length: usize,
}

impl ConfigError {
    /// Creates the error for a rejected value. `text` is its path, `: ` and the message, or the message alone if the path is empty.
    #[must_use]
    pub fn new(text: Text, path_length: usize) -> Self {
        Self(Box::new(Details { text, path_length }))
    }

    /// The path of the rejected value, such as `routes[1].match.source[0]`. Empty for the configuration as a whole.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.text.as_str().get(..self.0.path_length).unwrap_or_default()
    }

    /// The reason for the rejection, and what would be accepted.
    #[must_use]
    pub fn message(&self) -> &str {
        let rest = self.0.text.as_str().get(self.0.path_length..).unwrap_or_default();
        rest.strip_prefix(": ").unwrap_or(rest)
    }

    /// The error as one line for a log.
    #[must_use]
    pub fn to_line(&self) -> Text {
        let mut line = Text::new("sluice: plugin configuration: ");
        line.push_text(&self.0.text);
        line
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.to_line().as_str())
    }
}

impl core::error::Error for ConfigError {}
