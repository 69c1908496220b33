//! The machine, as the record keeps it.

use std::collections::BTreeMap;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Facts about the machine that can change numbers.
pub fn describe() -> BTreeMap<String, String> {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted).ok();
    let brand = |system: &System| Some(system.cpus().first()?.brand().trim().to_owned());
    let cpu = system.as_ref().and_then(brand);
    let memory = system
        .as_ref()
        .map(|system| (system.total_memory() >> 30).to_string());
    let facts = [
        ("architecture", Some(std::env::consts::ARCH.to_owned())),
        ("cpu", cpu),
        ("cpu_features", Some(cpu_features())),
        ("kernel", System::kernel_version().ok()),
        ("logical_cpus", Some(logical_cpus().to_string())),
        ("memory_gib", memory),
        ("os", System::long_os_version().ok()),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// CPUs that this process may use.
pub fn logical_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let features = [
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
    ];
    features
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    "not listed on this architecture".to_owned()
}
