//! An answer and the acknowledgement of what it answers are one step.

use leyline::Message;
use leyline::wire::{KernelArtifactError, MessagePriority};
use oona::{ConsumerSpec, Reply, Stream, Unanswered};

use crate::rig::*;

crate::on_both_logs!(
    an_answer_settles_its_request,
    what_is_not_taken_comes_back,
    attributes_of_the_sender_arrive,
);

fn answer(id: &str) -> Message {
    KernelArtifactError {
        request_id: id.to_owned(),
        blueprint_id: "BP001".to_owned(),
        reason: "missing_artifact".to_owned(),
    }
    .into()
}

fn reply(receipt: oona::Receipt, stream: Stream, id: &str) -> Reply {
    Reply {
        stream,
        priority: MessagePriority::High,
        message: answer(id),
        traceparent: None,
        attributes: vec![("kernel-url", "http://x".to_owned()), ("retry-after-ms", "7".to_owned())],
        receipt,
    }
}

async fn an_answer_settles_its_request(rig: Rig) {
    let bus = rig.bus().await;
    let mut requests = consumer(&bus, Stream::KernelRequests);
    for id in ["r1", "r2", "r3"] {
        publish_on(&bus, Stream::KernelRequests, &request(id, now_ms())).await;
    }
    let mut replies = Vec::new();
    for id in ["r1", "r2", "r3"] {
        let (message, receipt) = recv(&mut requests).await.into_parts();
        assert_eq!(message.nonce(), Some(id));
        replies.push(reply(receipt, Stream::KernelErrors, id));
    }
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 3);
    assert!(bus.answer("test", replies).await.is_empty());
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 0);
    let mut answers = bus.consumer(ConsumerSpec::new(Stream::KernelErrors, "trainer"));
    for id in ["r1", "r2", "r3"] {
        let delivery = recv(&mut answers).await;
        assert_eq!(delivery.message, answer(id), "in the order given");
        assert_eq!(delivery.attributes["kernel-url"], "http://x");
        assert_eq!(delivery.attributes["retry-after-ms"], "7");
        delivery.ack().await.unwrap();
    }
    assert_eq!(bus.len(Stream::KernelErrors).await.unwrap(), 3);
}

async fn what_is_not_taken_comes_back(rig: Rig) {
    let bus = rig.bus().await;
    let mut requests = consumer(&bus, Stream::KernelRequests);
    publish_on(&bus, Stream::KernelRequests, &request("r1", now_ms())).await;
    let (_, receipt) = recv(&mut requests).await.into_parts();
    let mut left = bus.answer("test", vec![reply(receipt, Stream::KernelReady, "r1")]).await;
    let (reply, fault) = left.pop().expect("an error does not travel among kernels");
    assert!(matches!(&fault, Unanswered::Failed(_)) && fault.is_final(), "{fault}");
    assert_eq!(bus.len(Stream::KernelReady).await.unwrap(), 0);
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 1, "still to be answered");
    let again = Reply { stream: Stream::KernelErrors, ..reply };
    assert!(bus.answer("test", vec![again]).await.is_empty());
    assert_eq!(bus.depth(Stream::KernelRequests, GROUP).await.unwrap(), 0);
}

async fn attributes_of_the_sender_arrive(rig: Rig) {
    let bus = rig.bus().await;
    let message = request("r1", now_ms());
    let outgoing = oona::Outgoing {
        stream: Stream::KernelRequests,
        priority: MessagePriority::Normal,
        source: "test",
        message: &message,
        traceparent: None,
    };
    let attributes = [("kernel-deadline-ms", "5000"), ("kernel-site", "vector[64]")];
    assert!(bus.send_with(outgoing, &attributes).await.unwrap().is_sent());
    let delivery = recv(&mut consumer(&bus, Stream::KernelRequests)).await;
    assert_eq!(delivery.attributes["kernel-site"], "vector[64]");
    assert_eq!(delivery.attributes["kernel-deadline-ms"], "5000");
    assert_eq!(delivery.attributes["oona-source"], "test");
    delivery.ack().await.unwrap();
}
