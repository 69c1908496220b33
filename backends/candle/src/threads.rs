//! How many threads candle computes with.
//!
//! candle has three answers to that question, and all of them come from the environment: its matrix
//! product reads `RAYON_NUM_THREADS` at every call, layer norm and softmax run on rayon's global
//! pool, which reads it once, and large element-wise operations run on a pool of candle's own,
//! which reads `CANDLE_NUM_THREADS` once. So the variables are set before the first computation,
//! and all three are asked afterwards.

use std::sync::Once;

use driftgauge_protocol::Failure;

/// Makes candle compute with `threads` threads. The first call of a process decides.
///
/// # Errors
/// Where candle would use another number, because a pool was started with it before.
pub fn settle(threads: usize) -> Result<(), Failure> {
    static SETTLED: Once = Once::new();
    if threads == 0 {
        return Err(Failure::error("asked to compute with 0 threads"));
    }
    SETTLED.call_once(|| set_variables(threads));
    for (what, used) in [
        ("matrix product", candle_core::utils::get_num_threads()),
        ("rayon pool", rayon::current_num_threads()),
        (
            "element-wise pool",
            candle_core::utils::barrier_pool().n_workers() + 1,
        ),
    ] {
        if used != threads {
            let message = format!("candle's {what} uses {used} threads, asked for {threads}");
            return Err(Failure::error(message)
                .with_hint("candle fixes its threads once per process: start another worker"));
        }
    }
    Ok(())
}

fn set_variables(threads: usize) {
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: a worker has one thread until candle starts its pools, which happens after this.
        // Where there are others, as in tests, they are Rust code that reads the environment
        // through `std::env`, and that takes the lock which `set_var` takes.
        unsafe { std::env::set_var(variable, threads.to_string()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::THREADS;

    #[test]
    fn the_first_number_of_threads_is_the_only_one() {
        assert!(settle(0).is_err());
        settle(THREADS).unwrap();
        settle(THREADS).unwrap();
        let failure = settle(THREADS + 1).unwrap_err();
        assert_eq!(
            failure.message,
            "candle's matrix product uses 2 threads, asked for 3"
        );
    }
}
