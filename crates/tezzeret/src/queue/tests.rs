use std::os::unix::fs::symlink;

use leyline::wire::MessagePriority;
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::job::Job;

fn job(id: &str) -> Job {
    Job::of(karn::find(&id.into()).unwrap(), &Config::default())
}

fn ticket(id: &str) -> Ticket {
    Ticket::of(&job(id), MessagePriority::High, Some(17))
}

fn queue(len_max: usize) -> (TempDir, Queue) {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::open(&dir.path().join("forge/jobs"), len_max).unwrap();
    (dir, queue)
}

fn write(queue: &Queue, ticket: &Ticket) -> Result<(), QueueError> {
    queue.owe(ticket.key);
    queue.write(ticket)
}

fn all(queue: &Queue) -> Look {
    queue.look(|_| false).unwrap()
}

#[test]
fn tickets_are_found_by_another_process_and_settled_once() {
    let (dir, queue) = queue(8);
    write(&queue, &ticket("BP001")).unwrap();
    let parked = Ticket::parked(&job("BP002"), 99, "poisoned");
    write(&queue, &parked).unwrap();
    let other = Queue::open(&dir.path().join("forge/jobs"), 8).unwrap();
    let mut found = all(&other).tickets;
    found.sort_by(|a, b| a.blueprint.cmp(&b.blueprint));
    assert_eq!(found, [ticket("BP001"), parked]);
    assert_eq!(found[0].job(&Config::default()), Some(job("BP001")));
    assert_eq!(other.look(|key| *key == found[0].key).unwrap().tickets.len(), 1);

    queue.settle(&found[0].key);
    assert!(!queue.holds(&found[0].key));
    queue.write(&found[0]).unwrap();
    assert_eq!(all(&other).tickets.len(), 1, "a late write does not bring a settled job back");
}

#[test]
fn what_is_no_ticket_is_set_aside_and_stops_no_other() {
    let (_dir, queue) = queue(64);
    write(&queue, &ticket("BP001")).unwrap();
    let dir = queue.0.dir.clone();
    let sound = fs::read(queue.path(&ticket("BP001").key, TICKET)).unwrap();
    let name = |number: u8| dir.join(format!("{}.json", Digest::of([number]).to_hex()));
    fs::write(name(1), "").unwrap();
    fs::write(name(2), &sound[..sound.len() / 2]).unwrap();
    fs::write(name(3), &sound).unwrap();
    fs::write(name(4), vec![b' '; TICKET_BYTES_MAX as usize + 1]).unwrap();
    fs::write(name(5), [0xff, 0xfe, 0x00]).unwrap();
    fs::create_dir(name(6)).unwrap();
    symlink(queue.path(&ticket("BP001").key, TICKET), name(7)).unwrap();
    fs::write(dir.join("not a digest.json"), &sound).unwrap();
    fs::write(name(8), r#"{"format":2,"whatever":1}"#).unwrap();
    let flipped = String::from_utf8(sound.clone()).unwrap().replace("HIGH", "SIGH");
    fs::write(name(9), flipped).unwrap();

    let look = all(&queue);
    assert_eq!(look.tickets, [ticket("BP001")]);
    assert_eq!(look.set_aside, 9);
    assert!(name(8).exists(), "a newer version's ticket is left to it");
    assert_eq!(fs::read_dir(dir.join(CORRUPT)).unwrap().count(), 9);
    assert_eq!((all(&queue).set_aside, all(&queue).tickets.len()), (0, 1));
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let (_dir, queue) = queue(2);
    write(&queue, &ticket("BP001")).unwrap();
    write(&queue, &ticket("BP002")).unwrap();
    let full = write(&queue, &ticket("BP003")).unwrap_err();
    assert!(full.to_string().contains("holds 2 jobs"), "{full}");
    write(&queue, &ticket("BP002")).unwrap();
    queue.settle(&ticket("BP001").key);
    write(&queue, &ticket("BP003")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let fault = Queue::open(file.path(), 2).unwrap_err();
    assert!(fault.to_string().contains("TEZZERET_QUEUE_DIR"), "{fault}");
}

#[test]
fn one_at_a_time_works_on_a_job_and_deaths_are_counted() {
    let (dir, queue) = queue(8);
    let other = Queue::open(&dir.path().join("forge/jobs"), 8).unwrap();
    let key = ticket("BP001").key;
    let Locked::Ours(held) = queue.lock(&key).unwrap() else { panic!("it is free") };
    assert_eq!(held.interruptions(), 0);
    assert!(matches!(other.lock(&key).unwrap(), Locked::Busy));
    drop(held);
    let Locked::Ours(held) = other.lock(&key).unwrap() else { panic!("it is free again") };
    assert_eq!(held.interruptions(), 0, "an attempt that ended is none");
    drop(held);

    // What a killed process leaves behind: a file without a lock.
    let path = queue.path(&key, LOCK);
    for deaths in 1..4 {
        fs::write(&path, deaths.to_string()).unwrap();
        let Locked::Ours(held) = queue.lock(&key).unwrap() else { panic!("nobody has it") };
        assert_eq!(held.interruptions(), deaths);
    }
    fs::write(&path, "cut o\u{0}").unwrap();
    let reopened = Queue::open(&dir.path().join("forge/jobs"), 8).unwrap();
    assert!(!path.exists(), "a lock without a ticket is cleared away");
    write(&reopened, &ticket("BP001")).unwrap();
    fs::write(&path, "2").unwrap();
    drop(Queue::open(&dir.path().join("forge/jobs"), 8).unwrap());
    assert!(path.exists(), "beside its ticket it counts");
}
