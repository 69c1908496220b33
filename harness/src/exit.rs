//! Exit codes: what a script meets.

/// Every case conforms on every target.
pub const CONFORMS: u8 = 0;
/// Something drifted, or a known deviation no longer happens.
pub const DRIFT: u8 = 1;
/// Wrong usage, or a suite, model or record that is missing or damaged.
pub const INPUT: u8 = 2;
/// A target broke, or a worker, runtime or device that was asked for is not there.
pub const BROKEN: u8 = 3;
/// Nothing was run: no case or no target was selected.
pub const NOTHING: u8 = 4;
