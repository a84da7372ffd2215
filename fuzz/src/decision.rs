//! Decisions.
//!
//! Model: the documented rules, applied step by step to lists of ipnet's networks, ports and names.

use crate::{
    compare::check_decision,
    input::Input,
    scenario::{address, model, server_name},
};
use sluice::config;

/// Derives a valid configuration and connections from the data.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let model = model(&mut input);
    let text = model.to_string();
    let policy = config::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
    for _ in 0..8 {
        let source = (!input.one_in(16)).then(|| address(&mut input));
        let destination = (!input.one_in(16)).then(|| address(&mut input));
        check_decision(&policy, &model, source, destination, server_name(&mut input));
        if input.is_empty() {
            break;
        }
    }
}
