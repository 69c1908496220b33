//! Writes nodes and constants, in the order they are asked for.
//!
//! Knows ONNX, not BERT. Nothing here depends on a hash map's order, so the same calls give the same
//! bytes.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_protocol::{Dtype, Failure, Location, Weights};
use half::{bf16, f16};

use crate::proto::{
    AttributeProto, DataLocation, DataType, Dimension, Extent, GraphProto, NodeProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};

/// An extent of a declared value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    /// Known when the graph is written.
    Fixed(usize),
    /// Known when the graph runs.
    Named(&'static str),
}

/// A graph that is being written.
pub(super) struct Writer<'a> {
    weights: &'a Weights,
    file: &'a str,
    dtype: Dtype,
    graph: GraphProto,
    /// From a tensor's name in the file to the value that holds it, so that a tied weight is one
    /// initialiser.
    values: BTreeMap<String, String>,
    /// Constants and shared nodes that are written already.
    written: BTreeSet<String>,
}

impl<'a> Writer<'a> {
    /// An empty graph that computes in `dtype` and finds its weights in `file`, the last component
    /// of the path of `weights`.
    pub(super) fn new(name: &str, weights: &'a Weights, file: &'a str, dtype: Dtype) -> Self {
        Self {
            weights,
            file,
            dtype,
            graph: GraphProto {
                name: name.to_owned(),
                ..GraphProto::default()
            },
            values: BTreeMap::new(),
            written: BTreeSet::new(),
        }
    }

    /// The dtype that the graph computes in.
    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The finished graph.
    pub(super) fn finish(self) -> GraphProto {
        self.graph
    }

    /// Declares an input of 64-bit integers.
    pub(super) fn input(&mut self, name: &str, dtype: Dtype, dims: &[Dim]) {
        self.graph.input.push(value_info(name, dtype, dims));
    }

    /// Declares that a value of a stated shape can be fetched.
    pub(super) fn output(&mut self, name: &str, dims: &[Dim]) {
        self.graph.output.push(value_info(name, self.dtype, dims));
    }

    /// Declares that a value can be fetched, and states no shape: that could change what is fused.
    /// A value is declared once, however often it is asked for.
    pub(super) fn expose(&mut self, name: &str) {
        if self.graph.output.iter().any(|output| output.name == name) {
            return;
        }
        let mut output = value_info(name, self.dtype, &[]);
        if let Some(tensor) = output
            .r#type
            .as_mut()
            .and_then(|kind| kind.tensor_type.as_mut())
        {
            tensor.shape = None;
        }
        self.graph.output.push(output);
    }

    /// States the shape of a value that ONNX's shape inference does not find out by itself.
    pub(super) fn declare(&mut self, name: &str, dims: &[Dim]) {
        self.graph
            .value_info
            .push(value_info(name, self.dtype, dims));
    }

    /// Adds a node and returns the name of its only output.
    pub(super) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: output.to_owned(),
            op_type: operator.to_owned(),
            attribute: attributes,
            domain: String::new(),
        });
        output.to_owned()
    }

    /// As [`Writer::node`], for a node that several parts of the graph share: the first to ask
    /// writes it.
    pub(super) fn node_once(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        if self.written.insert(output.to_owned()) {
            self.node(operator, inputs, output, attributes);
        }
        output.to_owned()
    }

    /// The value of a weight, which must have the given shape: an external initialiser, behind a
    /// `Cast` where the file stores another dtype (exact from a narrower one). One that a fault changes
    /// is in no file, and stands in the graph.
    ///
    /// # Errors
    /// For a weight that is missing or of another shape, and for one that a fault cannot change.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<String, Failure> {
        let location = self.weights.location(name)?;
        if location.shape != shape {
            return Err(Failure::error(format!(
                "tensor `{name}` has shape {:?}, the configuration makes it {shape:?}",
                location.shape
            )));
        }
        let stored = self.weights.stored_name(name)?;
        if let Some(value) = self.values.get(stored) {
            return Ok(value.clone());
        }
        let (initializer, dtype) = match self.weights.is_changed(name) {
            true => self.inline(name)?,
            false => (self.external(name, location), location.dtype),
        };
        self.graph.initializer.push(initializer);
        let value = if dtype == self.dtype {
            name.to_owned()
        } else {
            self.cast(name, &format!("{name}.{}", self.dtype))
        };
        self.values.insert(stored.to_owned(), value.clone());
        Ok(value)
    }

    /// An initialiser that is a piece of the file.
    fn external(&self, name: &str, location: &Location) -> TensorProto {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: key.to_owned(),
            value,
        };
        TensorProto {
            dims: extents(&location.shape),
            data_type: data_type(location.dtype).into(),
            name: name.to_owned(),
            external_data: vec![
                entry("location", self.file.to_owned()),
                entry("offset", location.offset.to_string()),
                entry("length", location.length.to_string()),
            ],
            data_location: DataLocation::External.into(),
            ..TensorProto::default()
        }
    }

    /// An initialiser that stands in the graph, and its dtype.
    fn inline(&self, name: &str) -> Result<(TensorProto, Dtype), Failure> {
        let tensor = self.weights.read(name)?;
        let initializer = TensorProto {
            dims: extents(tensor.shape()),
            data_type: data_type(tensor.dtype()).into(),
            name: name.to_owned(),
            raw_data: tensor.bytes().to_vec(),
            ..TensorProto::default()
        };
        Ok((initializer, tensor.dtype()))
    }

    /// A `Cast` to the dtype of the graph.
    pub(super) fn cast(&mut self, input: &str, output: &str) -> String {
        self.cast_to(self.dtype, input, output)
    }

    /// A `Cast` to another dtype.
    pub(super) fn cast_to(&mut self, dtype: Dtype, input: &str, output: &str) -> String {
        let to = AttributeProto::int("to", i32::from(data_type(dtype)).into());
        self.node("Cast", &[input], output, vec![to])
    }

    /// A scalar constant, rounded to the dtype of the graph.
    pub(super) fn scalar(&mut self, name: &str, value: f64) -> String {
        self.scalar_of(self.dtype, name, value)
    }

    /// A scalar constant of another dtype.
    pub(super) fn scalar_of(&mut self, dtype: Dtype, name: &str, value: f64) -> String {
        self.constant(name, &[], dtype, || match dtype {
            Dtype::F64 => value.to_le_bytes().to_vec(),
            Dtype::F32 => (value as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            Dtype::I64 => (value as i64).to_le_bytes().to_vec(),
        })
    }

    /// A list of integers: axes, a shape.
    pub(super) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        self.constant(name, &[values.len()], Dtype::I64, || {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
    }

    /// A constant is written once, however often it is asked for.
    fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: Dtype,
        bytes: impl FnOnce() -> Vec<u8>,
    ) -> String {
        if self.written.insert(name.to_owned()) {
            self.graph.initializer.push(TensorProto {
                dims: extents(shape),
                data_type: data_type(dtype).into(),
                name: name.to_owned(),
                raw_data: bytes(),
                ..TensorProto::default()
            });
        }
        name.to_owned()
    }
}

/// ONNX's name for a dtype.
pub(super) fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F64 => DataType::Double,
        Dtype::F32 => DataType::Float,
        Dtype::F16 => DataType::Float16,
        Dtype::Bf16 => DataType::Bfloat16,
        Dtype::I64 => DataType::Int64,
    }
}

fn extents(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&extent| extent as i64).collect()
}

fn value_info(name: &str, dtype: Dtype, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match *dim {
                Dim::Fixed(extent) => Extent::Value(extent as i64),
                Dim::Named(name) => Extent::Param(name.to_owned()),
            }),
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type(dtype).into(),
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
