//! Report pages in headless Chromium: no error on the console, no request leaves the page, axe-core finds no
//! violation in light and dark, nothing overflows at 360 and 1600 pixels, and the tables filter and sort.
//!
//! With `DRIFTGAUGE_SCREENSHOTS` set to a folder, pictures of the pages are left there.
#![cfg(test)]

#[path = "../reports/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use driftgauge_reports::{Format, Language, Style, selftest};

/// What brings everything that is missing.
const NEXT_STEP: &str = "run ci/setup --tests";

#[expect(
    clippy::disallowed_methods,
    reason = "a browser is a program of its own"
)]
#[test]
fn pages_in_a_real_browser() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = root.join(".runtimes/browser/node_modules");
    assert!(
        modules.is_dir(),
        "`{}` is missing: {NEXT_STEP}",
        modules.display()
    );
    let chromium = chromium();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    write_pages(&folder);
    let mut node = Command::new("node");
    node.arg(root.join("tests/browser/check.js"))
        .arg(chromium)
        .arg(&folder);
    node.env("NODE_PATH", &modules);
    if let Some(screenshots) = std::env::var_os("DRIFTGAUGE_SCREENSHOTS") {
        std::fs::create_dir_all(&screenshots).unwrap();
        node.arg(screenshots);
    }
    let output = node.output();
    let output =
        output.unwrap_or_else(|error| panic!("node does not start ({error}): {NEXT_STEP}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("4 pages, 16 looks, 0 problems"), "{said}");
}

fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = all.find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("no Chromium is found: {NEXT_STEP}"))
}

/// The page of a run and that of a self-test, in every language.
fn write_pages(folder: &Path) {
    let style = Style {
        width: 80,
        colour: false,
    };
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    for language in Language::ALL {
        let record = support::record();
        let run = driftgauge_reports::render(&record, Format::Html, style, language).unwrap();
        let trials = selftest::render_html(&support::selftest::fixture(), language).unwrap();
        for (name, page) in [("run", run), ("selftest", trials)] {
            let file = folder.join(format!("{name}-{}.html", language.name()));
            std::fs::write(file, page).unwrap();
        }
    }
}
