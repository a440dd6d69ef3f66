//! The lease of a kernel that a seed holds: renewed by asking again, and by nobody once the seed has let go.
//!
//! When each renewal is due is proved without a clock, in `renewal`; here the shortest lease is taken, a second.

use kasmina::{Effect, Patience};
use kernel::Digest;
use leyline::Stage;
use leyline::wire::{KernelPrefetchRequest, SeedOperation};
use oona::Stream;

use crate::coordinator::{Bench, artifact, bench};
use crate::rig::{Rig, rig};

const LEASE: [(&str, &str); 1] = [("kernel-lease-ms", "1000")];

impl Bench {
    /// The next request, which must be a renewal of the artifact.
    async fn renewal(&mut self) -> KernelPrefetchRequest {
        let (request, attributes) = self.asked_with_attributes().await;
        assert_eq!((&*request.blueprint_id, &*request.training_run_id), ("BP009", "run"));
        assert_eq!(attributes["kernel-digest"], Digest::of(artifact()).to_hex());
        assert_eq!(attributes["kernel-priority"], "low");
        assert_ne!(request.request_id, "r1");
        request
    }

    /// Waits until so many kernels are held under a lease.
    async fn holds(&self, kernels: i64) {
        let held = async {
            while self.metrics.leased() != kernels {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), held).await.unwrap();
    }

    /// Gives the rig's seed s1 its kernel, under a lease.
    async fn attach(&mut self, rig: &mut Rig) {
        let order = rig.germinate();
        let request = order.request.to_string();
        self.trainer.orders.try_send(order).unwrap();
        assert_eq!(self.asked().await.request_id, request);
        self.answer_ready_with(&request, &artifact(), &LEASE, |_| {}).await;
        let fetched = self.trainer.results.recv().await.unwrap();
        let effects = rig.manager.on_fetched(fetched, rig.now);
        assert!(matches!(effects[0], Effect::Attach { .. }), "{effects:?}");
        self.holds(1).await;
    }

    /// Answers renewals until one counts, whatever comes of the clock.
    async fn renew(&mut self) {
        let before = self.metrics.renewed_total();
        while self.metrics.renewed_total() == before {
            let request = self.renewal().await.request_id;
            self.answer_ready_with(&request, &artifact(), &LEASE, |_| {}).await;
            self.settled(Stream::KernelReady).await;
        }
    }
}

#[tokio::test]
async fn the_lease_of_an_attached_kernel_is_renewed_until_the_seed_is_culled() {
    let (mut bench, mut rig) = (bench(Patience::default()).await, rig());
    bench
        .run(async |b| {
            b.attach(&mut rig).await;
            for _ in 0..3 {
                b.renew().await;
            }
            rig.step_until(Stage::Blending);
            b.renew().await;
            assert!(b.trainer.results.try_recv().is_err(), "a renewal is nothing for the trainer");
            rig.operate(SeedOperation::SeedOpCull).unwrap();
            b.holds(0).await;
        })
        .await;
    // What was asked for before may stand there; nothing is asked for any more.
    assert_eq!(bench.metrics.leased(), 0);
}

#[tokio::test]
async fn a_kept_seed_keeps_its_lease_and_the_end_of_the_trainer_ends_it() {
    let (mut bench, mut rig) = (bench(Patience::default()).await, rig());
    bench
        .run(async |b| {
            b.attach(&mut rig).await;
            rig.step_until(Stage::Fossilized);
            b.renew().await;
            assert_eq!(b.metrics.leased(), 1);
            drop(rig);
            b.holds(0).await;
        })
        .await;
}

#[tokio::test]
async fn an_error_in_answer_to_a_renewal_leaves_the_seed_alone() {
    let (mut bench, mut rig) = (bench(Patience::default()).await, rig());
    bench
        .run(async |b| {
            b.attach(&mut rig).await;
            for reason in ["missing_artifact", "artifact_not_found", "unavailable", "quarantined"] {
                let request = b.renewal().await.request_id;
                b.answer_error(&request, reason).await;
                b.settled(Stream::KernelErrors).await;
            }
            assert!(b.trainer.results.try_recv().is_err());
            assert_eq!((rig.stage(), b.metrics.leased()), (Stage::Training, 1));
            // It was built again, and is kept from now on.
            b.renew().await;
        })
        .await;
}

#[tokio::test]
async fn a_service_that_says_nothing_of_leases_is_not_asked_again() {
    let mut bench = bench(Patience::default()).await;
    bench
        .run(async |b| {
            b.order("r1");
            b.asked().await;
            b.answer_ready_with("r1", &artifact(), &[("kernel-lease-ms", "soon")], |_| {}).await;
            let _kernel = b.result().await.unwrap();
            b.settled(Stream::KernelReady).await;
            assert_eq!(b.metrics.leased(), 0);
        })
        .await;
}

/// The coordinator's worker ends and another goes on with what is held.
#[tokio::test]
async fn a_restart_of_the_workers_forgets_no_lease() {
    let (mut bench, mut rig) = (bench(Patience::default()).await, rig());
    bench.run(async |b| b.attach(&mut rig).await).await;
    bench.run(async |b| b.renew().await).await;
    assert_eq!(rig.stage(), Stage::Training);
}
