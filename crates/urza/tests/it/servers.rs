//! A real S3 server on real HTTP.

use std::path::PathBuf;
use std::pin::Pin;

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

/// The server makes buckets as they are named; S3 does not.
struct OneBucket;

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
        Box::pin(async move {
            match (known, signed) {
                (_, false) => Err(s3s::s3_error!(AccessDenied)),
                (false, true) => Err(s3s::s3_error!(NoSuchBucket)),
                (true, true) => Ok(()),
            }
        })
    }
}

/// A bucket on a directory, spoken to through a proxy.
pub struct S3 {
    pub proxy: Proxy,
    pub root: TempDir,
    _server: Running,
}

impl S3 {
    pub const BUCKET: &str = "kernels";

    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(Self::BUCKET)).unwrap();
        let (listener, address) = listen();
        let files = s3s_fs::FileSystem::new(root.path()).unwrap();
        let server = Running::start(move || async move {
            let mut service = S3ServiceBuilder::new(files);
            service.set_auth(SimpleAuth::from_single(KEY, SECRET));
            service.set_access(OneBucket);
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
        Self { proxy: Proxy::start(address), root, _server: server }
    }

    /// What a library with the right key is told, with short pauses.
    pub fn config(&self) -> BucketConfig {
        let access = BucketAccess {
            endpoint: Some(format!("http://{}", self.proxy.address)),
            key_id: Some(KEY.to_owned()),
            secret_key: Some(SECRET.to_owned()),
            ..BucketAccess::default()
        };
        let url = BucketUrl::parse("s3://kernels/team/a").unwrap();
        BucketConfig {
            backoff: std::time::Duration::from_millis(10),
            ..BucketConfig::new(url, access)
        }
    }

    /// Where the server keeps an object.
    pub fn object(&self, name: &str) -> PathBuf {
        self.root.path().join(Self::BUCKET).join("team/a").join(name)
    }
}
