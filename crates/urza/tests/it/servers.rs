//! A real S3 server on real HTTP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use urza::store::{BucketAccess, BucketConfig, BucketUrl};

use crate::proxy::{Proxy, Running, listen};

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret-of-the-bucket";

/// What becomes of the parts of an upload behind the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// They are taken.
    Take,
    /// They are taken, once the first one is there.
    AfterFirst,
    /// The server fails, once the first one is there.
    Fail,
    /// They are not answered.
    Hold,
}

/// The server makes buckets as they are named; S3 does not.
struct OneBucket {
    root: PathBuf,
    parts: Arc<Mutex<Parts>>,
}

impl OneBucket {
    /// What becomes of this request, where it is a part behind the first one.
    async fn judge(root: PathBuf, parts: Parts) -> s3s::S3Result<()> {
        match parts {
            Parts::Take => Ok(()),
            Parts::Hold => std::future::pending().await,
            Parts::AfterFirst | Parts::Fail => {
                let is_first =
                    |name: &str| name.starts_with(".upload_id-") && name.ends_with(".part-1");
                while !names(&root).iter().any(|name| is_first(name)) {
                    tokio::task::yield_now().await;
                }
                match parts {
                    Parts::Fail => Err(s3s::s3_error!(InternalError)),
                    _ => Ok(()),
                }
            }
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl S3Access for OneBucket {
    // Written out: what `async fn` in a trait of boxed futures stands for.
    fn check<'a, 'b, 'c, 'f>(
        &'a self,
        context: &'b mut S3AccessContext<'c>,
    ) -> Pin<Box<dyn Future<Output = s3s::S3Result<()>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
    {
        let known = context.s3_path().get_bucket_name() == Some(S3::BUCKET);
        let signed = context.credentials().is_some();
        let query = context.uri().query().unwrap_or_default();
        let is_part = query.contains("partNumber=") && !query.contains("partNumber=1&");
        let parts = if is_part { *self.parts.lock().unwrap() } else { Parts::Take };
        let root = self.root.clone();
        Box::pin(async move {
            match (known, signed) {
                (_, false) => Err(s3s::s3_error!(AccessDenied)),
                (false, true) => Err(s3s::s3_error!(NoSuchBucket)),
                (true, true) => Self::judge(root, parts).await,
            }
        })
    }
}

/// What a library with the right key is told, with short pauses.
pub fn config_at(endpoint: String) -> BucketConfig {
    let access = BucketAccess {
        endpoint: Some(endpoint),
        key_id: Some(KEY.to_owned()),
        secret_key: Some(SECRET.to_owned()),
        ..BucketAccess::default()
    };
    let url = BucketUrl::parse("s3://kernels/team/a").unwrap();
    BucketConfig { backoff: std::time::Duration::from_millis(10), ..BucketConfig::new(url, access) }
}

/// A bucket on a directory, spoken to through a proxy.
pub struct S3 {
    pub proxy: Proxy,
    pub root: TempDir,
    parts: Arc<Mutex<Parts>>,
    address: SocketAddr,
    _server: Running,
}

impl S3 {
    pub const BUCKET: &str = "kernels";

    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(Self::BUCKET)).unwrap();
        let (listener, address) = listen();
        let parts = Arc::new(Mutex::new(Parts::Take));
        let access = OneBucket { root: root.path().to_owned(), parts: Arc::clone(&parts) };
        let files = s3s_fs::FileSystem::new(root.path()).unwrap();
        let server = Running::start(move || async move {
            let mut service = S3ServiceBuilder::new(files);
            service.set_auth(SimpleAuth::from_single(KEY, SECRET));
            service.set_access(access);
            let service = service.build();
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                open.spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { proxy: Proxy::start(address), root, parts, address, _server: server }
    }

    /// Where the server itself listens, without the proxy.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of the parts to come.
    pub fn parts(&self, parts: Parts) {
        *self.parts.lock().unwrap() = parts;
    }

    /// What the server keeps of uploads that are neither complete nor aborted.
    pub fn uploads(&self) -> Vec<String> {
        let mut names = names(self.root.path());
        names.retain(|name| name.starts_with(".upload"));
        names
    }

    /// What a library with the right key is told, with short pauses.
    pub fn config(&self) -> BucketConfig {
        config_at(format!("http://{}", self.proxy.address))
    }

    /// Where the server keeps an object.
    pub fn object(&self, name: &str) -> PathBuf {
        self.root.path().join(Self::BUCKET).join("team/a").join(name)
    }
}
