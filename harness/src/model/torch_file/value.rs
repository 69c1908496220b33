//! What a pickle is read into: passive values.

use std::ops::Range;

use driftgauge_protocol::Dtype;

/// A value, as data. Contained values are given by their index in the pickle's list of values.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Integer(i128),
    Float,
    Text(&'a str),
    Tuple(Vec<usize>),
    List(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Storage(Element),
}

/// Number format of a storage; without `dtype` it is one that no worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) dtype: Option<Dtype>,
    pub(super) size: usize,
}

/// A run of numbers that is stored beside the pickle, or a part of one.
#[derive(Debug, Clone)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) element: Element,
    /// Elements of the whole storage.
    pub(super) count: usize,
    /// The elements that are meant; inside `0..count`.
    pub(super) window: Range<usize>,
}

/// A tensor as the pickle describes it: the first element and the strides count elements of the
/// storage. Nothing about them has been checked.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) first: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Value<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Integer(_) => "an integer",
            Value::Float => "a float",
            Value::Text(_) => "a string",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a class or function",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

impl Global {
    /// The one of a module and a name; `None` for all that a pickle may not use.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", storage) => {
                let (dtype, size) = match storage.strip_suffix("Storage")? {
                    "Double" => (Some(Dtype::F64), 8),
                    "Float" => (Some(Dtype::F32), 4),
                    "Half" => (Some(Dtype::F16), 2),
                    "BFloat16" => (Some(Dtype::Bf16), 2),
                    "Long" => (Some(Dtype::I64), 8),
                    "Int" => (None, 4),
                    "Short" => (None, 2),
                    "Char" | "Byte" | "Bool" => (None, 1),
                    _ => return None,
                };
                Global::Storage(Element { dtype, size })
            }
            _ => return None,
        })
    }
}
