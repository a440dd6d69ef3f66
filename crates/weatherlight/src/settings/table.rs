//! The settings themselves. To add one, add a row: its typed field, its environment variable, its
//! key in `weatherlight.toml`, its checks and its documentation all come from here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::definition::settings;
use super::kind::Kind::{
    Address, Bytes, Choice, Count, Durability, Duration as Span, LogFilter, Number, Path, RedisUrl,
    Secret, Switch, Text, Url,
};
use super::kind::Unit::{Hours, Milliseconds, Seconds};
use super::secret::{SecretText, UrlText};

/// One day in milliseconds, the upper bound of most time spans.
const DAY_MS: f64 = 86_400_000.0;
const HTTP: &[&str] = &["http", "https"];

settings! {
    "Secrets" {
        leyline_secret: Option<SecretText> = "ESPER_LEYLINE_SECRET" "leyline.secret"
            Secret, None, Live,
            "Shared secret that signs and verifies every bus message. Required by `serve` and `train`; the demo makes one for itself. Programs with another secret refuse one another's messages.";
        leyline_secret_previous: Option<SecretText> = "ESPER_LEYLINE_SECRET_PREVIOUS" "leyline.secret_previous"
            Secret, None, Live,
            "The secret before the current one, still accepted when verifying, so that secrets can be rotated without a stop.";
        leyline_namespace: String = "LEYLINE_DEFAULT_NAMESPACE" "leyline.namespace"
            Text, Some("esper.leyline.v1"), Restart,
            "Package name of the wire contract. Only the default speaks to other programs.";
    }
    "Service" {
        http_addr: SocketAddr = "WEATHERLIGHT_HTTP_ADDR" "weatherlight.http_addr"
            Address, Some("127.0.0.1:9100"), Restart,
            "Where the page, `/metrics` and the health endpoints listen. On anything but loopback others can read them.";
        http_token: Option<SecretText> = "WEATHERLIGHT_HTTP_TOKEN" "weatherlight.http_token"
            Secret, None, Live,
            "Bearer token for the endpoints that change something (restarting a worker). Unset: they refuse everybody.";
        state_dir: PathBuf = "WEATHERLIGHT_STATE_DIR" "weatherlight.state_dir"
            Path, Some("./var"), Restart,
            "Directory of what the service itself keeps: the embedded log, the demo's secret, what trainers keep.";
        telemetry_interval: Duration = "WEATHERLIGHT_TELEMETRY_INTERVAL_S" "weatherlight.telemetry_interval_s"
            Span(Seconds, 0.1, 3600.0), Some("10"), Live,
            "How often the service publishes its own telemetry packet.";
        drain_timeout: Duration = "WEATHERLIGHT_DRAIN_TIMEOUT_S" "weatherlight.drain_timeout_s"
            Span(Seconds, 0.1, 3600.0), Some("10"), Restart,
            "How long an orderly stop may take before what is left is aborted and named. Keep it below the service manager's own stop time-out.";
        heartbeat_budget: Duration = "WEATHERLIGHT_HEARTBEAT_BUDGET_S" "weatherlight.heartbeat_budget_s"
            Span(Seconds, 2.0, 3600.0), Some("10"), Restart,
            "A worker silent for longer counts as hung and is restarted. Workers beat every second.";
        watch_settings: bool = "WEATHERLIGHT_WATCH_SETTINGS" "weatherlight.watch_settings"
            Switch, Some("true"), Restart,
            "Look every 2 s whether the files that settings come from have changed, and reload them. Without it, SIGHUP and `weatherlight config reload` do.";
        disk_free_min: u64 = "WEATHERLIGHT_DISK_FREE_MIN_BYTES" "weatherlight.disk_free_min_bytes"
            Bytes(0, 1 << 50), Some("256MiB"), Restart,
            "Preflight warns when a directory it writes to has less space than this.";
    }
    "Logs" {
        log_level: String = "ESP_LOG_LEVEL" "log.level"
            LogFilter, Some("INFO"), Live,
            "What is logged: a level, or directives such as `info,oona=debug`.";
        log_format: String = "WEATHERLIGHT_LOG_FORMAT" "log.format"
            Choice(&["auto", "text", "json"]), Some("auto"), Restart,
            "How it is logged: `auto` is text on a terminal and JSON otherwise.";
    }
    "OpenTelemetry" {
        otlp_endpoint: Option<UrlText> = "OTEL_EXPORTER_OTLP_ENDPOINT" "otlp.endpoint"
            Url(HTTP), None, Restart,
            "Where a collector takes OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` and `/v1/metrics` are added. Unset: no traces and no metrics are sent.";
        otlp_headers: Option<SecretText> = "OTEL_EXPORTER_OTLP_HEADERS" "otlp.headers"
            Secret, None, Restart,
            "Headers of every request to it, as `NAME=VALUE,NAME=VALUE`, percent-encoded where needed: what it authenticates by.";
        otlp_service_name: String = "OTEL_SERVICE_NAME" "otlp.service_name"
            Text, Some("weatherlight"), Restart,
            "Under which name it shows this process (`service.name`).";
        otlp_resource_attributes: Option<String> = "OTEL_RESOURCE_ATTRIBUTES" "otlp.resource_attributes"
            Text, None, Restart,
            "What else it knows of this process, as `NAME=VALUE,NAME=VALUE`.";
        otlp_sample_ratio: f64 = "OTEL_TRACES_SAMPLER_ARG" "otlp.sample_ratio"
            Number(0.0, 1.0), Some("1"), Restart,
            "Share of the traces beginning here that are recorded. A trace that began elsewhere is recorded when it is there.";
        otlp_metric_interval: Duration = "OTEL_METRIC_EXPORT_INTERVAL" "otlp.metric_interval_ms"
            Span(Milliseconds, 1000.0, DAY_MS), Some("15000"), Restart,
            "How often metrics are sent.";
    }
    "Message bus" {
        redis_url: Option<UrlText> = "REDIS_URL" "oona.redis_url"
            RedisUrl, None, Restart,
            "Redis 7.0 or later, or Valkey, for several processes or machines. Unset: the embedded log, for this process alone.";
        redis_password: Option<SecretText> = "REDIS_PASSWORD" "oona.redis_password"
            Secret, None, Restart,
            "Password for Redis; goes before one in the URL. The user, if not the default one, stands in the URL.";
        oona_redis_ca_file: Option<PathBuf> = "OONA_REDIS_CA_FILE" "oona.redis_ca_file"
            Path, None, Restart,
            "PEM file of the authorities that may have signed the certificate of a `rediss` server. Unset: the system's own.";
        oona_redis_cert_file: Option<PathBuf> = "OONA_REDIS_CERT_FILE" "oona.redis_cert_file"
            Path, None, Restart,
            "PEM file of the client certificate, for servers that ask for one. Needs OONA_REDIS_KEY_FILE.";
        oona_redis_key_file: Option<PathBuf> = "OONA_REDIS_KEY_FILE" "oona.redis_key_file"
            Path, None, Restart,
            "PEM file of the key to the client certificate.";
        oona_durability: oona::Durabilities = "OONA_DURABILITY" "oona.durability"
            Durability, Some("none"), Restart,
            "What a publish waits for on Redis: `none` (the server has it), `wait:N` (N replicas have it too), `waitaof:N` (it is on disk, there and on N replicas; Redis 7.2). Streams that differ follow behind commas: `none,policy=waitaof,emergency=wait:1`.";
        oona_durability_timeout: Duration = "OONA_DURABILITY_TIMEOUT_MS" "oona.durability_timeout_ms"
            Span(Milliseconds, 1.0, 60_000.0), Some("1500"), Restart,
            "How long it waits for that. Beyond it the publish fails and says that the entry stands in the log, less safe than asked for.";
        oona_normal_stream: String = "OONA_NORMAL_STREAM" "oona.normal_stream"
            Text, Some("oona.normal"), Restart,
            "Stream of system states, commands and field reports.";
        oona_emergency_stream: String = "OONA_EMERGENCY_STREAM" "oona.emergency_stream"
            Text, Some("oona.emergency"), Restart,
            "Stream of emergency signals and of what is rerouted under pressure.";
        oona_telemetry_stream: String = "OONA_TELEMETRY_STREAM" "oona.telemetry_stream"
            Text, Some("oona.telemetry"), Restart,
            "Stream of telemetry packets.";
        oona_policy_stream: String = "OONA_POLICY_STREAM" "oona.policy_stream"
            Text, Some("oona.policy"), Restart,
            "Stream of policy updates.";
        oona_kernel_request_stream: String = "OONA_KERNEL_REQUEST_STREAM" "oona.kernel_request_stream"
            Text, Some("oona.kernels.requests"), Restart,
            "Stream of requests for kernels.";
        oona_kernel_ready_stream: String = "OONA_KERNEL_READY_STREAM" "oona.kernel_ready_stream"
            Text, Some("oona.kernels.ready"), Restart,
            "Stream of answers: a kernel is ready.";
        oona_kernel_error_stream: String = "OONA_KERNEL_ERROR_STREAM" "oona.kernel_error_stream"
            Text, Some("oona.kernels.errors"), Restart,
            "Stream of answers: a kernel cannot be had.";
        oona_dead_letter_stream: String = "OONA_DEAD_LETTER_STREAM" "oona.dead_letter_stream"
            Text, Some("oona.deadletter"), Restart,
            "Stream of what could not be handled, with the reason beside it.";
        oona_message_ttl: Duration = "OONA_MESSAGE_TTL_MS" "oona.message_ttl_ms"
            Span(Milliseconds, 1000.0, 30.0 * DAY_MS), Some("900000"), Restart,
            "Age beyond which a handled entry is trimmed, and for which a group without a live consumer holds trimming back.";
        oona_message_bytes_max: usize = "OONA_MAX_MESSAGE_BYTES" "oona.max_message_bytes"
            Bytes(1024, 64 << 20), Some("256KiB"), Restart,
            "Larger messages are refused when published and when read. Artifacts never travel on the bus.";
        oona_freshness_window: Duration = "OONA_FRESHNESS_WINDOW_MS" "oona.freshness_window_ms"
            Span(Milliseconds, 1.0, DAY_MS), Some("300000"), Restart,
            "How old a message may be when it is appended; older ones are refused as stale.";
        kernel_freshness_window: Duration = "KERNEL_FRESHNESS_WINDOW_MS" "kernel.freshness_window_ms"
            Span(Milliseconds, 1.0, DAY_MS), Some("60000"), Restart,
            "The same for requests for kernels.";
        kernel_nonce_cache_size: usize = "KERNEL_NONCE_CACHE_SIZE" "kernel.nonce_cache_size"
            Count("nonces", 16, 1 << 24), Some("4096"), Never,
            "Accepted for older programs: nonces are kept for as long as a copy could still be fresh, however many.";
        oona_accept_legacy: bool = "OONA_ACCEPT_LEGACY" "oona.accept_legacy"
            Switch, Some("false"), Restart,
            "Admit signed messages without nonce and time, from programs that predate them. Weakens the protection against replay.";
        oona_attempts_max: u32 = "OONA_MAX_ATTEMPTS" "oona.max_attempts"
            Count("deliveries", 1, 100), Some("5"), Restart,
            "Deliveries of one entry before it is moved to the dead-letter stream.";
        oona_claim_idle: Duration = "OONA_CLAIM_IDLE_MS" "oona.claim_idle_ms"
            Span(Milliseconds, 100.0, DAY_MS), Some("10000"), Restart,
            "Entries of a silent consumer are taken over after this. Below the time a handler takes, work is done twice.";
        oona_stream_len_max: u64 = "OONA_STREAM_LEN_MAX" "oona.stream_len_max"
            Count("entries", 100, 1_000_000_000), Some("100000"), Restart,
            "Stream length beyond which handled entries are trimmed.";
        oona_embedded_bytes_max: u64 = "OONA_EMBEDDED_MAX_BYTES" "oona.embedded_max_bytes"
            Bytes(16 << 20, 1 << 49), Some("4GiB"), Restart,
            "How large the embedded log's file may grow. Beyond it publishing is refused until something has been consumed and trimmed.";
        oona_queue_depth_max: u64 = "OONA_QUEUE_DEPTH_MAX" "oona.queue_depth_max"
            Count("entries", 1, 1_000_000_000), Some("10000"), Live,
            "The unacknowledged backlog that counts as full.";
        oona_backpressure_threshold: Option<u64> = "OONA_BACKPRESSURE_THRESHOLD" "oona.backpressure_threshold"
            Count("entries", 1, 1_000_000_000), None, Live,
            "Backlog from which LOW, later NORMAL messages are refused. Unset: 75 % of OONA_QUEUE_DEPTH_MAX, 7500.";
        oona_emergency_threshold: Option<u64> = "OONA_EMERGENCY_THRESHOLD" "oona.emergency_threshold"
            Count("entries", 1, 1_000_000_000), None, Live,
            "Backlog from which HIGH and CRITICAL messages take the emergency lane. Unset: 50 % of OONA_QUEUE_DEPTH_MAX, 5000.";
        oona_spool_bytes_max: u64 = "OONA_SPOOL_MAX_BYTES" "oona.spool_max_bytes"
            Bytes(1 << 20, 1 << 40), Some("64MiB"), Restart,
            "Bytes of messages that wait on disk, in `WEATHERLIGHT_STATE_DIR/oona/spool`, while Redis is away. Beyond it publishing is refused. The file itself may be somewhat larger.";
        oona_spool_messages_max: u64 = "OONA_SPOOL_MAX_MESSAGES" "oona.spool_max_messages"
            Count("messages", 1, 100_000_000), Some("100000"), Restart,
            "Messages that wait there at once.";
        oona_recovery_depth: Option<u64> = "OONA_RECOVERY_DEPTH" "oona.recovery_depth"
            Count("entries", 1, 1_000_000_000), None, Live,
            "Backlog below which conservative mode ends: NORMAL and LOW messages, paused since the backlog passed the limit for NORMAL, go on. Unset: OONA_EMERGENCY_THRESHOLD, 5000.";
        oona_recovery_window: Duration = "OONA_RECOVERY_WINDOW_MS" "oona.recovery_window_ms"
            Span(Milliseconds, 0.0, DAY_MS), Some("2000"), Live,
            "How long the backlog must have been below that.";
        oona_emergency_per_min: u32 = "OONA_EMERGENCY_MAX_PER_MIN" "oona.emergency_max_per_min"
            Count("messages a minute", 1, 1_000_000), Some("120"), Live,
            "Emergency messages a minute of one origin (a subsystem and its training run). Beyond it they are refused when published, and signals of other programs are handled as ordinary messages.";
    }
    "Library" {
        urza_database_url: UrlText = "URZA_DATABASE_URL" "urza.database_url"
            Url(&["sqlite", "postgres", "postgresql"]), Some("sqlite:///./var/urza/catalog.db"), Restart,
            "Database of the artifact catalogue: a SQLite file, or `postgres://user:password@host:5432/database?sslmode=verify-full` for several machines.";
        urza_artifact_dir: PathBuf = "URZA_ARTIFACT_DIR" "urza.artifact_dir"
            Path, Some("./var/urza/artifacts"), Restart,
            "Directory of the artifacts. Trainers on other machines see it under the same path, or fetch by URZA_PUBLIC_URL. With URZA_ARTIFACT_URL it is the verified cache of the bucket.";
        urza_artifact_url: Option<UrlText> = "URZA_ARTIFACT_URL" "urza.artifact_url"
            Url(&["s3"]), None, Restart,
            "Bucket that the artifacts live in, as `s3://bucket/prefix`, on Amazon or on what speaks S3 at AWS_ENDPOINT_URL. Unset: they live in URZA_ARTIFACT_DIR.";
        urza_artifact_cache_bytes_max: u64 = "URZA_ARTIFACT_CACHE_MAX_BYTES" "urza.artifact_cache_max_bytes"
            Bytes(1 << 20, 1 << 50), Some("10GiB"), Restart,
            "How much of the bucket URZA_ARTIFACT_DIR holds; what was used least recently goes first, what is in use stays. Without a bucket nothing is removed for it.";
        urza_public_url: Option<UrlText> = "URZA_PUBLIC_URL" "urza.public_url"
            Url(HTTP), None, Restart,
            "Where trainers on other machines reach WEATHERLIGHT_HTTP_ADDR, such as `https://forge.example`: answers then say where the kernel can be fetched, below `/kernels/`. Unset: they name the local path alone.";
        urza_http_token: Option<SecretText> = "URZA_HTTP_TOKEN" "urza.http_token"
            Secret, None, Restart,
            "Bearer token that trainers fetch kernels with (their KASMINA_KERNEL_TOKEN); that of WEATHERLIGHT_HTTP_TOKEN does as well. With neither set, everybody who reaches the endpoint may fetch them.";
        aws_endpoint: Option<UrlText> = "AWS_ENDPOINT_URL" "aws.endpoint_url"
            Url(HTTP), None, Restart,
            "Server that speaks S3 for URZA_ARTIFACT_URL. Unset: Amazon's, in AWS_REGION.";
        aws_region: String = "AWS_REGION" "aws.region"
            Text, Some("us-east-1"), Restart,
            "Region of the bucket.";
        aws_access_key_id: Option<SecretText> = "AWS_ACCESS_KEY_ID" "aws.access_key_id"
            Secret, None, Restart,
            "Access key for the bucket. Unset: the machine's own role is asked for, from Amazon's metadata service.";
        aws_secret_access_key: Option<SecretText> = "AWS_SECRET_ACCESS_KEY" "aws.secret_access_key"
            Secret, None, Restart,
            "Secret to that key.";
        aws_session_token: Option<SecretText> = "AWS_SESSION_TOKEN" "aws.session_token"
            Secret, None, Restart,
            "Session token, for a key that is temporary. It is not renewed: the service's restart reads a new one.";
        aws_ca_bundle: Option<PathBuf> = "AWS_CA_BUNDLE" "aws.ca_bundle"
            Path, None, Restart,
            "PEM file of authorities that may have signed the certificate of AWS_ENDPOINT_URL, beside the system's own. Unset: the system's alone.";
        urza_compiling_after: Duration = "URZA_COMPILING_AFTER_MS" "urza.compiling_after_ms"
            Span(Milliseconds, 1.0, 60_000.0), Some("3000"), Restart,
            "How long a request for a kernel waits for its compilation before it is told to ask again.";
        urza_lease: Duration = "URZA_LEASE_S" "urza.lease_s"
            Span(Seconds, 300.0, 2_592_000.0), Some("3600"), Restart,
            "How long a kernel stays under lease after a training run has asked for it; its trainer asks again in a third of that while a seed holds it. What is under lease is not removed.";
        urza_cache_ttl: Option<Duration> = "URZA_CACHE_TTL_SECONDS" "urza.cache_ttl_seconds"
            Span(Seconds, 1.0, 31_536_000.0), None, Restart,
            "Age beyond which an unused artifact is expired. Unset: never.";
        urza_library_bytes_max: Option<u64> = "URZA_LIBRARY_BYTES_MAX" "urza.library_bytes_max"
            Bytes(1 << 20, 1 << 50), None, Restart,
            "How much the artifacts may take together. Beyond it the least recently used are removed; what is leased, pinned, served or was used within the hour stays. Unset: no bound.";
        urza_superseded_retention: Duration = "URZA_SUPERSEDED_RETENTION_S" "urza.superseded_retention_s"
            Span(Seconds, 3600.0, 315_360_000.0), Some("7776000"), Restart,
            "How long an artifact is kept after its last use once a newer one of the same blueprint, site and parameters has taken its place.";
        urza_quarantine_retention: Duration = "URZA_QUARANTINE_RETENTION_S" "urza.quarantine_retention_s"
            Span(Seconds, 3600.0, 315_360_000.0), Some("2592000"), Restart,
            "How long the record of a quarantined artifact is kept.";
    }
    "Blueprints" {
        karn_blueprint_dir: Option<PathBuf> = "KARN_BLUEPRINT_DIR" "karn.blueprint_dir"
            Path, None, Restart,
            "Directory of manifests of your own blueprints, `*.toml`, one blueprint each (docs/blueprints.md). Unset: ours alone. A fault in one of them keeps the service from starting.";
        karn_approvals: Option<String> = "KARN_APPROVALS" "karn.approvals"
            Text, None, Restart,
            "Blueprints that may be grown though they need an approval, by id, between commas: `BP036,BP039`. Unset: none.";
    }
    "Forge" {
        tezzeret_jobs_max: usize = "TEZZERET_JOBS_MAX" "tezzeret.jobs_max"
            Count("jobs", 1, 64), Some("2"), Restart,
            "Compile jobs at a time. Each keeps one core busy that training could use.";
        tezzeret_deadline: Duration = "TEZZERET_DEADLINE_S" "tezzeret.deadline_s"
            Span(Seconds, 1.0, 3600.0), Some("60"), Restart,
            "How long one attempt at compiling may take, whatever its strategy, before it is ended and counts as failed.";
        tezzeret_attempts_max: u32 = "TEZZERET_ATTEMPTS_MAX" "tezzeret.attempts_max"
            Count("attempts", 1, 10), Some("2"), Restart,
            "Attempts at one compile job before it is parked.";
        tezzeret_strategy: String = "TEZZERET_STRATEGY" "tezzeret.strategy"
            Choice(&["standard", "conservative", "emergency"]), Some("standard"), Restart,
            "Time that a compile job is given: at most 250, 65 or 10 s. Trouble makes it less.";
        tezzeret_queue_dir: Option<PathBuf> = "TEZZERET_QUEUE_DIR" "tezzeret.queue_dir"
            Path, None, Restart,
            "Directory of compile jobs that outlive the process. Unset: forge/jobs beside URZA_ARTIFACT_DIR.";
        tezzeret_signing_key: Option<SecretText> = "TEZZERET_SIGNING_KEY" "tezzeret.signing_key"
            Secret, None, Restart,
            "Secret ed25519 key in PEM (PKCS#8) with which the forge signs what it makes; best as a file, TEZZERET_SIGNING_KEY_FILE. `openssl genpkey -algorithm ed25519` makes one.";
    }
    "Seeds" {
        kasmina_embargo: Duration = "KASMINA_EMBARGO_S" "kasmina.embargo_s"
            Span(Seconds, 0.0, 86_400.0), Some("30"), Restart,
            "How long a slot is held after a gate refused its seed.";
        kasmina_fetch_deadline: Duration = "KASMINA_FETCH_DEADLINE_S" "kasmina.fetch_deadline_s"
            Span(Seconds, 1.0, 86_400.0), Some("180"), Restart,
            "A seed whose kernel has not come by then is given up.";
        kasmina_kernel_cache_dir: PathBuf = "KASMINA_KERNEL_CACHE_DIR" "kasmina.kernel_cache_dir"
            Path, Some("./var/kasmina/kernels"), Restart,
            "Directory for kernels that a trainer fetches over HTTP because it does not see URZA_ARTIFACT_DIR. Made when the first one is fetched; trainers of one machine may share it.";
        kasmina_kernel_cache_bytes_max: u64 = "KASMINA_KERNEL_CACHE_MAX_BYTES" "kasmina.kernel_cache_max_bytes"
            Bytes(1 << 20, 1 << 50), Some("10GiB"), Restart,
            "How much that directory holds; what was used least recently goes first.";
        kasmina_kernel_token: Option<SecretText> = "KASMINA_KERNEL_TOKEN" "kasmina.kernel_token"
            Secret, None, Restart,
            "Bearer token that kernels are fetched with: the URZA_HTTP_TOKEN of the service.";
        kasmina_kernel_ca_file: Option<PathBuf> = "KASMINA_KERNEL_CA_FILE" "kasmina.kernel_ca_file"
            Path, None, Restart,
            "PEM file of authorities that may have signed the certificate of URZA_PUBLIC_URL, beside the system's own. Unset: the system's alone.";
        kasmina_trusted_keys: Option<SecretText> = "KASMINA_TRUSTED_KEYS" "kasmina.trusted_keys"
            Secret, None, Restart,
            "Public ed25519 keys in PEM, one behind the other; best as a file, KASMINA_TRUSTED_KEYS_FILE. A kernel that none of them signed is not attached. Unset: kernels need no signature.";
    }
    "Policy" {
        tamiyo_policy_dir: PathBuf = "TAMIYO_POLICY_DIR" "tamiyo.policy_dir"
            Path, Some("./var/tamiyo/policies"), Restart,
            "Directory of accepted policies. One process at a time.";
        tamiyo_report_dir: PathBuf = "TAMIYO_FIELD_REPORT_DIR" "tamiyo.field_report_dir"
            Path, Some("./var/tamiyo/reports"), Restart,
            "Directory of field reports that wait to be published.";
        tamiyo_conservative_mode: bool = "TAMIYO_CONSERVATIVE_MODE" "tamiyo.conservative_mode"
            Switch, Some("false"), Restart,
            "Start in conservative mode: only low-risk blueprints, one seed at a time.";
        tamiyo_verify_updates: bool = "TAMIYO_VERIFY_UPDATES" "tamiyo.verify_updates"
            Switch, Some("true"), Restart,
            "Validate a policy update before it replaces the policy in force. Turning it off is for tests.";
        tamiyo_update_freshness: Duration = "TAMIYO_UPDATE_FRESHNESS_SEC" "tamiyo.update_freshness_sec"
            Span(Seconds, 1.0, 86_400.0), Some("300"), Restart,
            "How old a policy update may be.";
        tamiyo_step_timeout: Duration = "TAMIYO_STEP_TIMEOUT_MS" "tamiyo.step_timeout_ms"
            Span(Milliseconds, 0.1, 60_000.0), Some("5.0"), Restart,
            "How long one decision may take; a late one is dropped and counted.";
        tamiyo_field_report_retention: Duration = "TAMIYO_FIELD_REPORT_RETENTION_HOURS" "tamiyo.field_report_retention_hours"
            Span(Hours, 0.01, 8760.0), Some("24"), Restart,
            "How long field reports are kept.";
        tamiyo_field_report_retries_max: u32 = "TAMIYO_FIELD_REPORT_MAX_RETRIES" "tamiyo.field_report_max_retries"
            Count("retries", 0, 1000), Some("3"), Restart,
            "How often publishing a field report is tried again.";
        tamiyo_observation_epochs: u32 = "TAMIYO_FR_OBS_WINDOW_EPOCHS" "tamiyo.fr_obs_window_epochs"
            Count("epochs", 1, 10_000), Some("1"), Restart,
            "Epochs over which a command's effect is observed before it is reported.";
        tamiyo_retry_backoff: Duration = "TAMIYO_FR_RETRY_BACKOFF_MS" "tamiyo.fr_retry_backoff_ms"
            Span(Milliseconds, 1.0, DAY_MS), Some("1000"), Restart,
            "Delay before the first retry of a field report.";
        tamiyo_retry_backoff_factor: f64 = "TAMIYO_FR_RETRY_BACKOFF_MULT" "tamiyo.fr_retry_backoff_mult"
            Number(1.0, 100.0), Some("2.0"), Restart,
            "Factor by which that delay grows.";
    }
    "Training" {
        tolaria_checkpoint_dir: PathBuf = "TOLARIA_CHECKPOINT_DIR" "tolaria.checkpoint_dir"
            Path, Some("./var/tolaria/checkpoints"), Restart,
            "Where `demo` and `train` leave the weights they learnt: `RUN/checkpoint.safetensors`, which any safetensors library loads; its metadata names run, seed and epoch. A run cannot be continued from it. Nothing removes old ones.";
        tolaria_checkpoint_epochs: u32 = "TOLARIA_CHECKPOINT_EPOCHS" "tolaria.checkpoint_epochs"
            Count("epochs", 0, 1_000_000), Some("25"), Restart,
            "Epochs after which that file is written anew; it always is when the run ends. 0 writes none at all.";
        tolaria_rollback_enabled: bool = "TOLARIA_ROLLBACK_ENABLED" "tolaria.rollback_enabled"
            Switch, Some("false"), Never,
            "Accepted for older programs: return to the last good checkpoint when the loss diverges.";
        tolaria_rollback_deadline: Duration = "TOLARIA_ROLLBACK_DEADLINE_MS" "tolaria.rollback_deadline_ms"
            Span(Milliseconds, 1.0, 600_000.0), Some("250"), Never,
            "Accepted for older programs: how long a rollback may take.";
        tolaria_emergency_enabled: bool = "TOLARIA_EMERGENCY_ENABLED" "tolaria.emergency_enabled"
            Switch, Some("false"), Never,
            "Accepted for older programs: send an emergency signal when training fails.";
        tolaria_emergency_bypass_max: u32 = "TOLARIA_EMERGENCY_BYPASS_MAX_PER_MIN" "tolaria.emergency_bypass_max_per_min"
            Count("signals a minute", 0, 100_000), Some("60"), Never,
            "Accepted for older programs: emergency signals per minute and trainer.";
    }
    "Observability" {
        nissa_replica: Option<String> = "NISSA_REPLICA" "nissa.replica"
            Text, None, Restart,
            "Name of this replica of the service, different on each, so that each observes everything. Unset: the only one.";
        nissa_coverage_min: f64 = "NISSA_COVERAGE_ALERT_THRESHOLD" "nissa.coverage_alert_threshold"
            Number(0.0, 1.0), Some("0.7"), Live,
            "Alert when the policy sees less than this share of its inputs.";
        nissa_coverage_samples: u32 = "NISSA_COVERAGE_ALERT_CONSECUTIVE" "nissa.coverage_alert_consecutive"
            Count("packets", 1, 1000), Some("3"), Live,
            "Packets in a row below it before that alert is raised.";
        nissa_elevated_risk: f64 = "NISSA_BSDS_ELEVATED_RISK_THRESHOLD" "nissa.bsds_elevated_risk_threshold"
            Number(0.0, 1.0), Some("0.8"), Live,
            "Risk from which a blueprint counts as elevated.";
        nissa_coverage_features: String = "NISSA_COVERAGE_FEATURE_KEYS" "nissa.coverage_feature_keys"
            Text, Some("global.loss,seed.learning_rate,edges.seed_param_allowed"), Restart,
            "Features whose coverage is exposed one by one, with commas between them; at most 16.";
        elasticsearch_url: UrlText = "ELASTICSEARCH_URL" "nissa.elasticsearch_url"
            Url(HTTP), Some("http://localhost:9200"), Never,
            "Accepted for older programs: their document store.";
        prometheus_pushgateway: UrlText = "PROMETHEUS_PUSHGATEWAY" "nissa.prometheus_pushgateway"
            Url(HTTP), Some("http://localhost:9091"), Never,
            "Accepted for older programs: their push gateway. Prometheus scrapes `/metrics`.";
    }
}
