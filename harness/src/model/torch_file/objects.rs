//! What a pickle may name and call, and what becomes of it.

use super::pickle::Machine;
use super::value::{Global, Storage, Tensor, Value};
use super::{TorchFileError, shown};

/// Extents that a tensor may have.
const MAX_RANK: usize = 16;

impl<'a> Machine<'a> {
    pub(super) fn stack_global(&mut self) -> Result<(), TorchFileError> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.values[module], &self.values[name]) {
            (Value::Text(module), Value::Text(name)) => self.global(module, name),
            _ => Err(self.error("a name that is not a string")),
        }
    }

    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<(), TorchFileError> {
        let global = Global::named(module, name).ok_or_else(|| TorchFileError::Refused {
            global: shown(&format!("{module}.{name}")),
            offset: self.opcode_at,
        })?;
        self.push(Value::Global(global));
        Ok(())
    }

    pub(super) fn persistent(&mut self) -> Result<(), TorchFileError> {
        let id = self.pop()?;
        let storage = self.storage(id);
        let storage = storage.ok_or_else(|| self.error("a persistent id that is not a storage"))?;
        self.push(Value::Storage(storage));
        Ok(())
    }

    /// The storage of `("storage", type, key, device, count)`; the legacy format adds None, or
    /// `(key, first, count)` of the part that is meant.
    fn storage(&self, id: usize) -> Option<Storage<'a>> {
        let Value::Tuple(id) = &self.values[id] else {
            return None;
        };
        let (id, view) = match id.len() {
            6 => (&id[..5], &self.values[id[5]]),
            _ => (&id[..], &Value::None),
        };
        let [tag, element, key, _device, count] = id else {
            return None;
        };
        let (Value::Text("storage"), Value::Global(Global::Storage(element)), Value::Text(key)) = (
            &self.values[*tag],
            &self.values[*element],
            &self.values[*key],
        ) else {
            return None;
        };
        let count = self.size(*count)?;
        let window = match view {
            Value::None => 0..count,
            Value::Tuple(view) => match view.as_slice() {
                [_, first, length] => {
                    let first = self.size(*first)?;
                    first..first.checked_add(self.size(*length)?)?
                }
                _ => return None,
            },
            _ => return None,
        };
        let inside = window.end <= count;
        inside.then_some(Storage {
            key,
            element: *element,
            count,
            window,
        })
    }

    pub(super) fn reduce(&mut self) -> Result<(), TorchFileError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Global(global), Value::Tuple(arguments)) =
            (&self.values[callable], &self.values[arguments])
        else {
            let (callable, arguments) = (&self.values[callable], &self.values[arguments]);
            let problem = format!("cannot call {} with {}", callable.kind(), arguments.kind());
            return Err(self.error(problem));
        };
        let result = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Some(Value::Dict(Vec::new())),
            (Global::RebuildParameter, [tensor, _grad, _hooks]) => match &self.values[*tensor] {
                // A parameter is its tensor.
                Value::Tensor(tensor) => Some(Value::Tensor(tensor.clone())),
                _ => None,
            },
            (Global::RebuildTensor, [storage, first, shape, strides])
            | (Global::RebuildTensorV2, [storage, first, shape, strides, _, _]) => {
                self.tensor([*storage, *first, *shape, *strides])
            }
            // A seventh argument, for negated and conjugated views, would change the numbers.
            _ => None,
        };
        let result = result.ok_or_else(|| self.error("a call with unexpected arguments"))?;
        self.push(result);
        Ok(())
    }

    fn tensor(&self, [storage, first, shape, strides]: [usize; 4]) -> Option<Value<'a>> {
        let Value::Storage(storage) = &self.values[storage] else {
            return None;
        };
        Some(Value::Tensor(Tensor {
            storage: storage.clone(),
            first: self.size(first)?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        }))
    }

    fn size(&self, index: usize) -> Option<usize> {
        match self.values[index] {
            Value::Integer(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }

    fn sizes(&self, index: usize) -> Option<Vec<usize>> {
        match &self.values[index] {
            Value::Tuple(items) if items.len() <= MAX_RANK => {
                items.iter().map(|item| self.size(*item)).collect()
            }
            _ => None,
        }
    }

    /// Drops the attributes of a dict: modules leave their version numbers there.
    pub(super) fn build(&mut self) -> Result<(), TorchFileError> {
        let state = self.pop()?;
        let target = self.top()?;
        match (&self.values[target], &self.values[state]) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            (target, _) => Err(self.error(format!("cannot set attributes of {}", target.kind()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pickle::tests::check;

    #[test]
    fn names_that_tensors_do_not_need_are_refused() {
        check(
            b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.",
            "uses `os.system` at byte 2,",
        );
        check(
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93)R.",
            "uses `builtins.eval` at byte 18,",
        );
        check(b"\x80\x02ctorch\nload\n.", "uses `torch.load`");
        check(
            b"\x80\x02ctorch\nComplexFloatStorage\n.",
            "uses `torch.ComplexFloatStorage`",
        );
        check(b"\x80\x02c\x1b[31m\n\n.", r"uses `\u{1b}[31m.`");
        check(
            &[b"cx\n", [b'x'; 300].as_slice(), b"\n"].concat(),
            &format!("{}…`", "x".repeat(98)),
        );
        // INST, OBJ, NEWOBJ, EXT1: the other ways to name or call something.
        check(b"(ios\nsystem\n.", "opcode 0x69 has no place");
        check(
            b"(ccollections\nOrderedDict\no.",
            "opcode 0x6f has no place",
        );
        check(
            b"ccollections\nOrderedDict\n)\x81.",
            "opcode 0x81 has no place",
        );
        check(b"\x82\x01.", "opcode 0x82 has no place");
    }

    #[test]
    fn only_the_calls_that_make_tensors_are_understood() {
        check(b"ccollections\nOrderedDict\n)R.", "a dict");
        check(
            b"ccollections\nOrderedDict\nK\x01\x85R.",
            "unexpected arguments",
        );
        check(b"ctorch\nFloatStorage\nK\x01\x85R.", "unexpected arguments");
        check(
            b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "unexpected arguments",
        );
        check(
            b"ctorch._utils\n_rebuild_parameter\nN\x88N\x87R.",
            "unexpected arguments",
        );
        check(b"X\x01\0\0\0f)R.", "cannot call a string with a tuple");
        check(b"]}b.", "cannot set attributes of a list");
        check(b"}Nb.", "cannot set attributes of a dict");
        check(b"X\x01\0\0\0kQ.", "a persistent id that is not a storage");
    }
}
