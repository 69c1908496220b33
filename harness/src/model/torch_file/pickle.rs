//! A reader of the pickles that `torch.save` writes.
//!
//! A pickle is a program for a stack machine that may name any Python function and have it called.
//! This machine calls nothing: it knows the few names that a state dict needs, refuses every
//! other, and puts together passive values. The values lie in one list and refer to each other by
//! index, so that no nesting and no cycle can lead to recursion.

use std::collections::BTreeMap;

use super::TorchFileError;
use super::value::{Storage, Value};

/// Opcodes that one pickle may have. BERT-base needs 7,000. Each opcode makes at most one value
/// and one entry of the stack, the memo or a container, so this bounds all of them.
const MAX_OPCODES: usize = 1 << 18;
/// Longest line that a name may take.
const MAX_LINE: usize = 1024;

/// A pickle that has been read.
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
    /// Where the pickle ends in the file.
    pub(super) end: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that starts at `start`.
    pub(super) fn read(bytes: &'a [u8], start: usize) -> Result<Self, TorchFileError> {
        let mut machine = Machine {
            bytes,
            at: start,
            opcode_at: start,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
        };
        for _ in 0..MAX_OPCODES {
            machine.opcode_at = machine.at;
            match machine.array()? {
                [b'.'] => {
                    let root = machine.pop()?;
                    let (values, end) = (machine.values, machine.at);
                    return Ok(Self { values, root, end });
                }
                [opcode] => machine.step(opcode)?,
            }
        }
        Err(machine.error(format!("more than {MAX_OPCODES} opcodes")))
    }

    /// What the pickle is a pickle of.
    pub(super) fn root(&self) -> &Value<'a> {
        &self.values[self.root]
    }

    /// A contained value.
    pub(super) fn value(&self, index: usize) -> &Value<'a> {
        &self.values[index]
    }

    /// Every storage that is mentioned, also by values that are not part of the root.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

/// The machine while it runs.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) opcode_at: usize,
    pub(super) values: Vec<Value<'a>>,
    stack: Vec<usize>,
    /// Heights that the stack had at each mark.
    marks: Vec<usize>,
    memo: BTreeMap<u32, usize>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<(), TorchFileError> {
        match opcode {
            // PROTO, FRAME: framing is for readers that buffer.
            0x80 => match self.array()? {
                [2..=5] => {}
                [other] => return Err(self.error(format!("protocol {other} (known: 2 to 5)"))),
            },
            0x95 => drop(self.take(8)?),
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, LONG4
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Integer(number.into()));
            }
            b'K' => {
                let [number] = self.array()?;
                self.push(Value::Integer(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Integer(number.into()));
            }
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(Value::Float);
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and what Python 2 writes for its strings:
            // BINSTRING, SHORT_BINSTRING
            b'X' | b'T' => self.text::<4>()?,
            0x8c | b'U' => self.text::<1>()?,
            0x8d => self.text::<8>()?,
            other => self.step_container(other)?,
        }
        Ok(())
    }

    fn step_container(&mut self, opcode: u8) -> Result<(), TorchFileError> {
        match opcode {
            // MARK, POP, POP_MARK
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            // TUPLE1, TUPLE2, TUPLE3, TUPLE
            0x85..=0x87 => {
                let items = self.pop_last(usize::from(opcode - 0x84))?;
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            // APPEND, APPENDS, SETITEM, SETITEMS
            b'a' => {
                let items = self.pop_last(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_last(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            other => self.step_object(other)?,
        }
        Ok(())
    }

    fn step_object(&mut self, opcode: u8) -> Result<(), TorchFileError> {
        match opcode {
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let [key] = self.array()?;
                self.put(key.into())
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key)
            }
            // One entry per opcode at most: the number fits.
            0x94 => self.put(self.memo.len() as u32),
            // BINGET, LONG_BINGET
            b'h' => {
                let [key] = self.array()?;
                self.get(key.into())
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.get(key)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => self.stack_global(),
            // BINPERSID, REDUCE, BUILD
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            other => {
                let problem = format!("opcode 0x{other:02x} has no place in a state dict");
                Err(self.error(problem))
            }
        }
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> TorchFileError {
        TorchFileError::Pickle {
            offset: self.opcode_at,
            problem: problem.into(),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], TorchFileError> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..length)
            .ok_or_else(|| self.error("it ends too early"))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TorchFileError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn length<const N: usize>(&mut self) -> Result<usize, TorchFileError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| self.error("it ends too early"))
    }

    fn line(&mut self) -> Result<&'a str, TorchFileError> {
        let rest = &self.bytes[self.at..];
        let rest = &rest[..rest.len().min(MAX_LINE)];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(self.error("a name without an end"));
        };
        self.at += length + 1;
        str::from_utf8(&rest[..length]).map_err(|_| self.error("a name that is not UTF-8"))
    }

    pub(super) fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Pops one value from above the last mark.
    pub(super) fn pop(&mut self) -> Result<usize, TorchFileError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(index) if self.stack.len() >= floor => Ok(index),
            _ => Err(self.error("the stack is empty")),
        }
    }

    fn pop_last(&mut self, length: usize) -> Result<Vec<usize>, TorchFileError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(length) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err(self.error("the stack is empty")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<usize>, TorchFileError> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| self.error("there is no mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn top(&self) -> Result<usize, TorchFileError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[usize]>::last).copied();
        top.ok_or_else(|| self.error("the stack is empty"))
    }

    fn put(&mut self, key: u32) -> Result<(), TorchFileError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<(), TorchFileError> {
        let index = self.memo.get(&key).copied();
        self.stack
            .push(index.ok_or_else(|| self.error(format!("memo {key} is not set")))?);
        Ok(())
    }

    fn long<const N: usize>(&mut self) -> Result<(), TorchFileError> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        let Some(low) = wide.get_mut(..length) else {
            return Err(self.error("an integer of more than 16 bytes"));
        };
        low.copy_from_slice(bytes);
        self.push(Value::Integer(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn text<const N: usize>(&mut self) -> Result<(), TorchFileError> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?;
        let text = str::from_utf8(bytes).map_err(|_| self.error("a string that is not UTF-8"))?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn append(&mut self, items: Vec<usize>) -> Result<(), TorchFileError> {
        let target = self.top()?;
        let Value::List(list) = &mut self.values[target] else {
            return Err(self.error(format!("cannot append to {}", self.values[target].kind())));
        };
        list.extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[usize]) -> Result<(), TorchFileError> {
        let target = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.error("a key without a value"));
        };
        let Value::Dict(dict) = &mut self.values[target] else {
            return Err(self.error(format!(
                "cannot set items of {}",
                self.values[target].kind()
            )));
        };
        dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads a pickle and says what it is of, or the message of the error.
    pub(in super::super) fn check(pickle: &[u8], expected: &str) {
        let found = match Pickle::read(pickle, 0) {
            Ok(read) => read.root().kind().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(
            found.contains(expected),
            "{}: {found}",
            pickle.escape_ascii()
        );
    }

    #[test]
    fn broken_programs_are_errors() {
        check(b"", "byte 0: it ends too early");
        check(b"X\xff\xff\xff\xffabc", "byte 0: it ends too early");
        check(
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
            "it ends too early",
        );
        check(b"X\x01\0\0\0\xff.", "a string that is not UTF-8");
        check(b"cos", "a name without an end");
        check(b"\x80\x06.", "protocol 6");
        check(b".", "the stack is empty");
        check(b"N(0.", "the stack is empty");
        check(b"N(\x85.", "the stack is empty");
        check(b"N(q\0.", "the stack is empty");
        check(b"Nt.", "there is no mark");
        check(b"h\x07.", "memo 7 is not set");
        check(b"Na.", "the stack is empty");
        check(b"NNa.", "cannot append to None");
        check(b"}(Nu.", "a key without a value");
        check(b"]NNs.", "cannot set items of a list");
        check(
            b"\x8a\x11aaaaaaaaaaaaaaaaa.",
            "an integer of more than 16 bytes",
        );
        check(&vec![b'('; MAX_OPCODES + 1], "more than 262144 opcodes");
    }

    #[test]
    fn depth_and_cycles_are_harmless() {
        check(b"]q\0h\0a.", "a list");
        let mut deep = vec![b')'];
        deep.extend([0x85; 100_000]);
        deep.push(b'.');
        check(&deep, "a tuple");
    }

    #[test]
    fn integers_have_their_sign_and_size() {
        let cases: [(&[u8], i128); 7] = [
            (b"J\xff\xff\xff\xff.", -1),
            (b"K\xff.", 255),
            (b"M\x01\x02.", 513),
            (b"\x8a\0.", 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\xff\0.", 255),
            (b"\x8b\x01\0\0\0\x80.", -128),
        ];
        for (pickle, expected) in cases {
            let read = Pickle::read(pickle, 0).unwrap();
            assert!(matches!(read.root(), Value::Integer(number) if *number == expected));
        }
    }
}
