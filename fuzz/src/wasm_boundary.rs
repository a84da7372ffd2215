//! The shipped Wasm module in an engine, with a hostile host: any status with and without memory, null pointers with any length,
//! configurations that are shorter or longer than announced, and the entry points in any order.
//!
//! Model: a map from root contexts to configurations, and the context that was created last, determine the configuration of a
//! connection. `traffic::expected` determines the calls. The module must not trap.

use crate::{
    input::Input,
    model::{Action, Model},
    scenario::{address, model, server_name},
    traffic::{Call, Presented, as_text, counters, expected},
    vm::{Answer, Vm},
};
use sluice::config::MAX_SIZE;
use std::collections::HashMap;

const STATUSES: [u32; 6] = [1, 2, 7, 10, 12, 4_711];

/// The expected state of a root context.
struct Root {
    model: Model,
    /// The counters that the host has defined.
    counters: Vec<String>,
}

/// Calls entry points in an order that the data determines.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut vm = Vm::new();
    let mut roots: HashMap<u32, Root> = HashMap::new();
    let mut last = (0, 0);
    for _ in 0..24 {
        let context = u32::from(input.byte() % 6);
        match input.byte() % 8 {
            0 => {
                vm.call("proxy_on_delete", &[context]);
                roots.remove(&context);
            }
            1 => {
                last = (context, u32::from(input.byte() % 6));
                vm.call("proxy_on_context_create", &[last.0, last.1]);
            }
            2 | 3 => configure(&mut input, &mut vm, context, &mut roots),
            4 => {
                // At most 64 KiB, so that the memory suffices, or more than the whole memory.
                let size = u32::from_le_bytes(input.array());
                let size = if size < 32 << 20 { size % (64 << 10) } else { size };
                let block = vm.call("malloc", &[size]);
                assert_eq!(block == 0, size == 0 || size >= 32 << 20, "{size}");
            }
            5 => {
                let (stream, parent) = std::mem::take(&mut last);
                connect(&mut input, &mut vm, context, roots.get(&parent).filter(|_| stream == context));
            }
            _ => {
                let stream = context + 10;
                vm.call("proxy_on_context_create", &[stream, context]);
                connect(&mut input, &mut vm, stream, roots.get(&context));
                last = (0, 0);
                vm.call("proxy_on_delete", &[stream]);
            }
        }
        if input.is_empty() {
            break;
        }
    }
}

fn configure(input: &mut Input<'_>, vm: &mut Vm, context: u32, roots: &mut HashMap<u32, Root>) {
    let document = match input.byte() % 8 {
        0 => as_text(input.text()),
        1 => b"standalone".to_vec(),
        2 => b"istio".to_vec(),
        _ => model(input).to_string().into_bytes(),
    };
    // The announced size.
    let size = match input.byte() {
        0 => u32::from_le_bytes(input.array()) as usize,
        1 => document.len() + 1,
        2 => document.len().saturating_sub(1),
        _ => document.len(),
    };
    let answer = answer(input, &document);
    let model = if size == 0 {
        Model::of_text(b"")
    } else if size > MAX_SIZE {
        None
    } else {
        answer.bytes().filter(|bytes| bytes.len() == size).and_then(|bytes| Model::of_text(&bytes))
    };
    let host = vm.host();
    host.configuration = answer;
    host.refused = input.byte();
    host.calls.clear();
    let first = host.counters.len();
    let accepted = vm.call("proxy_on_configure", &[context, u32::try_from(size).unwrap_or(u32::MAX)]);
    assert_eq!(accepted, u32::from(model.is_some()), "{:?}", String::from_utf8_lossy(&document));
    let Some(model) = model else { return };
    let host = vm.host();
    let mut counters = counters(&model);
    assert_eq!(host.counters[first..], counters);
    let mut index = 0_u32;
    counters.retain(|_| (host.refused >> index.min(7) & 1 == 0, index += 1).0);
    roots.insert(context, Root { model, counters });
}

/// Returns the host's answer: usually these bytes, otherwise an error or a null pointer.
fn answer(input: &mut Input<'_>, bytes: &[u8]) -> Answer {
    match input.byte() {
        0 => Answer { status: 0, length: u32::from_le_bytes(input.array()), memory: None },
        1 => Answer { status: input.pick(&STATUSES), length: input.byte().into(), memory: None },
        2 => Answer::of(input.pick(&STATUSES), bytes),
        _ => Answer::of(0, bytes),
    }
}

fn connect(input: &mut Input<'_>, vm: &mut Vm, stream: u32, root: Option<&Root>) {
    let end = |input: &mut Input<'_>| match input.byte() {
        0..=15 => input.text().to_vec(),
        _ => address(input).to_string().into_bytes(),
    };
    let [source, destination] = [end(input), end(input)].map(|text| answer(input, &text));
    let name = server_name(input).to_vec();
    let name = answer(input, &name);
    let result = if input.one_in(4) { answer(input, b"result") } else { Answer::of(0, b"") };
    let level = (u32::from(input.one_in(8)), input.byte() % 6);
    let read = |answer: &Answer| crate::address::by_std(&answer.bytes()?);
    let server_name = name.bytes().unwrap_or_default();
    let shown = Presented {
        source: read(&source),
        destination: read(&destination),
        server_name: &server_name,
        accepts_override: result.status == 0,
        debug: level.0 == 0 && level.1 <= 1,
    };
    let (action, calls) = match root {
        Some(root) => expected(&root.model, &root.counters, &shown),
        None => (Action::Deny, vec![Call::Log(4), Call::Close]),
    };
    let host = vm.host();
    host.calls.clear();
    host.level = (level.0, level.1.into());
    host.ignored_status = u32::from(input.byte());
    (host.source, host.destination, host.server_name, host.result) = (source, destination, name, result);
    assert_eq!(vm.call("proxy_on_new_connection", &[stream]), u32::from(action == Action::Deny));
    assert_eq!(vm.host().calls, calls);
}
