//! From asking for a kernel that is in the library until the answer is in the asker's hands, through
//! the same worker that the service runs.

use std::path::Path;
use std::time::{Duration, Instant};

use kernel::Digest;
use leyline::Message;
use leyline::ids::{BlueprintId, RequestId};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::{BlueprintTier, KernelPrefetchRequest, MessagePriority};
use oona::{Bus, ConsumerSpec, Heartbeat, Stream};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use urza::{Demand, JobKey, Library, NewArtifact, PrefetchConfig, Prefetcher, Prewarm, Role};

use super::bus::BusBenchError;
use super::median;

const WARM_UP_ROUNDS: usize = 20;
const ROUNDS: usize = 300;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of a small block's weights.
const KERNEL_BYTES: usize = 64 << 10;
const SERVICE_GROUP: &str = "weatherlight-bench";
const TRAINER_GROUP: &str = "trainer-bench";
const BLUEPRINT: &str = "BP009";

pub(super) async fn measure(bus: &Bus, directory: &Path) -> Result<Duration, BusBenchError> {
    let metrics = urza::Metrics::register(&mut Registry::default());
    let library = Library::open(urza::Config::at(directory), metrics.clone()).await?;
    library.store(artifact()).await?;
    bus.ensure_groups(&[
        (Stream::KernelRequests, SERVICE_GROUP),
        (Stream::KernelReady, TRAINER_GROUP),
    ])
    .await?;
    let worker = Prefetcher {
        bus: bus.clone(),
        library: library.clone(),
        demand: Demand::nobody(),
        variants: urza::Variants::none(),
        config: PrefetchConfig { group: SERVICE_GROUP.to_owned(), ..PrefetchConfig::default() },
        metrics,
        heartbeat: Heartbeat::detached(),
    };
    let stop = CancellationToken::new();
    let asked = async {
        let measured = ask(bus).await;
        stop.cancel();
        measured
    };
    let (served, measured) = tokio::join!(worker.run(stop.clone()), asked);
    bus.remove_group(Stream::KernelRequests, SERVICE_GROUP).await?;
    bus.remove_group(Stream::KernelReady, TRAINER_GROUP).await?;
    library.close().await;
    served?;
    measured
}

async fn ask(bus: &Bus) -> Result<Duration, BusBenchError> {
    let mut answers = bus.consumer(ConsumerSpec::new(Stream::KernelReady, TRAINER_GROUP));
    let mut spans = Vec::with_capacity(ROUNDS);
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        let request = RequestId::fresh();
        let message = Message::from(KernelPrefetchRequest {
            request_id: request.to_string(),
            blueprint_id: BLUEPRINT.to_owned(),
            training_run_id: "bench".to_owned(),
            issued_at: Some(timestamp(now_unix_ms())),
        });
        let begun = Instant::now();
        let outcome = bus
            .publish(Stream::KernelRequests, MessagePriority::Normal, "weatherlight", &message)
            .await?;
        if !outcome.is_sent() {
            return Err(oona::bench::BenchError::Refused.into());
        }
        loop {
            let delivery = tokio::time::timeout(ANSWER_TIMEOUT, answers.recv())
                .await
                .map_err(|_| BusBenchError::Unanswered(ANSWER_TIMEOUT))??;
            let is_ours = delivery.message.nonce() == Some(request.as_str());
            delivery.ack().await?;
            if is_ours {
                break;
            }
        }
        if round >= WARM_UP_ROUNDS {
            spans.push(begun.elapsed());
        }
    }
    Ok(median(spans))
}

fn artifact() -> NewArtifact {
    NewArtifact {
        job: JobKey {
            blueprint: BlueprintId::from(BLUEPRINT),
            parameters: Default::default(),
            site: "vector[32]".to_owned(),
            engine: "bench".to_owned(),
        },
        role: Role::Default,
        bytes: vec![7; KERNEL_BYTES],
        guard_digest: Digest::of(b"bench"),
        guard_spec: "[]".to_owned(),
        guard_summary: "bench".to_owned(),
        compile_ms: 1.0,
        prewarm: Prewarm::default(),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
        extras: urza::Extras::new(),
    }
}
