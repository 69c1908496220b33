//! States which versions of candle and gemm are compiled in, as `Cargo.lock` has them, and which
//! CPU features the compiler may assume.

use std::error::Error;
use std::path::Path;

const PACKAGES: [&str; 4] = ["candle-transformers", "candle-nn", "candle-core", "gemm"];

fn main() -> Result<(), Box<dyn Error>> {
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../Cargo.lock");
    let lock = std::fs::read_to_string(&path)?;
    println!("cargo::rerun-if-changed={}", path.display());
    println!("cargo::rerun-if-changed=build.rs");
    for package in PACKAGES {
        let variable = package.replace('-', "_").to_uppercase();
        let version = locked_version(&lock, package)?;
        println!("cargo::rustc-env={variable}_VERSION={version}");
    }
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    println!("cargo::rustc-env=TARGET_FEATURES={features}");
    println!("cargo::rustc-env=TARGET={}", std::env::var("TARGET")?);
    Ok(())
}

/// The version of a package. Two versions of one package are an error: nothing here could tell
/// which of them computes.
fn locked_version<'a>(lock: &'a str, package: &str) -> Result<&'a str, String> {
    let name = format!("name = \"{package}\"");
    let mut versions = lock
        .split("[[package]]")
        .filter(|entry| entry.lines().any(|line| line == name))
        .filter_map(|entry| {
            let mut lines = entry.lines();
            lines.find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        });
    match (versions.next(), versions.next()) {
        (Some(version), None) => Ok(version),
        (None, _) => Err(format!("Cargo.lock has no package `{package}`")),
        (Some(one), Some(other)) => Err(format!(
            "Cargo.lock has `{package}` in versions {one} and {other}"
        )),
    }
}
