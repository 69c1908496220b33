//! Lets the worker and its tests find libtorch where it was found at build time. The harness also
//! sets the library path, so that the worker can be pointed at another copy of the same version.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // torch-sys states the directory it links against; `.cargo/config.toml` makes it absolute.
    if let Ok(directory) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{directory}");
    }
}
