//! Keeps V8 from inlining functions that `wasm-opt` has shared, by calling them through a table.
//!
//! Envoy's V8 runs without its baseline compiler, Liftoff. It compiles every function of a module at load with the optimising
//! compiler, and inlines into each function callees up to a budget of 2 to 5 times the size of the function (`NoLiftoffBudget`
//! in <https://github.com/v8/v8/blob/14.6.202.10/src/wasm/inlining-tree.h>, `should_inline` in
//! `turboshaft-graph-interface.cc`). So a module whose size was reduced by sharing functions takes longer to load. V8 does not
//! inline a call through a table, which is three bytes longer than a direct call.
//!
//! Keep this step only while it reduces the load time, which `make bench` measures with and without it (`calls inlined by V8`).
//! For a new Envoy, look up its V8 version, compare the two sources above, and run `make bench` with `ENVOY=…`; if the two
//! variants take the same time to load, remove this file. Node with the same V8 shows the time for each function:
//! `node --no-liftoff --no-wasm-lazy-compilation --single-threaded --trace-wasm-compilation-times`.

use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, convert::Infallible};
use wasm_encoder::{
    CodeSection, ConstExpr, ElementSection, Elements, Instruction, Module, RefType, SectionId, TableSection, TableType,
    reencode::{self, Reencode},
};
use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef};

/// The number of bytes that V8 must save for each byte that the table adds to the module.
const BYTES_SPARED_PER_BYTE: usize = 10;

/// V8's limits: the size below which a function is small, the minimum of a budget, and the maximum number of calls inlined into
/// one function.
const SMALL: usize = 50;
const MIN_BUDGET: usize = 50;
const MAX_INLINED: usize = 60;

/// The compile time of a `memory.copy`, as the number of bytes of other code that take as long.
const MEMORY_COPY: usize = 60;

const TABLE: &str = "the module has a table already";

/// A function of the module.
struct Function {
    type_index: u32,
    size: usize,
    /// The time to compile it, as a number of bytes.
    cost: usize,
    /// The indices of the functions that it calls, one for each call.
    calls: Vec<u32>,
}

/// The functions of a module by their indices, which start after those of the imports.
type Functions = BTreeMap<u32, Function>;

/// Returns the module with some calls made through a table.
pub fn prevent(module: &[u8]) -> Result<Vec<u8>> {
    let functions = read(module)?;
    let selected = select(&functions);
    if selected.is_empty() {
        return Ok(module.to_vec());
    }
    let mut through_table = ThroughTable { functions: &functions, selected, has_elements: false };
    let mut rewritten = Module::new();
    through_table.parse_core_module(&mut rewritten, Parser::new(0), module)?;
    Ok(rewritten.finish())
}

fn read(module: &[u8]) -> Result<Functions> {
    let (mut imported, mut types, mut functions) = (0, Vec::new(), Functions::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    match import?.ty {
                        TypeRef::Func(_) => imported += 1,
                        TypeRef::Table(_) => bail!(TABLE),
                        _ => {}
                    }
                }
            }
            Payload::FunctionSection(section) => types = section.into_iter().collect::<Result<_, _>>()?,
            Payload::CodeSectionEntry(body) => {
                let index = functions.len();
                let size = body.range().len();
                let (mut cost, mut calls) = (size, Vec::new());
                for operator in body.get_operators_reader()? {
                    match operator? {
                        Operator::Call { function_index } if function_index >= imported => calls.push(function_index),
                        Operator::ReturnCall { .. } => bail!("the module has tail calls, which are not supported here"),
                        Operator::MemoryCopy { .. } => cost += MEMORY_COPY,
                        _ => {}
                    }
                }
                let type_index = *types.get(index).context("a function without a type")?;
                functions.insert(imported + u32::try_from(index)?, Function { type_index, size, cost, calls });
            }
            Payload::TableSection(_) | Payload::ElementSection(_) => bail!(TABLE),
            _ => {}
        }
    }
    Ok(functions)
}

/// Selects the functions to call through the table: starts with all of them, and drops the least useful one until each is worth
/// its bytes.
fn select(functions: &Functions) -> Vec<u32> {
    let mut selected: Vec<u32> = functions.keys().copied().collect();
    let mut inlined = inlined(functions, &selected);
    loop {
        let candidates = selected.iter().map(|&index| {
            let without: Vec<u32> = selected.iter().copied().filter(|&other| other != index).collect();
            let added = self::inlined(functions, &without).saturating_sub(inlined);
            (added / table_bytes(functions, index), index, inlined + added)
        });
        match candidates.min() {
            Some((ratio, index, total)) if ratio < BYTES_SPARED_PER_BYTE => {
                selected.retain(|&other| other != index);
                inlined = total;
            }
            _ => return selected,
        }
    }
}

/// Returns the bytes that a function adds in the table: its slot, and three for each call.
fn table_bytes(functions: &Functions, index: u32) -> usize {
    1 + 3 * functions.values().flat_map(|function| &function.calls).filter(|&&to| to == index).count()
}

/// Returns the bytes of functions that V8 compiles again because it inlines them, if the selected ones are in the table.
fn inlined(functions: &Functions, selected: &[u32]) -> usize {
    let small = functions.values().filter(|function| function.size < SMALL).count() as f64 / functions.len() as f64;
    let growth = 2.0 + 3.0 * ((small - 0.25) / 0.25).clamp(0.0, 1.0);
    let into = |function: &Function| {
        let budget = ((growth * function.size as f64) as usize).max(MIN_BUDGET);
        inlined_into(functions, selected, function, &mut Remaining { budget, calls: MAX_INLINED })
    };
    functions.values().map(into).sum()
}

/// The remaining inlining budget of a function.
struct Remaining {
    budget: usize,
    calls: usize,
}

fn inlined_into(functions: &Functions, selected: &[u32], caller: &Function, left: &mut Remaining) -> usize {
    let mut cost = 0;
    for index in &caller.calls {
        let Some(callee) = functions.get(index) else { continue };
        if !selected.contains(index) && callee.size < left.budget && left.calls > 0 {
            *left = Remaining { budget: left.budget - callee.size, calls: left.calls - 1 };
            cost += callee.cost + inlined_into(functions, selected, callee, left);
        }
    }
    cost
}

/// Rewrites a module with a table of the selected functions.
struct ThroughTable<'a> {
    functions: &'a Functions,
    selected: Vec<u32>,
    /// Whether the elements of the table have been written.
    has_elements: bool,
}

impl Reencode for ThroughTable<'_> {
    type Error = Infallible;

    fn intersperse_section_hook(
        &mut self,
        module: &mut Module,
        after: Option<SectionId>,
        before: Option<SectionId>,
    ) -> Result<(), reencode::Error<Infallible>> {
        if after == Some(SectionId::Function) {
            let size = self.selected.len() as u64;
            let mut tables = TableSection::new();
            let element_type = RefType::FUNCREF;
            tables.table(TableType { element_type, table64: false, minimum: size, maximum: Some(size), shared: false });
            module.section(&tables);
        }
        if matches!(before, Some(SectionId::DataCount | SectionId::Code)) && !self.has_elements {
            self.has_elements = true;
            let mut elements = ElementSection::new();
            elements.active(None, &ConstExpr::i32_const(0), Elements::Functions(self.selected.as_slice().into()));
            module.section(&elements);
        }
        Ok(())
    }

    fn parse_function_body(
        &mut self,
        code: &mut CodeSection,
        body: FunctionBody<'_>,
    ) -> Result<(), reencode::Error<Infallible>> {
        let mut function = self.new_function_with_parsed_locals(&body)?;
        let operators = body.get_operators_reader()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        for operator in without_unused_reads(operators) {
            match operator {
                Operator::Call { function_index } if let Some((slot, type_index)) = self.slot(function_index) => {
                    function.instruction(&Instruction::I32Const(slot));
                    function.instruction(&Instruction::CallIndirect { type_index, table_index: 0 });
                }
                operator => {
                    let instruction = self.instruction(operator)?;
                    function.instruction(&instruction);
                }
            }
        }
        code.function(&function);
        Ok(())
    }
}

impl ThroughTable<'_> {
    /// Returns the slot of a function in the table, if it has one, and the index of its type.
    fn slot(&self, function: u32) -> Option<(i32, u32)> {
        let slot = self.selected.iter().position(|&selected| selected == function)?;
        Some((i32::try_from(slot).ok()?, self.functions.get(&function)?.type_index))
    }
}

/// Removes code that Binaryen 116 writes around calls with two results: values that are read and dropped at once.
///
/// ```text
/// local.get A  drop                              nothing
/// local.tee A  drop                              local.set A
/// local.get A  local.get B  local.set C  drop    local.get B  local.set C
/// local.tee A  local.get B  local.set C  drop    local.set A  local.get B  local.set C
/// local.set A  local.get A                       local.tee A
/// ```
fn without_unused_reads(operators: Vec<Operator<'_>>) -> Vec<Operator<'_>> {
    use Operator::{Drop, LocalGet, LocalSet, LocalTee};
    let mut kept: Vec<Operator<'_>> = Vec::with_capacity(operators.len());
    for operator in operators {
        let last = kept.len();
        match (kept.as_slice(), &operator) {
            ([.., LocalGet { .. }], Drop) => _ = kept.pop(),
            (&[.., LocalTee { local_index }], Drop) => kept[last - 1] = LocalSet { local_index },
            ([.., LocalGet { .. }, LocalGet { .. }, LocalSet { .. }], Drop) => _ = kept.remove(last - 3),
            (&[.., LocalTee { local_index }, LocalGet { .. }, LocalSet { .. }], Drop) => {
                kept[last - 3] = LocalSet { local_index };
            }
            (&[.., LocalSet { local_index }], LocalGet { local_index: read }) if local_index == *read => {
                kept[last - 1] = LocalTee { local_index };
            }
            _ => kept.push(operator),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use wasmi::{Engine, Instance, Linker, Module, Store};

    /// A module with `callers` exports, each of which calls `shared` and then has steps of its own.
    fn sharing(callers: usize, calls: usize, shared: &str) -> Vec<u8> {
        let mut text = format!("(module (memory 1) (func $shared (param i32) (result i32) {shared})");
        for caller in 0..callers {
            let calls = "(call $shared".repeat(calls) + " (local.get 0)" + &")".repeat(calls);
            _ = write!(text, "(func (export \"{caller}\") (param i32) (result i32) {})", steps(calls, 20 + caller));
        }
        wat::parse_str(text + ")").unwrap()
    }

    /// Returns `count` arithmetic steps of six bytes each.
    fn steps(from: String, count: usize) -> String {
        (0..count).fold(from, |text, number| format!("(i32.add (i32.mul {text} (i32.const 3)) (i32.const {number}))"))
    }

    fn larger() -> String {
        steps("(local.get 0)".into(), 10)
    }

    fn answers(module: &[u8]) -> Vec<i32> {
        let engine = Engine::default();
        let module = Module::new(&engine, module).unwrap();
        let mut store = Store::new(&engine, ());
        let instance: Instance = Linker::new(&engine).instantiate_and_start(&mut store, &module).unwrap();
        let names: Vec<String> = module.exports().map(|export| export.name().to_owned()).collect();
        let call =
            |name: &String| instance.get_typed_func::<i32, i32>(&store, name).unwrap().call(&mut store, 5).unwrap();
        names.iter().map(call).collect()
    }

    #[test]
    fn a_large_shared_function_is_called_through_the_table_with_the_same_results() {
        let module = sharing(3, 2, &larger());
        let before = read(&module).unwrap();
        assert_eq!(select(&before), [0]);
        let prevented = prevent(&module).unwrap();
        // A table section, an element section, and three bytes for each of the six calls.
        assert_eq!(prevented.len(), module.len() + 7 + 9 + 6 * 3);
        assert_eq!(answers(&prevented), answers(&module));
        let section = |payload: &Payload<'_>| matches!(payload, Payload::TableSection(table) if table.count() == 1);
        assert!(Parser::new(0).parse_all(&prevented).any(|payload| section(&payload.unwrap())));
        let direct = Parser::new(0).parse_all(&prevented).filter_map(|payload| match payload.unwrap() {
            Payload::CodeSectionEntry(body) => Some(body),
            _ => None,
        });
        let direct = direct.flat_map(|body| body.get_operators_reader().unwrap().into_iter().collect::<Vec<_>>());
        assert_eq!(direct.filter(|operator| matches!(operator, Ok(Operator::Call { .. }))).count(), 0);
    }

    #[test]
    fn a_module_that_would_not_gain_is_unchanged() {
        for module in [sharing(3, 2, "(local.get 0)"), sharing(2, 0, &larger())] {
            assert_eq!(prevent(&module).unwrap(), module);
        }
    }

    #[test]
    fn a_copy_of_memory_counts_for_more_than_its_bytes() {
        let copying = "(memory.copy (i32.const 0) (i32.const 8) (local.get 0)) (local.get 0)";
        assert_eq!(select(&read(&sharing(3, 1, copying)).unwrap()), [0]);
        let storing = "(i64.store (i32.const 0) (i64.load (i32.const 8))) (local.get 0)";
        assert_eq!(select(&read(&sharing(3, 1, storing)).unwrap()), [0; 0]);
    }

    #[test]
    fn each_selected_function_has_its_own_slot() {
        let functions = ["a", "bb", "ccc"].map(|name| {
            let body = steps(format!("(i32.const {})", name.len()), 10);
            let call = steps(format!("(call ${name} (local.get 0))"), 20);
            let caller = |export: u8| format!("(func (export \"{name}{export}\") (param i32) (result i32) {call})");
            format!("(func ${name} (param i32) (result i32) {body})") + &caller(1) + &caller(2)
        });
        let module = wat::parse_str(format!("(module {})", functions.concat())).unwrap();
        let mut selected = select(&read(&module).unwrap());
        selected.sort_unstable();
        assert_eq!(selected, [0, 3, 6]);
        let answers = answers(&module);
        assert!(answers[0] != answers[2] && answers[2] != answers[4] && answers[0] != answers[4], "{answers:?}");
        assert_eq!(self::answers(&prevent(&module).unwrap()), answers);
    }

    #[test]
    fn reads_that_are_dropped_at_once_are_removed() {
        let body = "(local.set 1 (local.get 0)) local.get 1 drop
            local.get 1 local.get 0 local.set 2 drop (i32.sub (local.get 1) (local.get 2))";
        let function = format!("(func $shared (param i32) (result i32) {})", larger());
        let call = steps("(call $shared (local.get 0))".into(), 20);
        let caller = |name: &str, body: &str| {
            format!("(func (export \"{name}\") (param i32) (result i32) (local i32 i32) {body})")
        };
        let text = format!("(module {function} {} {} {})", caller("a", &call), caller("b", &call), caller("c", body));
        let module = wat::parse_str(text).unwrap();
        let prevented = prevent(&module).unwrap();
        // A table section, an element section and three bytes for each of the two calls; minus two reads and two drops.
        assert_eq!(prevented.len(), module.len() + 7 + 9 + 2 * 3 - 3 - 3);
        assert_eq!(answers(&prevented), answers(&module));
    }

    #[test]
    fn a_module_with_a_table_or_with_tail_calls_is_rejected() {
        let tail_call = "(module (func) (func return_call 0))";
        for (text, why) in [
            ("(module (table 1 funcref))", TABLE),
            ("(module (import \"a\" \"b\" (table 1 funcref)))", TABLE),
            (tail_call, "the module has tail calls, which are not supported here"),
        ] {
            assert_eq!(prevent(&wat::parse_str(text).unwrap()).unwrap_err().to_string(), why, "{text}");
        }
    }
}
