//! A proxy-wasm host. It runs a module in a WebAssembly engine, answers calls as a test specifies, and records them.

use std::{collections::HashMap, fs, path::Path};
use wasmi::{
    AsContextMut, Caller, Config, Engine, Extern, Func, Instance, Linker, Memory, Module, Store, StoreLimits,
    StoreLimitsBuilder, Val, WasmParams, WasmResults,
};

/// All statuses of the ABI, and one that does not exist.
pub const STATUSES: [u32; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 4_711];

/// The maximum size of the linear memory, in bytes.
pub const MEMORY: usize = 16 << 20;

pub const DEBUG: u32 = 1;
pub const INFO: u32 = 2;
pub const WARN: u32 = 3;
pub const ERROR: u32 = 4;

/// A call from the module to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Configuration,
    Property(String),
    Foreign { name: String, arguments: Vec<u8> },
    CloseDownstream,
    LogLevel,
    Log(u32, String),
}

/// The answers of the host, and the calls that it has recorded.
#[derive(Default)]
pub struct Host {
    /// The values of properties by path, with dots between the segments. Other properties are not found.
    pub properties: HashMap<&'static str, Vec<u8>>,
    pub configuration: Vec<u8>,
    /// The statuses of functions of the ABI and of property paths. A failed call returns no data and defines no counter; its other
    /// effects remain.
    pub statuses: HashMap<&'static str, u32>,
    pub log_level: u32,
    pub calls: Vec<Call>,
    /// A stream and its root context that arrive while a property is read. No proxy does that.
    pub nested_stream: Option<(u32, u32)>,
    /// The module's action for the connection of that stream.
    pub nested_action: Option<u32>,
    limits: StoreLimits,
    /// The names and values of the counters, in the order of their ids.
    pub counters: Vec<(String, u64)>,
}

impl Host {
    /// Returns the log lines of a level.
    pub fn logged(&self, level: u32) -> Vec<&str> {
        let lines = self.calls.iter().filter_map(|call| match call {
            Call::Log(line_level, line) if *line_level == level => Some(line.as_str()),
            _ => None,
        });
        lines.collect()
    }

    /// Returns the arguments of all calls of foreign functions.
    pub fn foreign(&self) -> Vec<&[u8]> {
        let arguments = self.calls.iter().filter_map(|call| match call {
            Call::Foreign { arguments, .. } => Some(arguments.as_slice()),
            _ => None,
        });
        arguments.collect()
    }

    /// Returns the sum of all counters of this name.
    pub fn counted(&self, name: &str) -> u64 {
        self.counters.iter().filter(|(counter, _)| counter == name).map(|(_, count)| count).sum()
    }

    fn status(&self, function: &str) -> Result<(), u32> {
        self.statuses.get(function).map_or(Ok(()), |&status| Err(status))
    }
}

/// A module in a WebAssembly engine. A trap panics, and so fails the test.
pub struct Vm {
    store: Store<Host>,
    instance: Instance,
}

impl Vm {
    /// Loads the module of this file. The log level of the host is `info`.
    pub fn new(path: &Path) -> Self {
        let engine = Engine::new(Config::default().consume_fuel(true));
        let module = Module::new(&engine, fs::read(path).unwrap()).unwrap();
        let limits = StoreLimitsBuilder::new().memory_size(MEMORY).build();
        let mut store = Store::new(&engine, Host { log_level: INFO, limits, ..Host::default() });
        store.limiter(|host| &mut host.limits);
        store.set_fuel(u64::MAX).unwrap();
        let mut linker = Linker::new(&engine);
        // The SDK's dispatcher imports the whole ABI. Functions that sluice does not use must not be called.
        linker.allow_shadowing(true);
        for import in module.imports() {
            let name = import.name().to_owned();
            let function = Func::new(&mut store, import.ty().func().unwrap().clone(), move |_, _, _| {
                Err(wasmi::Error::new(format!("{name} must not be called")))
            });
            linker.define(import.module(), import.name(), function).unwrap();
        }
        define(&mut linker);
        let instance = linker.instantiate_and_start(&mut store, &module).unwrap();
        let mut vm = Self { store, instance };
        if vm.instance.get_func(&vm.store, "_initialize").is_some() {
            vm.call("_initialize", &[]);
        }
        vm
    }

    /// Returns the host.
    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Returns the recorded calls and clears them.
    pub fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.host().calls)
    }

    /// Creates a root context with this configuration. Returns whether the module accepted it.
    pub fn configure(&mut self, root: u32, configuration: &[u8]) -> bool {
        self.host().configuration = configuration.to_vec();
        let size = u32::try_from(configuration.len()).unwrap();
        self.call("proxy_on_context_create", &[root, 0]);
        self.call("proxy_on_configure", &[root, size]) != 0
    }

    /// Runs a connection from its arrival to its end. Returns whether it may continue.
    pub fn connection(&mut self, stream: u32, root: u32) -> bool {
        self.call("proxy_on_context_create", &[stream, root]);
        let action = self.call("proxy_on_new_connection", &[stream]);
        self.call("proxy_on_delete", &[stream]);
        action == 0
    }

    /// Calls an export. Returns its result, or 0 if it has none.
    pub fn call(&mut self, export: &str, arguments: &[u32]) -> u32 {
        let function = self.instance.get_func(&self.store, export).unwrap();
        let arguments: Vec<Val> = arguments.iter().map(|&argument| Val::I32(argument.cast_signed())).collect();
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        let called = function.call(&mut self.store, &arguments, &mut results);
        called.unwrap_or_else(|error| panic!("{export}: {error}, after {:?}", self.store.data().calls.last()));
        results.first().and_then(Val::i32).unwrap_or(0).cast_unsigned()
    }

    /// Returns the fuel that was consumed so far: the engine's weighted count of executed instructions.
    pub fn executed(&self) -> u64 {
        u64::MAX - self.store.get_fuel().unwrap()
    }

    /// Returns the size of the linear memory, in bytes.
    pub fn memory_size(&self) -> usize {
        self.instance.get_memory(&self.store, "memory").unwrap().data_size(&self.store)
    }
}

fn define(linker: &mut Linker<Host>) {
    linker
        .func_wrap("env", "proxy_log", |mut caller: Caller<'_, Host>, level: u32, data: u32, size: u32| {
            let line = String::from_utf8(read(&caller, data, size)).unwrap();
            caller.data_mut().calls.push(Call::Log(level, line));
            caller.data().status("proxy_log").err().unwrap_or(0)
        })
        .unwrap();
    linker
        .func_wrap("env", "proxy_get_log_level", |mut caller: Caller<'_, Host>, to: u32| {
            caller.data_mut().calls.push(Call::LogLevel);
            if let Err(status) = caller.data().status("proxy_get_log_level") {
                return status;
            }
            let level = caller.data().log_level;
            write(&mut caller, to, &level.to_le_bytes());
            0
        })
        .unwrap();
    linker
        .func_wrap(
            "env",
            "proxy_get_property",
            |mut caller: Caller<'_, Host>, path: u32, path_size: u32, to: u32, to_size: u32| {
                if let Some((stream, root)) = caller.data_mut().nested_stream.take() {
                    call_in::<(u32, u32), ()>(&mut caller, "proxy_on_context_create", (stream, root));
                    let action = call_in::<u32, u32>(&mut caller, "proxy_on_new_connection", stream);
                    caller.data_mut().nested_action = Some(action);
                }
                let path = String::from_utf8(read(&caller, path, path_size)).unwrap().replace('\0', ".");
                let value = caller.data().properties.get(path.as_str()).cloned();
                let status = caller.data().status(&path).and(caller.data().status("proxy_get_property"));
                caller.data_mut().calls.push(Call::Property(path));
                match (status, value) {
                    (Err(status), _) => status,
                    (Ok(()), None) => 1,
                    (Ok(()), Some(value)) => return_value(&mut caller, &value, to, to_size),
                }
            },
        )
        .unwrap();
    linker
        .func_wrap(
            "env",
            "proxy_get_buffer_bytes",
            |mut caller: Caller<'_, Host>, buffer: u32, start: u32, size: u32, to: u32, to_size: u32| {
                assert_eq!((buffer, start), (7, 0), "only the whole plugin configuration may be read");
                caller.data_mut().calls.push(Call::Configuration);
                if let Err(status) = caller.data().status("proxy_get_buffer_bytes") {
                    return status;
                }
                let mut configuration = caller.data().configuration.clone();
                configuration.truncate(size as usize);
                return_value(&mut caller, &configuration, to, to_size)
            },
        )
        .unwrap();
    linker
        .func_wrap(
            "env",
            "proxy_call_foreign_function",
            |mut caller: Caller<'_, Host>, name: u32, name_size: u32, data: u32, size: u32, to: u32, to_size: u32| {
                let name = String::from_utf8(read(&caller, name, name_size)).unwrap();
                let arguments = read(&caller, data, size);
                caller.data_mut().calls.push(Call::Foreign { name, arguments });
                match caller.data().status("proxy_call_foreign_function") {
                    Err(status) => status,
                    Ok(()) => return_value(&mut caller, b"an unexpected result", to, to_size),
                }
            },
        )
        .unwrap();
    linker
        .func_wrap(
            "env",
            "proxy_define_metric",
            |mut caller: Caller<'_, Host>, kind: u32, name: u32, size: u32, to: u32| {
                assert_eq!(kind, 0, "only counters may be defined");
                let name = String::from_utf8(read(&caller, name, size)).unwrap();
                if let Err(status) = caller.data().status("proxy_define_metric") {
                    return status;
                }
                let id = u32::try_from(caller.data().counters.len()).unwrap();
                caller.data_mut().counters.push((name, 0));
                write(&mut caller, to, &id.to_le_bytes());
                0
            },
        )
        .unwrap();
    linker
        .func_wrap("env", "proxy_increment_metric", |mut caller: Caller<'_, Host>, id: u32, by: i64| {
            assert_eq!(by, 1);
            caller.data_mut().counters[id as usize].1 += 1;
            caller.data().status("proxy_increment_metric").err().unwrap_or(0)
        })
        .unwrap();
    linker
        .func_wrap("env", "proxy_close_stream", |mut caller: Caller<'_, Host>, stream: u32| {
            assert_eq!(stream, 2, "only the downstream connection may be closed");
            caller.data_mut().calls.push(Call::CloseDownstream);
            caller.data().status("proxy_close_stream").err().unwrap_or(0)
        })
        .unwrap();
}

fn memory(caller: &Caller<'_, Host>) -> Memory {
    caller.get_export("memory").and_then(Extern::into_memory).unwrap()
}

fn read(caller: &Caller<'_, Host>, data: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    memory(caller).read(caller, data as usize, &mut bytes).unwrap();
    bytes
}

fn write(caller: &mut Caller<'_, Host>, to: u32, bytes: &[u8]) {
    memory(caller).write(caller, to as usize, bytes).unwrap();
}

/// Calls an export while the module waits for the host.
fn call_in<P: WasmParams, R: WasmResults>(caller: &mut Caller<'_, Host>, export: &str, arguments: P) -> R {
    let function = caller.get_export(export).and_then(Extern::into_func).unwrap();
    let function = function.typed::<P, R>(&caller).unwrap();
    function.call(caller.as_context_mut(), arguments).unwrap()
}

/// Passes a value to the module. As in Envoy, nothing is allocated for an empty value.
fn return_value(caller: &mut Caller<'_, Host>, value: &[u8], to: u32, to_size: u32) -> u32 {
    let size = u32::try_from(value.len()).unwrap();
    let mut data = 0;
    if size > 0 {
        data = call_in::<u32, u32>(caller, "malloc", size);
        write(caller, data, value);
    }
    write(caller, to, &data.to_le_bytes());
    write(caller, to_size, &size.to_le_bytes());
    0
}
