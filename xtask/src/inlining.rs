//! Calls that V8 must not inline, put behind a table.
//!
//! Envoy's V8, which runs without its first compiler, Liftoff, compiles every function of a module when it loads it, with
//! the optimising one, and in each function copies of what that calls: callees smaller than what is left of a budget, which
//! is 2 to 5 times the function's own size (`NoLiftoffBudget` in
//! <https://github.com/v8/v8/blob/14.6.202.10/src/wasm/inlining-tree.h>, `should_inline` in `turboshaft-graph-interface.cc`).
//! A module that was made small by sharing functions so takes twice the time to load. V8 does not inline a call through a
//! table, which is three bytes longer: those are chosen that spare it most.

use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, convert::Infallible};
use wasm_encoder::{
    CodeSection, ConstExpr, ElementSection, Elements, Instruction, Module, RefType, SectionId, TableSection, TableType,
    reencode::{self, Reencode},
};
use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef};

/// A byte of the module has to spare V8 so many of the bytes that it would copy.
const WORTH: usize = 8;

/// What V8 goes by: functions smaller than this are small, a budget is not smaller than this, and in one function so many
/// calls are inlined.
const SMALL: usize = 50;
const LEAST_BUDGET: usize = 50;
const MOST_INLINED: usize = 60;

/// A copy of memory costs V8 as much as so many bytes of other code.
const MEMORY_COPY: usize = 60;

const TABLE: &str = "the module has a table already";

/// A function of the module.
struct Function {
    ty: u32,
    size: usize,
    /// What it costs V8 to compile it, as so many bytes.
    cost: usize,
    /// The functions that it calls, by their indices, one for each call.
    calls: Vec<u32>,
}

/// The functions of a module by their indices, which begin with those of the imports.
type Functions = BTreeMap<u32, Function>;

/// The module with those calls through a table.
pub fn prevent(module: &[u8]) -> Result<Vec<u8>> {
    let functions = read(module)?;
    let apart = choose(&functions);
    if apart.is_empty() {
        return Ok(module.to_vec());
    }
    let mut through_table = ThroughTable { functions: &functions, apart, listed: false };
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
                let place = functions.len();
                let size = body.range().len();
                let (mut cost, mut calls) = (size, Vec::new());
                for operator in body.get_operators_reader()? {
                    match operator? {
                        Operator::Call { function_index } if function_index >= imported => calls.push(function_index),
                        Operator::ReturnCall { .. } => bail!("the module has tail calls, which are not looked at here"),
                        Operator::MemoryCopy { .. } => cost += MEMORY_COPY,
                        _ => {}
                    }
                }
                let ty = *types.get(place).context("a function without a type")?;
                functions.insert(imported + u32::try_from(place)?, Function { ty, size, cost, calls });
            }
            Payload::TableSection(_) | Payload::ElementSection(_) => bail!(TABLE),
            _ => {}
        }
    }
    Ok(functions)
}

/// The functions to be called through the table, those first that spare most.
fn choose(functions: &Functions) -> Vec<u32> {
    let mut apart = Vec::new();
    let mut copied = copied(functions, &apart);
    loop {
        let candidates = functions.keys().filter(|index| !apart.contains(*index)).filter_map(|&index| {
            let calls: usize =
                functions.values().flat_map(|function| &function.calls).filter(|&&to| to == index).count();
            let with: Vec<u32> = apart.iter().copied().chain([index]).collect();
            let spared = copied.checked_sub(self::copied(functions, &with))?;
            // Its place in the table, and what each call is longer.
            Some((spared / (1 + 3 * calls), index, copied - spared))
        });
        match candidates.max() {
            Some((worth, index, left)) if worth >= WORTH => {
                apart.push(index);
                copied = left;
            }
            _ => return apart,
        }
    }
}

/// How many bytes of functions V8 compiles again, inlined in others, where it leaves these apart.
fn copied(functions: &Functions, apart: &[u32]) -> usize {
    let small = functions.values().filter(|function| function.size < SMALL).count() as f64 / functions.len() as f64;
    let growth = 2.0 + 3.0 * ((small - 0.25) / 0.25).clamp(0.0, 1.0);
    let of = |function: &Function| {
        let budget = ((growth * function.size as f64) as usize).max(LEAST_BUDGET);
        inline(functions, apart, function, &mut Left { budget, calls: MOST_INLINED })
    };
    functions.values().map(of).sum()
}

/// What may still be inlined.
struct Left {
    budget: usize,
    calls: usize,
}

/// What it costs V8 to compile again what it inlines into this function.
fn inline(functions: &Functions, apart: &[u32], into: &Function, left: &mut Left) -> usize {
    let mut cost = 0;
    for to in &into.calls {
        let Some(callee) = functions.get(to) else { continue };
        if !apart.contains(to) && callee.size < left.budget && left.calls > 0 {
            *left = Left { budget: left.budget - callee.size, calls: left.calls - 1 };
            cost += callee.cost + inline(functions, apart, callee, left);
        }
    }
    cost
}

/// Writes the module anew, with a table of these functions.
struct ThroughTable<'a> {
    functions: &'a Functions,
    apart: Vec<u32>,
    /// Whether the table's elements are written.
    listed: bool,
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
            let size = self.apart.len() as u64;
            let mut tables = TableSection::new();
            let element_type = RefType::FUNCREF;
            tables.table(TableType { element_type, table64: false, minimum: size, maximum: Some(size), shared: false });
            module.section(&tables);
        }
        if matches!(before, Some(SectionId::DataCount | SectionId::Code)) && !self.listed {
            self.listed = true;
            let mut elements = ElementSection::new();
            elements.active(None, &ConstExpr::i32_const(0), Elements::Functions(self.apart.as_slice().into()));
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
        for operator in body.get_operators_reader()? {
            match operator? {
                Operator::Call { function_index } if let Some((place, type_index)) = self.place(function_index) => {
                    function.instruction(&Instruction::I32Const(place));
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
    /// The place in the table of the function of this index, if it has one, and the index of its type.
    fn place(&self, function: u32) -> Option<(i32, u32)> {
        let place = self.apart.iter().position(|&apart| apart == function)?;
        Some((i32::try_from(place).ok()?, self.functions.get(&function)?.ty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use wasmi::{Engine, Instance, Linker, Module, Store};

    /// A module of so many exports, each of which calls `shared` so often and goes on by itself.
    fn sharing(callers: usize, calls: usize, shared: &str) -> Vec<u8> {
        let mut text = format!("(module (memory 1) (func $shared (param i32) (result i32) {shared})");
        for caller in 0..callers {
            let calls = "(call $shared".repeat(calls) + " (local.get 0)" + &")".repeat(calls);
            _ = write!(text, "(func (export \"{caller}\") (param i32) (result i32) {})", steps(calls, 20 + caller));
        }
        wat::parse_str(text + ")").unwrap()
    }

    /// So many steps of arithmetic, of six bytes each.
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
    fn what_is_shared_and_not_small_is_called_through_the_table_and_answers_as_before() {
        let module = sharing(3, 2, &larger());
        let before = read(&module).unwrap();
        assert_eq!(choose(&before), [0]);
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
    fn what_is_not_worth_its_bytes_stays_as_it_is() {
        for module in [sharing(3, 2, "(local.get 0)"), sharing(2, 0, &larger())] {
            assert_eq!(prevent(&module).unwrap(), module);
        }
    }

    #[test]
    fn a_copy_of_memory_counts_for_more_than_its_bytes() {
        let copying = "(memory.copy (i32.const 0) (i32.const 8) (local.get 0)) (local.get 0)";
        assert_eq!(choose(&read(&sharing(3, 1, copying)).unwrap()), [0]);
        let storing = "(i64.store (i32.const 0) (i64.load (i32.const 8))) (local.get 0)";
        assert_eq!(choose(&read(&sharing(3, 1, storing)).unwrap()), [0; 0]);
    }

    #[test]
    fn each_of_several_has_its_own_place_in_the_table() {
        let functions = ["a", "bb", "ccc"].map(|name| {
            let body = steps(format!("(i32.const {})", name.len()), 10);
            let call = steps(format!("(call ${name} (local.get 0))"), 20);
            let caller = |export: u8| format!("(func (export \"{name}{export}\") (param i32) (result i32) {call})");
            format!("(func ${name} (param i32) (result i32) {body})") + &caller(1) + &caller(2)
        });
        let module = wat::parse_str(format!("(module {})", functions.concat())).unwrap();
        let mut apart = choose(&read(&module).unwrap());
        apart.sort_unstable();
        assert_eq!(apart, [0, 3, 6]);
        let answers = answers(&module);
        assert!(answers[0] != answers[2] && answers[2] != answers[4] && answers[0] != answers[4], "{answers:?}");
        assert_eq!(self::answers(&prevent(&module).unwrap()), answers);
    }

    #[test]
    fn a_module_with_a_table_or_with_tail_calls_is_refused() {
        let tail_call = "(module (func) (func return_call 0))";
        for (text, why) in [
            ("(module (table 1 funcref))", TABLE),
            ("(module (import \"a\" \"b\" (table 1 funcref)))", TABLE),
            (tail_call, "the module has tail calls, which are not looked at here"),
        ] {
            assert_eq!(prevent(&wat::parse_str(text).unwrap()).unwrap_err().to_string(), why, "{text}");
        }
    }
}
