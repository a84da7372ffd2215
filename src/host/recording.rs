//! A host for tests: it answers as a test tells it and records every call.

use super::{Connection, Host, Level, Log, Status};
use crate::text::Text;
use std::{borrow::ToOwned, cell::RefCell, string::String, vec::Vec};

/// A call of the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The source address was read.
    Source,
    /// The destination address was read.
    Destination,
    /// The server name was read.
    ServerName,
    /// The cluster was overridden with this one.
    Override(String),
    /// The counter of this name was incremented.
    Count(String),
    /// The counter of this name was defined.
    Define(String),
    /// The filter asked whether lines of this level are shown.
    LogEnabled(Level),
    /// A line was logged.
    Log(Level, String),
    /// The connection was closed.
    Close,
}

/// A proxy with one connection.
pub struct Recording {
    /// The answer to [`Connection::source_address`].
    pub source: Result<Vec<u8>, Status>,
    /// The answer to [`Connection::destination_address`].
    pub destination: Result<Vec<u8>, Status>,
    /// The answer to [`Connection::server_name`].
    pub server_name: Result<Vec<u8>, Status>,
    /// The answer to [`Connection::set_override`].
    pub override_result: Result<(), Status>,
    /// The failure of [`Host::define_counter`], if any.
    pub counter_failure: Option<Status>,
    /// Whether lines at debug level are shown.
    pub debug: bool,
    /// The calls so far.
    pub calls: RefCell<Vec<Call>>,
}

impl Default for Recording {
    /// A connection whose addresses cannot be read, and a proxy that accepts everything.
    fn default() -> Self {
        Self {
            source: Err(Status::NOT_FOUND),
            destination: Err(Status::NOT_FOUND),
            server_name: Err(Status::NOT_FOUND),
            override_result: Ok(()),
            counter_failure: None,
            debug: false,
            calls: RefCell::new(Vec::new()),
        }
    }
}

impl Recording {
    /// Returns the calls since the last call of this function.
    pub fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    fn record(&self, call: Call) {
        self.calls.borrow_mut().push(call);
    }
}

impl Log for Recording {
    fn log(&self, level: Level, line: &Text) {
        self.record(Call::Log(level, line.as_str().to_owned()));
    }
}

impl Host for Recording {
    type Override = String;
    type Counter = String;

    fn prepare_override(&self, cluster: &str) -> String {
        cluster.to_owned()
    }

    fn define_counter(&self, name: &str) -> Result<String, Status> {
        self.record(Call::Define(name.to_owned()));
        self.counter_failure.map_or_else(|| Ok(name.to_owned()), Err)
    }
}

impl Connection for Recording {
    type Host = Self;
    type Bytes = Vec<u8>;

    fn source_address(&self) -> Result<Vec<u8>, Status> {
        self.record(Call::Source);
        self.source.clone()
    }

    fn destination_address(&self) -> Result<Vec<u8>, Status> {
        self.record(Call::Destination);
        self.destination.clone()
    }

    fn server_name(&self) -> Result<Vec<u8>, Status> {
        self.record(Call::ServerName);
        self.server_name.clone()
    }

    fn set_override(&self, prepared: &String) -> Result<(), Status> {
        self.record(Call::Override(prepared.clone()));
        self.override_result
    }

    fn increment(&self, counter: &String) {
        self.record(Call::Count(counter.clone()));
    }

    fn close(&self) {
        self.record(Call::Close);
    }

    fn log_enabled(&self, level: Level) -> bool {
        self.record(Call::LogEnabled(level));
        self.debug
    }
}
