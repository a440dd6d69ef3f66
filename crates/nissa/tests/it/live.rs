//! Live updates and the history they carry.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use leyline::Message;
use leyline::wire::{SeedLifecycleStage, SeedState, SystemStatePacket};
use nissa::{Board, HttpConfig, Now, Received};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Server, board, get, read_until, serve};

fn epoch(board: &mut Board, run: &str, epoch: u32) {
    let packet = SystemStatePacket {
        current_epoch: epoch,
        timestamp_ns: u64::from(epoch + 1) * 1_000_000_000,
        validation_loss: 1.0 / (1.0 + epoch as f32),
        validation_accuracy: f32::NAN,
        training_run_id: run.to_owned(),
        seed_states: vec![SeedState {
            seed_id: "s".to_owned(),
            stage: SeedLifecycleStage::SeedStageBlending.into(),
            metrics: [("alpha".to_owned(), 0.5)].into(),
            ..SeedState::default()
        }],
        ..SystemStatePacket::default()
    };
    let message = Message::SystemState(packet);
    board.apply(Now::read(), Received { message: &message, attributes: &BTreeMap::new() });
}

async fn subscribe(server: &Server) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    (stream, String::new())
}

#[tokio::test]
async fn a_reader_gets_all_then_only_what_is_new_then_an_end() {
    serve(HttpConfig::default(), |server| async move {
        let mut known = board();
        for number in 0..3 {
            epoch(&mut known, "run", number);
        }
        server.board.send_replace(Arc::new(known.clone()));
        let (mut stream, mut read) = subscribe(&server).await;
        read_until(&mut stream, &mut read, "\n\n").await;
        read_until(&mut stream, &mut read, "\"messages\":3}").await;
        assert!(read.contains("text/event-stream"), "{read}");
        assert!(read.contains("\"whole\":true") && read.contains("\"epoch\":0,\"at_ms\""));
        assert!(read.contains("\"accuracy\":null"), "what is not finite is null");
        read.clear();
        epoch(&mut known, "run", 3);
        server.board.send_replace(Arc::new(known));
        read_until(&mut stream, &mut read, "\"messages\":4}").await;
        let fresh = &read[read.rfind("event: state").unwrap_or(0)..];
        assert!(fresh.contains("\"epoch\":3,\"at_ms\""), "{fresh}");
        assert!(!fresh.contains("\"epoch\":2,\"at_ms\""), "{fresh}");
        assert!(fresh.contains("\"whole\":false"), "{fresh}");
        server.stop.cancel();
        read_until(&mut stream, &mut read, "0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn readers_are_bounded_and_places_are_given_back() {
    let config = HttpConfig { subscribers_max: NonZeroUsize::MIN, ..HttpConfig::default() };
    serve(config, |server| async move {
        let (mut first, mut read) = subscribe(&server).await;
        read_until(&mut first, &mut read, "event: state").await;
        let second = get(server.address, "/v1/events").await;
        assert_eq!((second.status, second.headers["retry-after"].as_str()), (503, "10"));
        let metrics = get(server.address, "/metrics").await.body;
        assert!(metrics.contains("nissa_http_subscribers 1"), "{metrics}");
        drop(first);
        // The server notices at its next event, two seconds from now at the latest.
        loop {
            let (mut next, mut read) = subscribe(&server).await;
            read_until(&mut next, &mut read, "\r\n").await;
            if read.contains("200 OK") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_wanted_run_is_shown_else_the_newest() {
    serve(HttpConfig::default(), |server| async move {
        let mut known = board();
        epoch(&mut known, "old", 7);
        epoch(&mut known, "new", 1);
        server.board.send_replace(Arc::new(known));
        for (query, run) in [("", "new"), ("?run=old", "old"), ("?run=gone", "new")] {
            let state = get(server.address, &format!("/v1/state{query}")).await.json();
            assert_eq!(state["run"]["id"], run, "{query}");
            assert_eq!(state["runs"].as_array().map(Vec::len), Some(2));
            assert_eq!(state["run"]["seeds"][0]["spans"][0]["stage"], "blending");
        }
    })
    .await;
}
