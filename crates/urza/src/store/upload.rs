//! An upload in parts that is begun: completed, or aborted by whoever gives it up.

use std::time::Duration;

use object_store::MultipartId;
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;

/// An upload that is begun. Dropped unfinished, for whoever waited for it has gone, it is aborted beside him.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) id: MultipartId,
    store: AmazonS3,
    key: Path,
    /// How long the server may take to drop it.
    limit: Duration,
    is_open: bool,
}

impl Upload {
    pub(super) fn begun(store: &AmazonS3, key: &Path, id: MultipartId, limit: Duration) -> Self {
        Self { id, store: store.clone(), key: key.clone(), limit, is_open: true }
    }

    /// Its parts are an object now.
    pub(super) fn complete(mut self) {
        self.is_open = false;
    }

    /// Has the server drop the parts.
    pub(super) async fn abort(mut self) {
        let aborting = self.aborting();
        aborting.await;
        self.is_open = false;
    }

    fn aborting(&self) -> impl Future<Output = ()> + Send + use<> {
        let (store, key, id, limit) =
            (self.store.clone(), self.key.clone(), self.id.clone(), self.limit);
        async move {
            let aborted = tokio::time::timeout(limit, store.abort_multipart(&key, &id)).await;
            match aborted {
                // It may have been completed by a request whose answer did not come.
                Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
                // Not what it says, for that may be what the server sent.
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!(%key, "parts of an artifact may be left in the bucket");
                }
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_open {
            return;
        }
        // Without a runtime the process is ending; then the bucket's own rule removes them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.aborting());
        }
    }
}
