//! What is refused before a handler sees it, and what is not.

use leyline::Message;
use leyline::wire::{KernelArtifactReady, KernelCatalogUpdate, TelemetryPacket};
use oona::{Refusal, Stream, attributes};

use crate::rig::*;

crate::on_both_logs!(
    oversize_entry,
    the_limit_to_the_byte,
    refusals_are_logged_as_samples_without_payload,
    half_an_entry,
    forged_signature,
    signature_that_is_none,
    envelope_that_cannot_be_parsed,
    payload_that_cannot_be_parsed,
    unknown_type,
    type_of_another_stream,
    copy_on_another_stream,
    stale_message,
    message_from_the_future,
    clock_a_little_ahead,
    late_but_fresh,
    kernel_requests_have_a_shorter_window,
    replayed_copy,
    replay_after_a_restart,
    foreign_entry,
    message_without_attributes,
    older_programs_on_the_kernel_streams,
    rotated_secret,
);

const NAME: &str = "oona.normal";

async fn oversize_entry(rig: Rig) {
    let bus = rig.bus().await;
    let mut envelope = Envelope::of(&state("run", 1), NAME);
    envelope.attributes.insert("filler".to_owned(), "x".repeat(256 * 1024));
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Oversize).await;
}

/// 256 KiB are admitted, one byte more is not.
async fn the_limit_to_the_byte(rig: Rig) {
    let bus = rig.bus().await;
    let limit = bus.config().message_bytes_max;
    assert_eq!(limit, 256 * 1024);
    let of_size = |wanted: usize| {
        let envelope = Envelope::of(&state("run", 1), NAME);
        let size = |filler: usize| {
            let envelope = envelope.clone().with("filler", "x".repeat(filler));
            envelope.bytes().len() + keyring().sign(b"").len()
        };
        let filler = (0..wanted).rev().find(|filler| size(*filler) <= wanted).unwrap();
        assert_eq!(size(filler), wanted);
        envelope.with("filler", "x".repeat(filler))
    };
    of_size(limit).append(&bus, Stream::Normal).await;
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
    of_size(limit + 1).append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Oversize).await;
}

/// One line for each reason, however many entries; the metrics count them all.
async fn refusals_are_logged_as_samples_without_payload(rig: Rig) {
    const COPIES: usize = 3;
    let bus = rig.bus().await;
    let honest = || Envelope::of(&state("run-that-nobody-may-read", 1), NAME);
    let first = honest();
    first.append(&bus, Stream::Normal).await;
    let mut reader = consumer(&bus, Stream::Normal);
    recv(&mut reader).await.ack().await.unwrap();

    for _ in 0..COPIES {
        let mut forged = honest();
        forged.secret = "some other secret".to_owned();
        let unknown = Envelope { kind: 999, ..honest() };
        let garbled = Envelope { payload: b"\xff\xff\xff".to_vec(), ..honest() };
        let bad = [
            (honest().with("filler", "x".repeat(256 * 1024)), Refusal::Oversize),
            (garbled, Refusal::Malformed),
            (forged, Refusal::BadSignature),
            (unknown, Refusal::UnknownType),
            (honest().with(attributes::STREAM, "elsewhere"), Refusal::WrongStream),
            (honest().with(attributes::ISSUED_AT_MS, now_ms() - 301_000), Refusal::Stale),
            (honest().with(attributes::ISSUED_AT_MS, now_ms() + 60_000), Refusal::FromTheFuture),
            (first.clone(), Refusal::Replay),
            (Envelope::legacy(&state("run-that-nobody-may-read", 1)), Refusal::Legacy),
        ];
        assert_eq!(bad.each_ref().map(|(_, reason)| *reason), Refusal::ALL, "every reason");
        for (envelope, _) in &bad {
            envelope.append(&bus, Stream::Normal).await;
        }
    }
    publish(&bus, &state("honest", 7)).await;
    let log = crate::captured::Captured::begin();
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), 7, "nothing refused is handed out");
    delivery.ack().await.unwrap();
    let text = log.end();

    for reason in Refusal::ALL {
        let count = bus.metrics().refused_total(Stream::Normal, reason);
        assert_eq!(count, u64::try_from(COPIES).unwrap(), "{reason}");
        let told = |line: &&str| {
            line.contains("entry refused") && line.contains(&format!("reason={reason} "))
        };
        assert_eq!(text.lines().filter(told).count(), 1, "{reason} in {text}");
    }
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0, "all are acknowledged");
    for secret in ["nobody-may-read", "some other secret", "only tests know", "xxxx"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

async fn half_an_entry(rig: Rig) {
    let bus = rig.bus().await;
    bus.append_raw(Stream::Normal, &[("payload", b"x")]).await.unwrap();
    expect_refused(&bus, Stream::Normal, Refusal::Malformed).await;
    bus.append_raw(Stream::Normal, &[("signature", b"x")]).await.unwrap();
    expect_refused(&bus, Stream::Normal, Refusal::Malformed).await;
}

async fn forged_signature(rig: Rig) {
    let bus = rig.bus().await;
    let mut envelope = Envelope::of(&state("run", 1), NAME);
    envelope.secret = "some other secret".to_owned();
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::BadSignature).await;
}

async fn signature_that_is_none(rig: Rig) {
    let bus = rig.bus().await;
    let bytes = Envelope::of(&state("run", 1), NAME).bytes();
    for signature in [&b""[..], b"not base64!", b"\xff\xfe", "sch\u{f6}n".as_bytes()] {
        let fields = [("payload", bytes.as_slice()), ("signature", signature)];
        bus.append_raw(Stream::Normal, &fields).await.unwrap();
        expect_refused(&bus, Stream::Normal, Refusal::BadSignature).await;
    }
}

async fn envelope_that_cannot_be_parsed(rig: Rig) {
    let bus = rig.bus().await;
    let bytes = b"\xff\xff\xff".to_vec();
    let signature = keyring().sign(&bytes);
    let fields = [("payload", bytes.as_slice()), ("signature", signature.as_bytes())];
    bus.append_raw(Stream::Normal, &fields).await.unwrap();
    expect_refused(&bus, Stream::Normal, Refusal::Malformed).await;
}

async fn payload_that_cannot_be_parsed(rig: Rig) {
    let bus = rig.bus().await;
    let mut envelope = Envelope::of(&state("run", 1), NAME);
    envelope.payload = b"\xff\xff\xff".to_vec();
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Malformed).await;
}

async fn unknown_type(rig: Rig) {
    let bus = rig.bus().await;
    for kind in [0, 11, 999, -1] {
        let mut envelope = Envelope::of(&state("run", 1), NAME);
        envelope.kind = kind;
        envelope.append(&bus, Stream::Normal).await;
        expect_refused(&bus, Stream::Normal, Refusal::UnknownType).await;
    }
}

async fn type_of_another_stream(rig: Rig) {
    let bus = rig.bus().await;
    let telemetry = Message::from(TelemetryPacket::default());
    Envelope::of(&telemetry, NAME).append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::WrongStream).await;
    Envelope::of(&telemetry, "oona.kernels.requests").append(&bus, Stream::KernelRequests).await;
    expect_refused(&bus, Stream::KernelRequests, Refusal::WrongStream).await;
}

async fn copy_on_another_stream(rig: Rig) {
    let bus = rig.bus().await;
    // A type that both streams carry: only the attribute tells.
    Envelope::of(&state("run", 1), "oona.emergency").append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::WrongStream).await;
}

async fn stale_message(rig: Rig) {
    let bus = rig.bus().await;
    let envelope = Envelope::of(&state("run", 1), NAME);
    envelope.with(attributes::ISSUED_AT_MS, now_ms() - 301_000).append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Stale).await;
}

async fn message_from_the_future(rig: Rig) {
    let bus = rig.bus().await;
    let envelope = Envelope::of(&state("run", 1), NAME);
    for ahead in [7_000, 1 << 50] {
        let envelope = envelope.clone().with(attributes::ISSUED_AT_MS, now_ms() + ahead);
        envelope.append(&bus, Stream::Normal).await;
        expect_refused(&bus, Stream::Normal, Refusal::FromTheFuture).await;
    }
}

async fn clock_a_little_ahead(rig: Rig) {
    let bus = rig.bus().await;
    let envelope = Envelope::of(&state("run", 1), NAME);
    envelope.with(attributes::ISSUED_AT_MS, now_ms() + 3_000).append(&bus, Stream::Normal).await;
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
}

/// Judged when appended: a window that has passed since then does not matter.
async fn late_but_fresh(rig: Rig) {
    let window = std::time::Duration::from_millis(300);
    let bus = rig.bus_with(|config| config.freshness_window = window).await;
    let sent = publish(&bus, &state("run", 1)).await;
    while bus.log_time_ms().await.unwrap() <= sent.ms + 400 {
        tokio::task::yield_now().await;
    }
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), 1);
    delivery.ack().await.unwrap();
}

async fn kernel_requests_have_a_shorter_window(rig: Rig) {
    let bus = rig.bus().await;
    Envelope::legacy(&request("old", now_ms() - 61_000)).append(&bus, Stream::KernelRequests).await;
    expect_refused(&bus, Stream::KernelRequests, Refusal::Stale).await;
    Envelope::legacy(&request("new", now_ms() - 55_000)).append(&bus, Stream::KernelRequests).await;
    recv(&mut consumer(&bus, Stream::KernelRequests)).await.ack().await.unwrap();
}

async fn replayed_copy(rig: Rig) {
    let bus = rig.bus().await;
    let envelope = Envelope::of(&state("run", 1), NAME);
    envelope.append(&bus, Stream::Normal).await;
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Replay).await;
    // Both in one batch.
    let envelope = Envelope::legacy(&request("r-1", now_ms()));
    envelope.append(&bus, Stream::KernelRequests).await;
    envelope.append(&bus, Stream::KernelRequests).await;
    recv(&mut consumer(&bus, Stream::KernelRequests)).await.ack().await.unwrap();
    assert_eq!(bus.metrics().refused_total(Stream::KernelRequests, Refusal::Replay), 1);
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 0);
}

async fn replay_after_a_restart(rig: Rig) {
    let envelope = Envelope::of(&state("run", 1), NAME);
    {
        let bus = rig.bus().await;
        envelope.append(&bus, Stream::Normal).await;
        recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
        bus.flush().await.unwrap();
    }
    let bus = rig.bus().await;
    envelope.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::Replay).await;
}

async fn foreign_entry(rig: Rig) {
    let bus = rig.bus().await;
    bus.append_raw(Stream::Normal, &[("bootstrap", b"1")]).await.unwrap();
    publish(&bus, &state("run", 1)).await;
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    for reason in Refusal::ALL {
        assert_eq!(bus.metrics().refused_total(Stream::Normal, reason), 0, "{reason}");
    }
}

async fn message_without_attributes(rig: Rig) {
    let envelope = Envelope::legacy(&state("run", 1));
    {
        let bus = rig.bus().await;
        envelope.append(&bus, Stream::Normal).await;
        expect_refused(&bus, Stream::Normal, Refusal::Legacy).await;
    }
    let bus = rig.bus_with(|config| config.accept_legacy = true).await;
    envelope.append(&bus, Stream::Normal).await;
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
    let forged = Envelope { secret: "some other secret".to_owned(), ..envelope };
    forged.append(&bus, Stream::Normal).await;
    expect_refused(&bus, Stream::Normal, Refusal::BadSignature).await;
}

/// Answers have no time on the wire, catalogue updates not even a request id.
async fn older_programs_on_the_kernel_streams(rig: Rig) {
    let bus = rig.bus().await;
    let ready = KernelArtifactReady { request_id: "r-1".to_owned(), ..Default::default() };
    let update = KernelCatalogUpdate {
        blueprint_id: "BP001".to_owned(),
        checksum: "abc".to_owned(),
        ..Default::default()
    };
    let mut reader = consumer(&bus, Stream::KernelReady);
    for message in [Message::from(ready), Message::from(update)] {
        Envelope::legacy(&message).append(&bus, Stream::KernelReady).await;
        let delivery = recv(&mut reader).await;
        assert_eq!(delivery.message, message);
        delivery.ack().await.unwrap();
        Envelope::legacy(&message).append(&bus, Stream::KernelReady).await;
    }
    let last = KernelArtifactReady { request_id: "r-2".to_owned(), ..Default::default() };
    Envelope::legacy(&last.into()).append(&bus, Stream::KernelReady).await;
    recv(&mut reader).await.ack().await.unwrap();
    assert_eq!(bus.metrics().refused_total(Stream::KernelReady, Refusal::Replay), 2);
}

async fn rotated_secret(rig: Rig) {
    use leyline::sign::{Keyring, Secret};
    let (old, new) = (Secret::new("the old secret of all"), Secret::new("the new secret of all"));
    let mut envelope = Envelope::of(&state("run", 1), NAME);
    envelope.secret = "the old secret of all".to_owned();
    let config = oona::Config { consumer: "rotating".to_owned(), ..rig.config.clone() };
    let ring = Keyring::new(&new, Some(&old));
    let bus = oona::Bus::open(config, ring, oona::Metrics::detached()).await.unwrap();
    envelope.append(&bus, Stream::Normal).await;
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), 1);
    delivery.ack().await.unwrap();
}
