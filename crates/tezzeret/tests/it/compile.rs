//! Compiling as a plain call.

use karn::Site;
use kernel::Digest;
use kernel::artifact::Kernel;
use tezzeret::{
    CompileError, Compiled, Config, Job, PREWARM_SAMPLES_MIN, Strategy, TOLERANCE, compile,
};
use tokio_util::sync::CancellationToken;

/// Guard of one contiguous 8x32 `float32` input, as published.
const VECTOR_GUARD: &str = "c0e3ed3adc7800b37bf6f90a7156046c87111dcef83232afad8a9e0addde055f";
/// Guard of one contiguous 8x8x16x16 `float32` input, as published.
const IMAGE_GUARD: &str = "b2fd2f05c3298470835b454526892d28cae85e9c429091891d8b2429bfddf46a";

fn job(id: &str, config: &Config) -> Job {
    Job::of(karn::find(&id.into()).expect("the test names a blueprint of the catalogue"), config)
}

fn run(job: &Job, strategy: Strategy) -> Compiled {
    compile(job, strategy, &Config::default(), &CancellationToken::new())
        .unwrap_or_else(|error| panic!("{job:?}: {error}"))
}

#[test]
fn guards_are_the_published_ones() {
    let vector = run(&job("BP002", &Config::default()), Strategy::Standard);
    assert_eq!(vector.guard_digest.to_hex(), VECTOR_GUARD);
    assert_eq!(vector.guard_summary, "float32[8x32]");
    let site = Site::Image { channels: 8, height: 16, width: 16 };
    let image = run(&job("BP015", &Config { site, ..Config::default() }), Strategy::Standard);
    assert_eq!(image.guard_digest.to_hex(), IMAGE_GUARD);
    // The step that seeds dropout is the engine's own affair.
    let dropout = run(&job("BP004", &Config::default()), Strategy::Standard);
    assert_eq!(dropout.guard_digest.to_hex(), VECTOR_GUARD);
}

#[test]
fn the_same_job_gives_the_same_bytes_under_every_strategy() {
    let block = job("BP009", &Config::default());
    let once = run(&block, Strategy::Standard);
    assert_eq!(once.bytes, run(&block, Strategy::Standard).bytes);
    assert_eq!(once.bytes, run(&block, Strategy::Conservative).bytes);
    let reseeded = run(&job("BP009", &Config { seed: 1, ..Config::default() }), Strategy::Standard);
    assert_ne!(once.bytes, reseeded.bytes);
}

#[test]
fn an_artifact_opens_as_what_was_asked_for() {
    let config = Config::default();
    let block = karn::find(&"BP009".into()).unwrap();
    let parameters: karn::Parameters = [("depth", 4.0)].into_iter().collect();
    let job = Job::with(block, parameters.clone(), config.site, &config).unwrap();
    let compiled = run(&job, Strategy::Standard);
    let kernel = Kernel::parse(&compiled.bytes, &Digest::of(&compiled.bytes)).unwrap();
    assert_eq!(kernel.manifest().blueprint, "BP009");
    assert_eq!(kernel.manifest().parameters["depth"], 4.0);
    assert_eq!(kernel.manifest().site, serde_json::json!({ "vector": { "features": 32 } }));
    assert_eq!(kernel.manifest().tolerance, TOLERANCE);
    assert_eq!(*kernel.graph(), karn::build(block, &parameters, &config.site).unwrap());
    assert_eq!(*kernel.params(), kernel.graph().init_params(job.weight_seed()));
    assert!(kernel.verify_probe().unwrap());
    assert!(compiled.difference <= TOLERANCE / 10.0);
    assert_eq!(compiled.prewarm.samples_ms.len(), PREWARM_SAMPLES_MIN);
    assert!(
        0.0 < compiled.prewarm.p50_ms() && compiled.prewarm.p50_ms() <= compiled.prewarm.p95_ms()
    );
}

#[test]
fn what_has_no_graph_is_refused_by_name() {
    let config = Config::default();
    for (id, name) in [("BP043", "exploding_gradient"), ("BP045", "nan_injection")] {
        let job = job(id, &config);
        let error =
            compile(&job, Strategy::Standard, &config, &CancellationToken::new()).unwrap_err();
        assert!(matches!(error, CompileError::Build(_)));
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_cancelled_compile_stops() {
    let (config, cancel) = (Config::default(), CancellationToken::new());
    cancel.cancel();
    let error = compile(&job("BP009", &config), Strategy::Standard, &config, &cancel).unwrap_err();
    assert!(matches!(error, CompileError::Cancelled));
}
