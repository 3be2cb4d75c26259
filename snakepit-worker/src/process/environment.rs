//! The environment variables that the host sets for each worker: those of its slot, the adapter arguments, and thread limits.

use std::{num::NonZero, thread::available_parallelism};

use snakepit_proto::launch;

use super::ProcessConfig;
use crate::{WorkerError, WorkerSlot};

/// Name and value of an environment variable.
pub(super) type Variable = (&'static str, String);

/// The variables that set the thread count of numeric libraries. The flag states whether the library reads `OMP_NUM_THREADS`
/// if this variable is not set.
const THREADS: [(&str, bool); 6] = [
    ("OMP_NUM_THREADS", true),
    ("OPENBLAS_NUM_THREADS", true),
    ("MKL_NUM_THREADS", true),
    ("NUMEXPR_NUM_THREADS", true),
    ("VECLIB_MAXIMUM_THREADS", false),
    ("RAYON_NUM_THREADS", false),
];

/// The maximum size of the adapter arguments as JSON, in bytes. Linux limits each environment variable to 128 KiB, including its name,
/// the `=` and a terminator.
const MAX_ADAPTER_ARGS_BYTES: usize = 128 * 1024 - launch::ENV_ADAPTER_ARGS.len() - 2;

/// Checks that the adapter arguments fit into an environment variable.
///
/// # Errors
/// [`WorkerError::StartFailed`] with the size, the limit and the largest argument.
pub(super) fn check(config: &ProcessConfig) -> Result<(), WorkerError> {
    let sizes = config.adapter_args.iter().map(|(name, value)| (value.to_string().len(), name));
    let Some((largest, name)) = sizes.max() else { return Ok(()) };
    let size = serde_json::Value::Object(config.adapter_args.clone()).to_string().len();
    if size <= MAX_ADAPTER_ARGS_BYTES {
        return Ok(());
    }
    Err(WorkerError::start_failed(format!(
        "the adapter arguments take {size} bytes as JSON, above the limit of {MAX_ADAPTER_ARGS_BYTES}; the largest, `{name}`, \
         takes {largest}; pass the path of a file with the data instead"
    )))
}

/// Returns the variables of the worker in this slot: its pool and index, its GPU, the adapter arguments, and the thread counts of
/// libraries.
pub(super) fn slot_variables(config: &ProcessConfig, slot: Option<&WorkerSlot>) -> Vec<Variable> {
    let mut variables = Vec::new();
    if !config.adapter_args.is_empty() {
        let json = serde_json::Value::Object(config.adapter_args.clone()).to_string();
        variables.push((launch::ENV_ADAPTER_ARGS, json));
    }
    let numbers = [(launch::ENV_CONCURRENCY, config.concurrency), (launch::ENV_THREADS, config.threads)];
    variables.extend(numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string()))));
    let Some(WorkerSlot { pool, index, count }) = slot else { return variables };
    variables.push((launch::ENV_POOL, pool.to_string()));
    variables.push((launch::ENV_WORKER_INDEX, index.to_string()));
    variables.push((launch::ENV_WORKER_COUNT, count.to_string()));
    if !config.gpus.is_empty() {
        let gpu = &config.gpus[index % config.gpus.len()];
        variables.push((launch::ENV_GPU, gpu.clone()));
        variables.push(("CUDA_VISIBLE_DEVICES", gpu.clone()));
    }
    let is_set =
        |name: &str| config.env.iter().any(|(other, _)| other == name) || std::env::var_os(name).is_some();
    let threads = config.library_threads.unwrap_or_else(|| {
        let processors = available_parallelism().map_or(1, NonZero::get);
        (processors / (*count).max(1)).max(1)
    });
    variables.extend(thread_variables(threads, is_set).map(|name| (name, threads.to_string())));
    variables
}

/// Returns the names of the thread variables that the host must set. Skips variables that the user has set. Empty if `threads` is 0.
fn thread_variables(threads: usize, is_set: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    let is_omp_set = is_set("OMP_NUM_THREADS");
    let is_free = move |(name, follows_omp): (&'static str, bool)| {
        (threads > 0 && !is_set(name) && !(follows_omp && is_omp_set)).then_some(name)
    };
    THREADS.into_iter().filter_map(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::WorkerProgram;

    fn config() -> ProcessConfig {
        ProcessConfig::new(WorkerProgram::Command { argv: vec!["worker".to_owned()], adapter: None })
    }

    fn value(variables: &[Variable], name: &str) -> Option<String> {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_worker_receives_its_slot_and_one_of_the_gpus() {
        let config = ProcessConfig { gpus: vec!["0".to_owned(), "2".to_owned()], ..config() };
        let gpus: Vec<_> = (0..3)
            .map(|index| {
                let variables = slot_variables(&config, Some(&WorkerSlot::new("gpu", index, 3)));
                assert_eq!(value(&variables, launch::ENV_WORKER_INDEX), Some(index.to_string()));
                assert_eq!(value(&variables, launch::ENV_WORKER_COUNT).as_deref(), Some("3"));
                assert_eq!(value(&variables, launch::ENV_POOL).as_deref(), Some("gpu"));
                assert_eq!(value(&variables, launch::ENV_GPU), value(&variables, "CUDA_VISIBLE_DEVICES"));
                value(&variables, launch::ENV_GPU).unwrap()
            })
            .collect();
        assert_eq!(gpus, ["0", "2", "0"]);
        assert_eq!(slot_variables(&config, None), []);
    }

    #[test]
    fn arguments_of_the_adapter_are_json() {
        let mut config = config();
        config.adapter_args.insert("path".to_owned(), "/m".into());
        config.adapter_args.insert("size".to_owned(), 3.into());
        let expected = (launch::ENV_ADAPTER_ARGS, r#"{"path":"/m","size":3}"#.to_owned());
        assert_eq!(slot_variables(&config, None), [expected]);
    }

    #[test]
    fn arguments_of_the_adapter_have_a_limit() {
        let mut config = config();
        config.adapter_args.insert("fits".to_owned(), "x".repeat(MAX_ADAPTER_ARGS_BYTES - 11).into());
        check(&config).unwrap();
        let (name, json) = slot_variables(&config, None).remove(0);
        assert_eq!(name.len() + json.len() + 2, 128 * 1024);
        config.adapter_args.insert("n".to_owned(), 1.into());
        let error = check(&config).unwrap_err().to_string();
        let expected = format!(
            "take {} bytes as JSON, above the limit of {MAX_ADAPTER_ARGS_BYTES}; the largest, `fits`",
            MAX_ADAPTER_ARGS_BYTES + 6
        );
        assert!(
            error.contains(&expected) && error.ends_with("pass the path of a file with the data instead"),
            "{error}"
        );
    }

    #[test]
    fn the_processors_are_divided_among_the_workers() {
        let threads = |config: &ProcessConfig, count| {
            value(&slot_variables(config, Some(&WorkerSlot::new("p", 0, count))), "RAYON_NUM_THREADS")
        };
        let unset = config();
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let processors = available_parallelism().unwrap().get();
            assert_eq!(threads(&unset, 1), Some(processors.to_string()));
            assert_eq!(threads(&unset, 10 * processors).as_deref(), Some("1"));
            assert_eq!(
                threads(&ProcessConfig { library_threads: Some(5), ..config() }, 2).as_deref(),
                Some("5")
            );
        }
        assert_eq!(threads(&ProcessConfig { library_threads: Some(0), ..config() }, 2), None);
        let env = vec![("RAYON_NUM_THREADS".to_owned(), "7".to_owned())];
        assert_eq!(threads(&ProcessConfig { env, ..config() }, 2), None);
    }

    #[test]
    fn variables_of_the_user_are_kept() {
        let free = |set: &[&str]| -> Vec<_> { thread_variables(2, |name| set.contains(&name)).collect() };
        assert_eq!(free(&[]), THREADS.map(|(name, _)| name));
        assert_eq!(free(&["OMP_NUM_THREADS"]), ["VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"]);
        assert!(!free(&["MKL_NUM_THREADS"]).contains(&"MKL_NUM_THREADS"));
        assert_eq!(thread_variables(0, |_| false).count(), 0);
    }
}
