//! The built program under a service manager: what systemd is told, the drain, the exit codes.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::redis::{Server, free_port, get};
use crate::service::{Home, ended};
use crate::wire::SECRET;

/// The program with a service manager's socket and watchdog.
struct Managed {
    child: Child,
    http: u16,
    socket: UnixDatagram,
    /// Everything it told, in order.
    told: Vec<String>,
}

impl Managed {
    /// Starts `serve` with a watchdog of one second. A shell takes the program's place, since the
    /// manager has to name the process that it watches.
    fn start(home: &Home, environment: &[(&str, &str)]) -> Self {
        let http = free_port();
        let path = home.directory.path().join(format!("notify-{http}"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut command = Command::new("/bin/sh");
        let program = env!("CARGO_BIN_EXE_weatherlight");
        command
            .args(["-c", &format!("export WATCHDOG_PID=$$; exec '{program}' serve")])
            .env_clear()
            .env("HOME", home.directory.path())
            .env("ESPER_LEYLINE_SECRET", SECRET)
            .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{http}"))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "1000000")
            .envs(environment.iter().copied())
            .current_dir(home.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let child = command.spawn().unwrap();
        Self { child, http, socket, told: Vec::new() }
    }

    /// Reads on until the program tells a line that begins so, and returns it.
    fn until(&mut self, begin: &str) -> String {
        loop {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).expect("the service reports in time");
            let lines = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.told.extend(lines.lines().map(str::to_owned));
            if let Some(found) = lines.lines().find(|line| line.starts_with(begin)) {
                return found.to_owned();
            }
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn end(mut self, patience: Duration) -> (ExitStatus, Vec<String>) {
        let status = ended(&mut self.child, patience);
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let lines = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.told.extend(lines.lines().map(str::to_owned));
        }
        (status, std::mem::take(&mut self.told))
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn systemd_is_told_of_every_step_and_fed_while_it_runs() {
    let home = Home::new();
    let mut service = Managed::start(&home, &[]);
    service.until("READY=1");
    assert_eq!(get(service.http, "/readyz").0, 200, "who is told that it is up finds it ready");
    let began = Instant::now();
    for _ in 0..4 {
        service.until("WATCHDOG=1");
    }
    // Four meals take two seconds at least, were they half a second apart; never more than one each.
    assert!(began.elapsed() < Duration::from_secs(4), "fed too seldom: {:?}", began.elapsed());
    service.signal("-TERM");
    let (status, told) = service.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0));
    let place = |begin: &str| told.iter().position(|line| line.starts_with(begin));
    let steps =
        ["STATUS=booting", "STATUS=operational, ", "READY=1", "STOPPING=1", "STATUS=stopping; "];
    let places: Vec<_> = steps.iter().map(|step| place(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {told:#?}");
    assert_eq!(told.iter().filter(|line| *line == "READY=1").count(), 1);
}

/// The log answers nobody: what is in flight cannot be settled. The first signal drains for as long
/// as it may and names who is left; the second ends it at once.
#[test]
fn a_drain_tells_who_is_left_and_a_second_signal_ends_it_at_once() {
    for second_signal in [false, true] {
        let redis = Server::start();
        let home = Home::new();
        let url = redis.url();
        let drain = ("WEATHERLIGHT_DRAIN_TIMEOUT_S", "2");
        let mut service = Managed::start(&home, &[("REDIS_URL", &url), drain]);
        service.until("READY=1");
        redis.freeze();
        service.signal("-TERM");
        let left = service.until("STATUS=stopping; ");
        assert!(left.contains("s left for ") && left.contains("nissa.http ("), "{left}");
        let began = Instant::now();
        if second_signal {
            service.signal("-TERM");
        }
        let (status, told) = service.end(Duration::from_secs(30));
        let took = began.elapsed();
        assert_eq!(status.code(), Some(70), "something had to be aborted");
        if second_signal {
            assert!(took < Duration::from_secs(2), "a second signal does not wait: {took:?}");
        } else {
            assert!(took >= Duration::from_millis(1500), "the drain has its time: {took:?}");
            let lines = told.iter().filter(|line| line.starts_with("STATUS=stopping; "));
            assert!(lines.count() >= 2, "at least a line each second: {told:#?}");
        }
    }
}

/// The other three codes: 0 above, 69 and 78 in `faults_stop_the_start_with_one_message`.
#[test]
fn a_boot_that_fails_after_the_checks_ends_with_its_code() {
    let home = Home::new();
    let first = Managed::start(&home, &[]);
    let mut first = first;
    first.until("READY=1");
    // The same directory: its embedded log is taken.
    let second = Managed::start(&home, &[]);
    let (status, told) = second.end(Duration::from_secs(30));
    assert_eq!(status.code(), Some(69), "{told:#?}");
    assert!(!told.iter().any(|line| line == "READY=1"), "{told:#?}");
}
