//! Kernels by digest over HTTP: the server, and the client that trainers use, against one another.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use std::time::Duration;

use kernel::{Digest, Graph};
use leyline::wire::BlueprintTier;
use nissa::{HttpConfig, Token};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use urza::fetch::{FetchFault, Fetcher, FetcherConfig};
use urza::{Config, JobKey, Library, Metrics, NewArtifact, Prewarm, Record, Role};

use crate::front::{Authority, Front};
use crate::proxy::{Fault, Proxy};
use crate::support::{Answer, Server, ask, get, serve_on};

const TOKEN: &str = "a token of some length";

struct Place {
    dir: TempDir,
    library: Library,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let library = Library::open(Config::at(dir.path()), metrics).await.unwrap();
        Self { dir, library }
    }

    async fn store(&self, bytes: &[u8]) -> Record {
        let new = NewArtifact {
            job: JobKey {
                blueprint: "BP009".into(),
                parameters: BTreeMap::new(),
                site: "vector[32]".to_owned(),
                engine: "1".to_owned(),
            },
            role: Role::Default,
            bytes: bytes.to_vec(),
            guard_digest: Digest::of("guard"),
            guard_spec: "[]".to_owned(),
            guard_summary: "float32[8x32]".to_owned(),
            compile_ms: 12.5,
            prewarm: Prewarm::new("this machine", [1.0]),
            strategy: "standard".to_owned(),
            tier: BlueprintTier::Safe,
            extras: urza::Extras::default(),
        };
        self.library.store(new).await.unwrap()
    }

    async fn serve<F: Future<Output = ()>>(
        &self,
        config: HttpConfig,
        test: impl FnOnce(Server) -> F,
    ) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        serve_on(listener, config, Some(self.library.clone()), test).await;
    }

    /// A client's settings, with short waits.
    fn client(&self) -> FetcherConfig {
        FetcherConfig {
            idle_timeout: Duration::from_secs(2),
            backoff: Duration::from_millis(10),
            ..FetcherConfig::at(self.dir.path().join("client"))
        }
    }

    fn fetcher(&self) -> Fetcher {
        Fetcher::open(self.client()).unwrap()
    }

    /// How much of a kernel the client has that it could not finish.
    fn partial(&self, digest: &Digest) -> u64 {
        let path = self.dir.path().join("client/tmp").join(format!("{digest}.part"));
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8)).collect()
}

fn text(len: usize) -> String {
    (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", String::as_str)
}

fn url(at: std::net::SocketAddr, digest: &Digest) -> String {
    urza::kernel_url(&format!("http://{at}"), digest)
}

fn with_token() -> HttpConfig {
    HttpConfig { kernel_token: Token::new(TOKEN).unwrap().into(), ..HttpConfig::default() }
}

#[tokio::test]
async fn a_kernel_is_handed_out_whole_and_in_part() {
    let (place, sent) = (Place::new().await, text(100_000));
    let record = place.store(sent.as_bytes()).await;
    let (path, etag) = (format!("/kernels/{}", record.digest), format!("\"{}\"", record.digest));
    place
        .serve(HttpConfig::default(), async |server| {
            let to = server.address;
            let whole = get(to, &path).await;
            assert_eq!((whole.status, whole.body.as_str()), (200, sent.as_str()));
            assert_eq!(header(&whole, "etag"), etag);
            assert_eq!(header(&whole, "accept-ranges"), "bytes");
            assert_eq!(header(&whole, "content-length"), "100000");
            assert_eq!(header(&whole, "content-type"), "application/octet-stream");
            let digest = header(&whole, "repr-digest").to_owned();
            assert!(digest.starts_with("sha-256=:") && digest.ends_with("=:"), "{digest}");
            assert_eq!(header(&whole, "content-digest"), digest);

            let head = ask(to, "HEAD", &path, &[("range", "bytes=0-9")]).await;
            assert_eq!((head.status, head.body.as_str()), (200, ""));
            assert_eq!(header(&head, "content-length"), "100000");

            for (range, part) in [
                ("bytes=0-0", 0..1),
                ("bytes=99990-", 99_990..100_000),
                ("bytes=-7", 99_993..100_000),
                ("bytes=500-1499", 500..1500),
            ] {
                let answer = ask(to, "GET", &path, &[("range", range)]).await;
                assert_eq!((answer.status, answer.body.as_str()), (206, &sent[part.clone()]));
                let expected = format!("bytes {}-{}/100000", part.start, part.end - 1);
                assert_eq!(header(&answer, "content-range"), expected);
                assert_eq!(header(&answer, "repr-digest"), digest);
                // It would be another one, of the part.
                assert_eq!(header(&answer, "content-digest"), "");
            }
            let behind = ask(to, "GET", &path, &[("range", "bytes=100000-")]).await;
            assert_eq!((behind.status, header(&behind, "content-range")), (416, "bytes */100000"));

            let range = ("range", "bytes=10-19");
            let same = ask(to, "GET", &path, &[range, ("if-range", &etag)]).await;
            assert_eq!((same.status, same.body.as_str()), (206, &sent[10..20]));
            let other = ask(to, "GET", &path, &[range, ("if-range", "\"another\"")]).await;
            assert_eq!((other.status, other.body.len()), (200, 100_000));
            for tags in [etag.as_str(), "*", &format!("\"x\", W/{etag}")] {
                let known = ask(to, "GET", &path, &[("if-none-match", tags)]).await;
                assert_eq!((known.status, known.body.as_str()), (304, ""), "{tags}");
            }
        })
        .await;
}

#[tokio::test]
async fn only_a_digest_names_a_kernel() {
    let place = Place::new().await;
    let record = place.store(b"kernel").await;
    std::fs::write(place.dir.path().join("secret.safetensors"), "secret").unwrap();
    let hex = record.digest.to_hex();
    place
        .serve(HttpConfig::default(), async |server| {
            let long = "a".repeat(5000);
            for name in [
                "x",
                "..",
                "%2e%2e",
                "..%2f..%2fsecret.safetensors",
                "..%5c..%5csecret",
                "%2fetc%2fpasswd",
                "%00",
                &hex[..63],
                &format!("{hex}0"),
                &format!("{hex}%00"),
                &format!("{hex}.safetensors"),
                &format!("{hex}.sig.sig"),
                &format!("{}%2f{hex}.safetensors", &hex[..2]),
                &hex.to_uppercase(),
                &long,
                "%ff",
            ] {
                for tail in ["", "/manifest"] {
                    let answer = get(server.address, &format!("/kernels/{name}{tail}")).await;
                    assert_eq!(answer.status, 400, "{name}{tail}: {}", answer.body);
                    assert!(!answer.body.contains("secret"));
                }
            }
            for path in
                ["/kernels", "/kernels/", "/kernels/../secret.safetensors", "/kernels//etc/passwd"]
            {
                assert_eq!(get(server.address, path).await.status, 404, "{path}");
            }
            let unknown = Digest::of("unknown");
            assert_eq!(get(server.address, &format!("/kernels/{unknown}")).await.status, 404);
            let put = ask(server.address, "PUT", &format!("/kernels/{hex}"), &[]).await;
            assert_eq!(put.status, 405);
        })
        .await;
}

#[tokio::test]
async fn a_token_is_demanded_when_one_is_set() {
    let place = Place::new().await;
    let record = place.store(b"kernel").await;
    let operator = HttpConfig { token: Token::new(TOKEN).unwrap().into(), ..HttpConfig::default() };
    let both = HttpConfig {
        token: Token::new("another token of some length").unwrap().into(),
        ..with_token()
    };
    for config in [with_token(), operator, both] {
        place
            .serve(config, async |server| {
                for tail in ["", ".sig", "/manifest"] {
                    let path = format!("/kernels/{}{tail}", record.digest);
                    let none = get(server.address, &path).await;
                    assert_eq!((none.status, header(&none, "www-authenticate")), (401, "Bearer"));
                    let wrong = [("authorization", "Bearer something else entirely")];
                    assert_eq!(ask(server.address, "GET", &path, &wrong).await.status, 403);
                }
                let path = format!("/kernels/{}", record.digest);
                let right = [("authorization", "Bearer a token of some length")];
                assert_eq!(ask(server.address, "GET", &path, &right).await.body, "kernel");
            })
            .await;
    }
}

#[tokio::test]
async fn what_is_corrupt_is_gone_and_never_sent() {
    let place = Place::new().await;
    let record = place.store(&bytes(50_000)).await;
    std::fs::write(&record.path, text(50_000)).unwrap();
    place
        .serve(HttpConfig::default(), async |server| {
            for _ in 0..2 {
                let answer = get(server.address, &format!("/kernels/{}", record.digest)).await;
                assert_eq!(answer.status, 410, "{}", answer.body);
            }
            let to = url(server.address, &record.digest);
            let fetched = place.fetcher().fetch(&to, &record.digest).await;
            assert!(matches!(fetched, Err(FetchFault::Missing { status: 410 })), "{fetched:?}");
        })
        .await;
    assert!(!record.path.exists());
}

#[tokio::test]
async fn a_signature_and_the_manifest_stand_beside_it() {
    let place = Place::new().await;
    let mut graph = Graph::new();
    let input = graph.input("input", &[8, 32]).unwrap();
    let output = graph.linear_layer(input, "w", 32).unwrap();
    graph.output("output", output).unwrap();
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": 32 } });
    let manifest =
        kernel::artifact::Manifest::new("BP009", [].into(), site, graph, &params, 1e-5).unwrap();
    let (bytes, _) = kernel::artifact::write_bytes(&manifest, &params).unwrap();
    let record = place.store(&bytes).await;
    place
        .serve(HttpConfig::default(), async |server| {
            let path = format!("/kernels/{}", record.digest);
            let shown = get(server.address, &format!("{path}/manifest")).await;
            assert_eq!(shown.status, 200, "{}", shown.body);
            assert_eq!(shown.body, kernel::to_canonical_json(&manifest).unwrap());
            assert_eq!(get(server.address, &format!("{path}.sig")).await.status, 404);
            let signature = serde_json::json!({ "key": "k1", "ed25519": "c2ln" });
            place.library.set_extra(&record, urza::SIGNATURE, &signature).await.unwrap();
            assert_eq!(get(server.address, &format!("{path}.sig")).await.json(), signature);
        })
        .await;
}

#[tokio::test]
async fn downloads_at_once_are_bounded_and_a_reader_that_stops_is_dropped() {
    let place = Place::new().await;
    // More than the sockets hold.
    let record = place.store(&bytes(32 << 20)).await;
    let config = HttpConfig {
        downloads_max: NonZeroUsize::MIN,
        write_timeout: Duration::from_millis(500),
        ..HttpConfig::default()
    };
    place
        .serve(config, async |server| {
            let path = format!("/kernels/{}", record.digest);
            let mut stopped = TcpStream::connect(server.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
            stopped.write_all(request.as_bytes()).await.unwrap();
            // Its answer has begun, so it is the one.
            let mut first = [0; 1];
            stopped.read_exact(&mut first).await.unwrap();
            let refused = get(server.address, &path).await;
            assert_eq!((refused.status, header(&refused, "retry-after")), (503, "1"));
            // Probes are answered all the same.
            assert_eq!(get(server.address, "/livez").await.status, 200);
            // It is dropped for reading nothing; a client that comes again gets its kernel.
            let config = FetcherConfig { attempts_max: NonZeroU32::MAX, ..place.client() };
            let fetcher = Fetcher::open(config).unwrap();
            fetcher.fetch(&url(server.address, &record.digest), &record.digest).await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_kernel_arrives_whatever_breaks_on_the_way() {
    let place = Place::new().await;
    let sent = bytes(4 << 20);
    let record = place.store(&sent).await;
    place
        .serve(HttpConfig::default(), async |server| {
            for (faults, at_most) in [
                (vec![], 1.1),
                (vec![Fault::CutAfter(1 << 20), Fault::CutAfter(1 << 20)], 1.1),
                (vec![Fault::CutAfter(0), Fault::Error500, Fault::Error500], 1.1),
                (vec![Fault::Silent], 1.1),
                (vec![Fault::Garble(1 << 20)], 2.1),
            ] {
                let client = place.dir.path().join("client");
                drop(std::fs::remove_dir_all(&client));
                let proxy = Proxy::start(server.address);
                proxy.faults(faults.clone());
                let fetched = place
                    .fetcher()
                    .fetch(&url(proxy.address, &record.digest), &record.digest)
                    .await;
                let path = fetched.unwrap_or_else(|fault| panic!("{faults:?}: {fault:?}"));
                assert!(std::fs::read(&path).unwrap() == sent, "{faults:?}");
                assert!(path.starts_with(client.canonicalize().unwrap()));
                // What had come was not sent again, unless it was wrong.
                let share = proxy.passed() as f64 / sent.len() as f64;
                assert!(share < at_most, "{faults:?}: {share}");
                assert_eq!(std::fs::read_dir(client.join("tmp")).unwrap().count(), 0);
            }
        })
        .await;
}

#[tokio::test]
async fn a_download_is_gone_on_with_by_another_process_and_from_a_server_that_was_restarted() {
    let place = Place::new().await;
    let sent = bytes(4 << 20);
    let record = place.store(&sent).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let again = listener.try_clone().unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap());
    let kernel = url(proxy.address, &record.digest);
    let library = || Some(place.library.clone());
    serve_on(listener, HttpConfig::default(), library(), async |_| {
        proxy.faults([Fault::CutAfter(1 << 20)]);
        let config = FetcherConfig { attempts_max: NonZeroU32::MIN, ..place.client() };
        let broken = Fetcher::open(config).unwrap().fetch(&kernel, &record.digest).await;
        assert!(matches!(broken, Err(FetchFault::Connection { .. })), "{broken:?}");
    })
    .await;
    let partial = place.partial(&record.digest);
    assert!(partial > 500_000, "{partial} bytes were kept");
    serve_on(again, HttpConfig::default(), library(), async |_| {
        let path = place.fetcher().fetch(&kernel, &record.digest).await.unwrap();
        assert!(std::fs::read(path).unwrap() == sent);
    })
    .await;
    assert!(proxy.passed() < sent.len() * 11 / 10, "{} bytes were sent", proxy.passed());
}

#[tokio::test]
async fn one_kernel_is_fetched_once_however_many_want_it_and_then_it_is_here() {
    let place = Place::new().await;
    let sent = bytes(4 << 20);
    let record = place.store(&sent).await;
    place
        .serve(HttpConfig::default(), async |server| {
            let proxy = Proxy::start(server.address);
            let (fetcher, kernel) = (place.fetcher(), url(proxy.address, &record.digest));
            let all = (0..16).map(|_| fetcher.fetch(&kernel, &record.digest));
            for fetched in futures_util::future::join_all(all).await {
                assert!(std::fs::read(fetched.unwrap()).unwrap() == sent);
            }
            assert_eq!(proxy.connections(), 1);
            // Another process on the directory asks nobody; what is no longer sound is fetched anew.
            let path = place.fetcher().fetch(&kernel, &record.digest).await.unwrap();
            assert_eq!(proxy.connections(), 1);
            std::fs::write(&path, bytes(5)).unwrap();
            assert_eq!(fetcher.fetch(&kernel, &record.digest).await.unwrap(), path);
            assert!(std::fs::read(&path).unwrap() == sent);
        })
        .await;
}

#[tokio::test]
async fn a_client_is_told_what_to_do() {
    let place = Place::new().await;
    let record = place.store(&bytes(100_000)).await;
    let digest = record.digest;
    place
        .serve(with_token(), async |server| {
            let to = url(server.address, &digest);
            let refused = place.fetcher().fetch(&to, &digest).await.unwrap_err();
            assert!(matches!(refused, FetchFault::Refused { status: 401 }), "{refused:?}");
            assert!(refused.to_string().contains("KASMINA_KERNEL_TOKEN"));
            let secret = "not the token of this service";
            let config = FetcherConfig { token: Some(secret.to_owned()), ..place.client() };
            assert!(!format!("{config:?}").contains(secret));
            let fetcher = Fetcher::open(config).unwrap();
            let refused = fetcher.fetch(&to, &digest).await.unwrap_err();
            assert!(matches!(refused, FetchFault::Refused { status: 403 }), "{refused:?}");
            assert!(!format!("{refused:?} {fetcher:?}").contains(secret));

            let with = |change: &dyn Fn(&mut FetcherConfig)| {
                let mut config = FetcherConfig { token: Some(TOKEN.to_owned()), ..place.client() };
                change(&mut config);
                Fetcher::open(config).unwrap()
            };
            let small = with(&|config| config.bytes_max = 99_999);
            let large = small.fetch(&to, &digest).await.unwrap_err();
            let FetchFault::TooLarge { bytes: 100_000, max: 99_999 } = large else {
                panic!("{large:?}")
            };
            let unknown = Digest::of("unknown");
            let missing = with(&|_| {}).fetch(&url(server.address, &unknown), &unknown).await;
            assert!(matches!(missing, Err(FetchFault::Missing { status: 404 })), "{missing:?}");
            // Another artifact under this name is never taken for it.
            let other = with(&|config| config.attempts_max = NonZeroU32::MIN);
            let wrong = other.fetch(&to, &unknown).await;
            assert!(matches!(wrong, Err(FetchFault::Corrupt { .. })), "{wrong:?}");
            with(&|_| {}).fetch(&to, &digest).await.unwrap();
        })
        .await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = FetcherConfig { attempts_max: NonZeroU32::MIN, ..place.client() };
    let unknown = Digest::of("unknown");
    let nobody = Fetcher::open(config).unwrap().fetch(&url(closed, &unknown), &unknown).await;
    assert!(matches!(nobody, Err(FetchFault::Connection { .. })), "{nobody:?}");
}

#[tokio::test]
async fn a_kernel_comes_over_tls_from_a_server_that_is_trusted_and_from_no_other() {
    let place = Place::new().await;
    let sent = bytes(1 << 20);
    let record = place.store(&sent).await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    place
        .serve(with_token(), async |server| {
            let front = Front::start(server.address, &authority, "server");
            let expired = Front::start(server.address, &authority, "expired");
            let other_name = front.url().replace("localhost", "127.0.0.1");
            let without_tls = format!("https://{}", server.address);
            let fetch = async |base: &str, ca_file: Option<std::path::PathBuf>| {
                let token = Some(TOKEN.to_owned());
                let config = FetcherConfig { token, ca_file, ..place.client() };
                let kernel = urza::kernel_url(base, &record.digest);
                Fetcher::open(config).unwrap().fetch(&kernel, &record.digest).await
            };
            let ca = || Some(authority.file("ca.pem"));
            for (base, ca_file, expected) in [
                (&front.url(), Some(stranger.file("ca.pem")), "not trusted here"),
                (&front.url(), None, "not trusted here"),
                (&other_name, ca(), "made out to another name"),
                (&expired.url(), ca(), "has expired"),
                (&without_tls, ca(), "does not speak TLS"),
            ] {
                let before = front.connections() + expired.connections();
                let fault = fetch(base, ca_file).await.unwrap_err();
                assert!(matches!(fault, FetchFault::Untrusted { .. }), "{fault:?}");
                assert!(!fault.is_retryable());
                let told = format!("{fault} {fault:?}");
                assert!(told.contains(expected), "{expected}: {told}");
                assert!(told.contains("KASMINA_KERNEL_CA_FILE") && !told.contains(TOKEN), "{told}");
                let asked = front.connections() + expired.connections() - before;
                assert!(asked <= 1, "{expected}: {asked} attempts");
            }
            let path = fetch(&front.url(), ca()).await.unwrap();
            assert!(std::fs::read(path).unwrap() == sent);
        })
        .await;
    let ca_file = Some("/nonexistent/ca.pem".into());
    let fault = Fetcher::open(FetcherConfig { ca_file, ..place.client() }).unwrap_err();
    assert!(matches!(fault, FetchFault::Setting { .. }), "{fault:?}");
    assert!(fault.to_string().contains("/nonexistent/ca.pem"), "{fault}");
}

#[tokio::test]
async fn a_library_that_is_not_open_yet_is_asked_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    serve_on(listener, HttpConfig::default(), None, async |server| {
        let answer = get(server.address, &format!("/kernels/{}", Digest::of("x"))).await;
        assert_eq!((answer.status, header(&answer, "retry-after")), (503, "2"));
    })
    .await;
}
