//! What the shipped module executes and what memory it takes: figures that are the same on every machine. `make bench`
//! measures time.

use crate::{host::Vm, shipped};
use std::{env, fmt::Write, fs};
use testbed::config::table_of;

const ROOT: u32 = 1;
const STREAM: u32 = 2;

/// So much may a figure differ from its golden, in percent: another compiler's code is not quite the same.
const MARGIN: u64 = 3;

/// What is executed to load a configuration and for a connection that its last route takes, a line each.
fn measure() -> String {
    let mut figures = String::new();
    for (name, configuration) in
        [("preset", "standalone".to_owned()), ("10-routes", table_of(10)), ("1000-routes", table_of(1_000))]
    {
        let mut vm = Vm::new(&shipped());
        assert!(vm.configure(ROOT, configuration.as_bytes()));
        let load = vm.executed();
        vm.host().properties.insert("source.address", b"10.0.0.2:12345".to_vec());
        assert!(vm.connection(STREAM, ROOT));
        let before = vm.executed();
        assert!(vm.connection(STREAM, ROOT));
        let connection = vm.executed() - before;
        assert_eq!(vm.host().foreign().len(), 2);
        writeln!(figures, "{name}: load {load}, connection {connection}").unwrap();
    }
    figures
}

/// The numbers of a line, and the words around them.
fn figures(text: &str) -> (Vec<u64>, Vec<&str>) {
    let (numbers, words): (Vec<_>, Vec<_>) =
        text.split([' ', ',', '\n']).partition(|word| word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty());
    (numbers.into_iter().map(|number| number.parse().unwrap()).collect(), words)
}

#[test]
#[ignore = "make test builds the module"]
fn the_module_executes_what_the_golden_says() {
    let path = testbed::root().join("tests/data/fuel");
    let measured = measure();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &measured).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap();
    let ((numbers, words), (expected, expected_words)) = (figures(&measured), figures(&golden));
    assert_eq!(words, expected_words);
    for (number, expected) in numbers.into_iter().zip(expected) {
        let difference = number.abs_diff(expected);
        assert!(
            difference * 100 <= expected * MARGIN,
            "{number}, not {expected}; UPDATE=1 accepts the measured ones:\n{measured}"
        );
    }
}

#[test]
#[ignore = "make test builds the module"]
fn a_million_connections_take_no_more_memory_than_the_first_thousand() {
    let mut vm = Vm::new(&shipped());
    assert!(vm.configure(ROOT, b"istio"));
    vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
    let mut size = 0;
    for connection in 0..1_000_000_u32 {
        if connection % 1_000 == 0 {
            // Addresses of all lengths, pipes of changing length among them.
            let source = match connection / 1_000 % 3 {
                0 => format!("10.0.{}.2:{}", connection % 256, connection % 65_536),
                1 => format!("[2001:db8::{:x}]:443", connection % 65_536),
                _ => format!("/run/{}", "x".repeat(connection as usize / 4_000)),
            };
            vm.host().properties.insert("source.address", source.into_bytes());
            vm.take_calls();
        }
        if connection == 1_000 {
            size = vm.memory_size();
        }
        assert!(vm.connection(STREAM + connection, ROOT));
    }
    assert_eq!(vm.memory_size(), size);
}
