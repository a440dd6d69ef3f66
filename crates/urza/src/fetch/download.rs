//! One download: attempts, each from where the one before ended, until everything is here and right.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use kernel::Digest;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, IF_RANGE, RANGE};

use super::Inner;
use super::answer::{self, Body, NoBody};
use super::fault::FetchFault;
use super::part::Part;
use crate::files::Identity;
use crate::store::blocking;

/// Longest pause between two attempts, also when a server asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Bytes collected before they are written.
const PIECE_BYTES: usize = 512 * 1024;

/// One download.
pub(super) struct Download<'a> {
    inner: &'a Inner,
    url: Url,
    digest: Digest,
    /// Away only while a thread writes it.
    part: Option<Part>,
    /// How large the whole is, once the server has said.
    total: Option<u64>,
}

/// What an attempt that did not bring everything came to.
enum Broken {
    /// Asking again does not help.
    Never(FetchFault),
    /// It may go better, after a pause of the server's choice.
    Later(FetchFault, Option<Duration>),
}

impl From<FetchFault> for Broken {
    fn from(fault: FetchFault) -> Self {
        Self::Never(fault)
    }
}

impl<'a> Download<'a> {
    pub(super) async fn open(
        inner: &'a Inner,
        url: &str,
        digest: Digest,
    ) -> Result<Self, FetchFault> {
        let url = answer::url(url)?;
        let (files, max) = (inner.files.clone(), inner.config.bytes_max);
        let part = inner.on_disk(move || Part::open(&files, &digest, max)).await?;
        Ok(Self { inner, url, digest, part: Some(part), total: None })
    }

    /// Runs to the end. The caller bounds the time.
    pub(super) async fn run(mut self) -> Result<Identity, FetchFault> {
        let config = &self.inner.config;
        let (mut failures, mut backoff) = (0, config.backoff);
        loop {
            let before = self.len();
            let (fault, asked) = match self.attempt().await {
                Ok(()) => break,
                Err(Broken::Never(fault)) => return Err(fault),
                Err(Broken::Later(fault, asked)) => (fault, asked),
            };
            // What brings something costs no attempt: its bound is the total time.
            if before < self.len() {
                (failures, backoff) = (0, config.backoff);
            }
            failures += 1;
            if config.attempts_max.get() <= failures {
                return Err(fault);
            }
            tracing::debug!(artifact = %self.digest, %fault, bytes = self.len(), "download is gone on with");
            tokio::time::sleep(asked.unwrap_or_else(|| jittered(backoff)).min(PAUSE_MAX)).await;
            backoff = (backoff * 2).min(PAUSE_MAX);
        }
        let (files, digest) = (self.inner.files.clone(), self.digest);
        let Some(part) = self.part.take() else { return Err(self.lost()) };
        self.inner.on_disk(move || part.settle(&files, &digest)).await
    }

    /// One request, from where the part ends.
    async fn attempt(&mut self) -> Result<(), Broken> {
        // Left whole by an earlier run that ended before it was named.
        if self.total.is_some_and(|total| total == self.len()) {
            return self.finish().await;
        }
        let here = self.len();
        let mut request = self.inner.client.get(self.url.clone());
        if let Some(authorization) = &self.inner.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if here > 0 {
            request = request
                .header(RANGE, format!("bytes={here}-"))
                .header(IF_RANGE, format!("\"{}\"", self.digest));
        }
        let later = |error| match FetchFault::connection(error) {
            fault @ FetchFault::Untrusted { .. } => Broken::Never(fault),
            fault => Broken::Later(fault, None),
        };
        let mut response = request.send().await.map_err(later)?;
        let max = self.inner.config.bytes_max;
        let length = response.content_length();
        let Body { from, total } =
            match answer::read(response.status(), response.headers(), length, here, max) {
                Ok(body) => body,
                Err(NoBody::Never(fault)) => return Err(Broken::Never(fault)),
                Err(NoBody::Later(fault, pause)) => return Err(Broken::Later(fault, pause)),
                Err(NoBody::Anew(fault)) => {
                    // A part that is whole already is asked for from its end, which is nowhere.
                    if here > 0 && self.finish().await.is_ok() {
                        return Ok(());
                    }
                    self.restart().await?;
                    return Err(Broken::Later(fault, None));
                }
            };
        if from < here {
            self.restart().await?;
        }
        self.total = total;
        self.make_room(total.unwrap_or(0)).await;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            let chunk = response.chunk().await;
            let has_ended = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(bytes)) = &chunk {
                let came = self.len() + (piece.len() + bytes.len()) as u64;
                if max < came || total.is_some_and(|total| total < came) {
                    self.restart().await?;
                    return Err(
                        FetchFault::TooLarge { bytes: came, max: total.unwrap_or(max) }.into()
                    );
                }
                piece.extend_from_slice(bytes);
            }
            if has_ended || PIECE_BYTES <= piece.len() {
                piece = self.append(piece).await?;
            }
            match chunk {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(later(error)),
            }
        }
        self.finish().await
    }

    /// Everything has come: is it right? What is not is forgotten.
    async fn finish(&mut self) -> Result<(), Broken> {
        let digest = self.digest;
        match self.with_part(move |part| part.check(&digest)).await? {
            Ok(()) => Ok(()),
            Err(fault) => {
                self.restart().await?;
                Err(Broken::Later(fault, None))
            }
        }
    }

    fn len(&self) -> u64 {
        self.part.as_ref().map_or(0, Part::len)
    }

    async fn append(&mut self, mut piece: Vec<u8>) -> Result<Vec<u8>, FetchFault> {
        self.with_part(move |part| {
            part.append(&piece)?;
            piece.clear();
            Ok(piece)
        })
        .await?
    }

    async fn restart(&mut self) -> Result<(), FetchFault> {
        self.total = None;
        let path = self.inner.files.partial(&self.digest);
        let restarted = self.with_part(Part::restart).await?;
        restarted.map_err(|error| FetchFault::disk(path, error))
    }

    async fn make_room(&self, wanted: u64) {
        if let Err(error) = self.inner.make_room(wanted).await {
            tracing::warn!(%error, "cache of kernels not looked through");
        }
    }

    /// Lends the part to a thread that may wait for the disk.
    async fn with_part<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Part) -> T + Send + 'static,
    ) -> Result<T, FetchFault> {
        let Some(mut part) = self.part.take() else { return Err(self.lost()) };
        let working = blocking(self.inner.config.total_timeout, move || {
            let outcome = work(&mut part);
            (outcome, part)
        });
        match working.await {
            Some((outcome, part)) => {
                self.part = Some(part);
                Ok(outcome)
            }
            None => Err(self.lost()),
        }
    }

    /// The disk did not answer while it had the part.
    fn lost(&self) -> FetchFault {
        FetchFault::TimedOut { limit: self.inner.config.total_timeout }
    }
}

/// Between half of it and all of it, so that many who lost one server do not come back as one.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause / 2 + pause.mul_f64(f64::from(random as u32) / f64::from(u32::MAX) / 2.0)
}
