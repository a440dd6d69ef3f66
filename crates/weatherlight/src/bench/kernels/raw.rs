//! The commands of a prefetch from a bare client: no envelope, no signature, no checks, no library.

use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;

use super::BenchError;
use super::stage::Stage;

const BATCH: usize = 256;
const GROUP: &str = "raw";
/// About what a signed request and a signed answer take in their streams.
const REQUEST_BYTES: usize = 420;
const ANSWER_BYTES: usize = 620;

/// Asks, serves and takes answers, in batches, one after another.
pub(super) struct RawLoop {
    connection: MultiplexedConnection,
    requests: String,
    answers: String,
    nonces: String,
    claimed: u64,
}

impl RawLoop {
    /// Absent on the embedded log.
    pub(super) async fn new(stage: &mut Stage) -> Result<Option<Self>, BenchError> {
        let Some(mut connection) = stage.raw().await? else { return Ok(None) };
        let (requests, answers) = (stage.key("raw-requests"), stage.key("raw-answers"));
        for stream in [&requests, &answers] {
            let mut group = redis::cmd("XGROUP");
            group.arg("CREATE").arg(stream).arg(GROUP).arg("0").arg("MKSTREAM");
            group.query_async::<()>(&mut connection).await?;
        }
        let nonces = stage.key("raw-nonce");
        Ok(Some(Self { connection, requests, answers, nonces, claimed: 0 }))
    }

    /// Prefetches a second, as far as the commands alone allow.
    pub(super) async fn run(&mut self, requests: usize) -> Result<f64, BenchError> {
        let begun = Instant::now();
        let mut done = 0;
        while done < requests {
            let mut asking = redis::pipe();
            for _ in 0..BATCH {
                add(&mut asking, &self.requests, REQUEST_BYTES);
            }
            let _ids: Vec<String> = asking.query_async(&mut self.connection).await?;
            let ids = self.read(&self.requests.clone()).await?;
            self.claim(&ids).await?;
            let mut serving = redis::pipe();
            serving.atomic();
            for _ in &ids {
                add(&mut serving, &self.answers, ANSWER_BYTES);
            }
            serving.cmd("XACK").arg(&self.requests).arg(GROUP).arg(&ids);
            let _told: Vec<redis::Value> = serving.query_async(&mut self.connection).await?;
            let answers = self.read(&self.answers.clone()).await?;
            self.claim(&answers).await?;
            let mut ack = redis::cmd("XACK");
            ack.arg(&self.answers).arg(GROUP).arg(&answers);
            let _acknowledged: usize = ack.query_async(&mut self.connection).await?;
            done += answers.len();
        }
        Ok(done as f64 / begun.elapsed().as_secs_f64())
    }

    async fn read(&mut self, stream: &str) -> Result<Vec<String>, BenchError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg("one").arg("COUNT").arg(BATCH);
        read.arg("STREAMS").arg(stream).arg(">");
        let reply: StreamReadReply = read.query_async(&mut self.connection).await?;
        Ok(reply.keys.into_iter().flat_map(|key| key.ids).map(|entry| entry.id).collect())
    }

    async fn claim(&mut self, ids: &[String]) -> Result<(), BenchError> {
        let mut claiming = redis::pipe();
        for id in ids {
            self.claimed += 1;
            let key = format!("{}:{}", self.nonces, self.claimed);
            claiming.cmd("SET").arg(key).arg(id).arg("NX").arg("GET").arg("PX").arg(1_205_000);
        }
        let _owners: Vec<Option<String>> = claiming.query_async(&mut self.connection).await?;
        Ok(())
    }
}

fn add(pipe: &mut redis::Pipeline, stream: &str, bytes: usize) {
    let payload = vec![b'x'; bytes];
    pipe.cmd("XADD").arg(stream).arg("*").arg("payload").arg(payload);
}
