//! The few matrix operations that the oracle needs, in f64.

use std::ops::Range;

use rayon::prelude::*;

/// Rows of a product that one task computes.
const ROW_BLOCK: usize = 512;
/// Outputs of a product that one task computes, and rows of the weight that it widens.
const OUTPUT_PANEL: usize = 256;

/// Numbers that matrices are made of.
pub trait Element: Copy + Default + Send + Sync + std::ops::AddAssign + std::fmt::Debug {
    /// `output = a · b` for matrices given by pointer, row stride and column stride.
    ///
    /// # Safety
    /// Every element that shape and strides reach must lie inside its matrix, those of the output
    /// must not overlap, and nothing else may use the output.
    unsafe fn gemm(
        height: usize,
        inner: usize,
        width: usize,
        a: (*const Self, isize, isize),
        b: (*const Self, isize, isize),
        output: (*mut Self, isize, isize),
    );
}

macro_rules! element {
    ($type:ty, $gemm:path) => {
        impl Element for $type {
            unsafe fn gemm(
                height: usize,
                inner: usize,
                width: usize,
                a: (*const Self, isize, isize),
                b: (*const Self, isize, isize),
                output: (*mut Self, isize, isize),
            ) {
                // SAFETY: the caller's promise is what the function asks for.
                unsafe {
                    $gemm(
                        height, inner, width, 1.0, a.0, a.1, a.2, b.0, b.1, b.2, 0.0, output.0,
                        output.1, output.2,
                    );
                }
            }
        }
    };
}

element!(f64, matrixmultiply::dgemm);
element!(f32, matrixmultiply::sgemm);

/// A dense row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T = f64> {
    height: usize,
    width: usize,
    values: Vec<T>,
}

/// A part of a matrix, perhaps transposed.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T = f64> {
    height: usize,
    width: usize,
    row_stride: usize,
    column_stride: usize,
    values: &'a [T],
}

/// Whole columns of a matrix, to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T = f64> {
    height: usize,
    width: usize,
    row_stride: usize,
    values: &'a mut [T],
}

impl<T: Element> Matrix<T> {
    /// A matrix of rows of `width` numbers.
    ///
    /// # Panics
    /// Where `values` does not consist of whole rows.
    pub fn new(width: usize, values: Vec<T>) -> Self {
        assert!(
            values.len().is_multiple_of(width),
            "rows of {width} in {}",
            values.len()
        );
        Self {
            height: values.len() / width,
            width,
            values,
        }
    }

    /// A matrix of zeros.
    pub fn zeros(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            values: vec![T::default(); height * width],
        }
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All numbers, row by row.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// All numbers, row by row.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// The numbers, and no matrix any more.
    pub fn into_values(self) -> Vec<T> {
        self.values
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// A copy of some rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        Matrix::new(
            self.width,
            self.values[rows.start * self.width..rows.end * self.width].to_vec(),
        )
    }

    /// The whole matrix.
    pub fn all(&self) -> View<'_, T> {
        self.view(0..self.height, 0..self.width)
    }

    /// Some rows and columns.
    pub fn view(&self, rows: Range<usize>, columns: Range<usize>) -> View<'_, T> {
        View {
            height: rows.len(),
            width: columns.len(),
            row_stride: self.width,
            column_stride: 1,
            values: &self.values[rows.start * self.width + columns.start..],
        }
    }

    /// Some columns, to be written.
    pub fn view_mut(&mut self, columns: Range<usize>) -> ViewMut<'_, T> {
        ViewMut {
            height: self.height,
            width: columns.len(),
            row_stride: self.width,
            values: &mut self.values[columns.start..],
        }
    }
}

impl<T: Element> View<'_, T> {
    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The same numbers with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            height: self.width,
            width: self.height,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            values: self.values,
        }
    }

    /// A matrix of what `map` makes of each number.
    pub fn map<U: Element>(self, map: impl Fn(T) -> U) -> Matrix<U> {
        let mut values = Vec::with_capacity(self.height * self.width);
        for row in 0..self.height {
            let row = &self.values[row * self.row_stride..];
            values.extend((0..self.width).map(|column| map(row[column * self.column_stride])));
        }
        Matrix::new(self.width, values)
    }

    fn last_index(&self) -> usize {
        (self.height.max(1) - 1) * self.row_stride + (self.width.max(1) - 1) * self.column_stride
    }
}

/// The product of two matrices.
pub fn multiplied<T: Element>(a: View<'_, T>, b: View<'_, T>) -> Matrix<T> {
    let (height, width) = (a.height, b.width);
    let mut output = Matrix::zeros(height, width);
    product(a, b, &mut output.view_mut(0..width));
    output
}

/// `output = a · b`.
///
/// # Panics
/// Where the shapes do not fit.
pub fn product<T: Element>(a: View<'_, T>, b: View<'_, T>, output: &mut ViewMut<'_, T>) {
    assert_eq!(
        (a.width, a.height, b.width),
        (b.height, output.height, output.width)
    );
    if output.height == 0 || output.width == 0 || a.width == 0 {
        return;
    }
    let last_output = (output.height - 1) * output.row_stride + output.width - 1;
    assert!(a.last_index() < a.values.len() && b.last_index() < b.values.len());
    assert!(last_output < output.values.len());
    let strides = |view: &View<'_, T>| (view.row_stride as isize, view.column_stride as isize);
    let (a_strides, b_strides) = (strides(&a), strides(&b));
    // SAFETY: the largest index that each operand is read or written at was just checked against
    // its slice, the strides of the output do not overlap, and it is borrowed exclusively.
    unsafe {
        T::gemm(
            a.height,
            a.width,
            b.width,
            (a.values.as_ptr(), a_strides.0, a_strides.1),
            (b.values.as_ptr(), b_strides.0, b_strides.1),
            (output.values.as_mut_ptr(), output.row_stride as isize, 1),
        );
    }
}

/// `x · weightᵀ + bias`, where `weight_rows` widens some rows of the weight, one for each output.
///
/// Computed in tiles of a fixed size, so that a tile's weights stay in the cache and the result does
/// not depend on the number of threads.
pub fn linear<T: Element>(
    x: &Matrix<T>,
    weight_rows: &(dyn Fn(Range<usize>) -> Vec<T> + Sync),
    bias: &[T],
) -> Matrix<T> {
    let (inputs, outputs) = (x.width, bias.len());
    let blocks = split(x.height, ROW_BLOCK);
    let panels = split(outputs, OUTPUT_PANEL);
    let tiles: Vec<Vec<T>> = (0..blocks.len() * panels.len())
        .into_par_iter()
        .map(|tile| {
            let (rows, columns) = (&blocks[tile / panels.len()], &panels[tile % panels.len()]);
            let weight = View {
                height: inputs,
                width: columns.len(),
                row_stride: 1,
                column_stride: inputs,
                values: &weight_rows(columns.clone()),
            };
            let mut values = multiplied(x.view(rows.clone(), 0..inputs), weight).values;
            for row in values.chunks_mut(columns.len()) {
                row.iter_mut()
                    .zip(&bias[columns.clone()])
                    .for_each(|(value, bias)| *value += *bias);
            }
            values
        })
        .collect();
    let mut result = Matrix::zeros(x.height, outputs);
    let strips = result.values.par_chunks_mut(ROW_BLOCK * outputs);
    strips
        .zip(tiles.par_chunks(panels.len()))
        .for_each(|(strip, tiles)| {
            for (columns, tile) in panels.iter().zip(tiles) {
                let rows = strip.chunks_mut(outputs).zip(tile.chunks(columns.len()));
                rows.for_each(|(row, part)| row[columns.clone()].copy_from_slice(part));
            }
        });
    result
}

/// Rows for which [`linear_of_few`] is the faster way.
pub const FEW_ROWS: usize = 4;

/// [`linear`] for a few rows, of which no product of matrices makes good use: the weight is read once, and nothing is
/// rearranged. Differs from it by the order of the sums.
pub fn linear_of_few(
    x: &Matrix,
    weight_rows: &(dyn Fn(Range<usize>) -> Vec<f64> + Sync),
    bias: &[f64],
) -> Matrix {
    let (inputs, outputs) = (x.width, bias.len());
    let panels: Vec<Vec<f64>> = split(outputs, OUTPUT_PANEL)
        .into_par_iter()
        .map(|columns| {
            let weight = weight_rows(columns);
            let rows = x.values.chunks(inputs);
            rows.flat_map(|row| weight.chunks(inputs).map(|weight| dot(row, weight)))
                .collect()
        })
        .collect();
    let mut values = Vec::with_capacity(x.height * outputs);
    for row in 0..x.height {
        let parts = panels.iter().flat_map(|panel| {
            let width = panel.len() / x.height;
            &panel[row * width..(row + 1) * width]
        });
        values.extend(parts.zip(bias).map(|(value, bias)| value + bias));
    }
    Matrix::new(outputs, values)
}

/// The sum of the products of two rows, in lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

/// `0..length` in pieces of `size`, the last one perhaps shorter.
fn split(length: usize, size: usize) -> Vec<Range<usize>> {
    (0..length)
        .step_by(size)
        .map(|start| start..(start + size).min(length))
        .collect()
}

/// `target += other`.
pub fn add(target: &mut Matrix, other: &Matrix) {
    target
        .values
        .iter_mut()
        .zip(&other.values)
        .for_each(|(target, other)| *target += other);
}

/// Lanes of [`sum`]; what the compiler turns into vector registers.
const LANES: usize = 16;

/// Sums with one partial sum per lane: faster than one after the other, and the rounding error
/// grows with the length of a lane and not with that of the whole.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; LANES];
    values
        .enumerate()
        .for_each(|(index, value)| lanes[index % LANES] += value);
    let mut half = LANES / 2;
    while half > 0 {
        (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
        half /= 2;
    }
    lanes[0]
}

/// Mean of a row, and the mean of the squared distances from it.
pub fn mean_and_variance(row: &[f64]) -> (f64, f64) {
    let width = row.len() as f64;
    let mean = sum(row.iter().copied()) / width;
    let variance = sum(row.iter().map(|x| (x - mean) * (x - mean))) / width;
    (mean, variance)
}

/// Layer norm of each row, with the biased variance around the mean (two passes).
pub fn layer_norm(matrix: &mut Matrix, scale: &[f64], shift: &[f64], eps: f64) {
    let width = matrix.width;
    matrix.values.par_chunks_mut(width).for_each(|row| {
        let (mean, variance) = mean_and_variance(row);
        let deviation = (variance + eps).sqrt();
        for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
            *x = (*x - mean) / deviation * scale + shift;
        }
    });
}

/// Softmax of each row.
pub fn softmax_rows(matrix: &mut Matrix) {
    let width = matrix.width;
    for row in matrix.values.chunks_mut(width) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - largest).exp());
        let total = sum(row.iter().copied());
        row.iter_mut().for_each(|x| *x /= total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_parts_and_transposes() {
        let a = Matrix::new(3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let output = multiplied(a.all(), a.all().transposed());
        assert_eq!(output.values(), [14.0, 32.0, 32.0, 77.0]);
        let mut output = Matrix::zeros(2, 3);
        product(
            a.view(0..2, 1..2),
            a.view(1..2, 1..3),
            &mut output.view_mut(1..3),
        );
        assert_eq!(output.values(), [0.0, 10.0, 12.0, 0.0, 25.0, 30.0]);
    }

    /// More outputs than one panel, and rows that do not fill the lanes.
    #[test]
    fn a_few_rows_give_what_many_give() {
        let (inputs, outputs) = (2 * LANES + 3, OUTPUT_PANEL + 5);
        let number = |index: usize| ((index * 7919) % 1000) as f64 / 500.0 - 1.0;
        let x = Matrix::new(inputs, (0..FEW_ROWS * inputs).map(number).collect());
        let weight: Vec<f64> = (0..outputs * inputs).map(|i| number(i + 17)).collect();
        let rows = |rows: Range<usize>| weight[rows.start * inputs..rows.end * inputs].to_vec();
        let bias: Vec<f64> = (0..outputs).map(number).collect();
        let (few, many) = (linear_of_few(&x, &rows, &bias), linear(&x, &rows, &bias));
        assert_eq!((few.height(), few.width()), (FEW_ROWS, outputs));
        let pairs = few.values().iter().zip(many.values());
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-13, "{a} and {b}"));
    }

    #[test]
    fn linear_layer_norm_and_softmax_by_hand() {
        let x = Matrix::new(2, vec![1.0, 2.0, 0.0, -1.0]);
        let weight = [1.0, 1.0, 2.0, 0.0, 0.0, 3.0];
        let rows = |rows: Range<usize>| weight[2 * rows.start..2 * rows.end].to_vec();
        let y = linear(&x, &rows, &[0.5, 0.0, -1.0]);
        assert_eq!(y.values(), [3.5, 2.0, 5.0, -0.5, 0.0, -4.0]);
        assert_eq!(linear_of_few(&x, &rows, &[0.5, 0.0, -1.0]), y);
        let mut row = Matrix::new(2, vec![1.0, 3.0]);
        layer_norm(&mut row, &[1.0, 2.0], &[0.0, 1.0], 3.0);
        assert_eq!(row.values(), [-0.5, 2.0]);
        let mut row = Matrix::new(2, vec![1000.0, 1000.0]);
        softmax_rows(&mut row);
        assert_eq!(row.values(), [0.5, 0.5]);
    }

    /// The truth must not depend on the machine's number of cores.
    #[test]
    fn linear_is_bitwise_the_same_on_any_number_of_threads() {
        let values = (0..600 * 96)
            .map(|i| ((i * 37 % 101) as f64).sin())
            .collect();
        let x = Matrix::new(96, values);
        let weight: Vec<f64> = (0..300 * 96)
            .map(|i| ((i * 53 % 97) as f64).cos())
            .collect();
        let rows = |rows: Range<usize>| weight[96 * rows.start..96 * rows.end].to_vec();
        let bias = vec![0.25; 300];
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| linear(&x, &rows, &bias))
        };
        let result = on(1);
        assert_eq!(result, on(3));
        // Tiles meet at the right places.
        for (row, column) in [(0, 0), (511, 255), (512, 256), (599, 299), (3, 298)] {
            let products = x.row(row).iter().zip(&weight[96 * column..]);
            let expected = 0.25 + products.map(|(x, w)| x * w).sum::<f64>();
            assert!(
                (result.row(row)[column] - expected).abs() < 1e-12,
                "{row}, {column}"
            );
        }
    }
}
