//! Large configurations, up to and beyond the limits.
//!
//! Model: that of `config_text`. Neither parsing a configuration nor a decision may take longer than 100 ms.

use crate::{compare::within_limit, config_text};
use sluice::{
    address::{Address, Endpoint},
    config::{self, MAX_SIZE},
    policy::ConnectionInfo,
};

/// Builds a document by repeating a part of the data. The first two bytes are the number of repetitions. The byte 0xff, which does
/// not occur in JSON, separates the text before the part, the part, and the text after it. In the part, `#` stands for the index of
/// the repetition.
pub fn run(data: &[u8]) {
    let Some((count, rest)) = data.split_first_chunk() else { return };
    let mut parts = rest.splitn(3, |&byte| byte == 0xff);
    let (Some(head), Some(part), Some(tail)) = (parts.next(), parts.next(), parts.next()) else { return };
    let mut document = head.to_vec();
    for index in 0..u16::from_le_bytes(*count) {
        for &byte in part {
            if byte == b'#' {
                document.extend(index.to_string().bytes());
            } else {
                document.push(byte);
            }
        }
        if document.len() > MAX_SIZE {
            break;
        }
    }
    document.extend(tail);
    config_text::run(&document);

    let Ok(policy) = config::parse(&document) else { return };
    let end = |last: u32| Some(Endpoint { address: Address::from_ipv4(0xcb00_7100 + last), port: 9 });
    let name = [b'a'; 1_024];
    let connection = ConnectionInfo { source: end(1), destination: end(2), server_name: &name };
    let _ = within_limit(|| policy.decide(&connection));
}
