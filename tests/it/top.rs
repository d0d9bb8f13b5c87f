//! `iris top`, also in a real terminal: what it shows, what keys do, and how it leaves the terminal.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use super::admin_port::{self, TOKEN};
use super::harness::{PATIENCE, Server, data_dir, iris};
use super::raw::Raw;

fn once(more: &[&str]) -> Output {
    let mut command = iris();
    command
        .args(["top", "--once", "--interval", "200ms"])
        .args(more);
    command.output().unwrap()
}

/// R: E-2
#[test]
fn one_frame_as_plain_text_shows_cores_and_who_is_behind() {
    let directory = data_dir();
    let (server, port) = admin_port::start(directory.path());
    let (mut ann, _ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    for n in 1..=3 {
        ann.send_accepted("ben", n, b"unread");
    }
    let data = server.data.to_str().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let shown = loop {
        let output = once(&["--data", data]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let shown = String::from_utf8(output.stdout).unwrap();
        // Latencies are since the start when nobody has watched before, and both cores look at inboxes.
        if shown.contains("2 users, 3 entries") {
            break shown;
        }
        assert!(Instant::now() < deadline, "{shown}");
    };
    for wanted in [
        "ready",
        "core  msg/s",
        "\n   0 ",
        "\n   1 ",
        "\n all ",
        "ben",
    ] {
        assert!(shown.contains(wanted), "no {wanted:?} in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}') && shown.lines().all(|line| line.len() <= 80));

    let file = directory.path().join("admin.token");
    let (port, file) = (port.to_string(), file.to_str().unwrap().to_owned());
    let over_tcp = once(&["--addr", &port, "--token-file", &file]);
    assert_eq!(over_tcp.status.code(), Some(0), "{over_tcp:?}");
    std::fs::write(&file, TOKEN.replace('0', "f")).unwrap();
    let refused = once(&["--addr", &port, "--token-file", &file]);
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("show the token"), "{why}");
}

/// R: E-2
#[test]
fn without_a_switch_or_a_terminal_it_says_so() {
    let directory = data_dir();
    let data = directory.path().to_str().unwrap();
    let output = once(&["--data", data]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("iris serve")
    );
    let output = iris().args(["top", "--data", data]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--once"));
}

/// A terminal of our own, in a multiplexer of our own. Ended when dropped.
struct Screen<'a> {
    socket: &'a Path,
}

impl<'a> Screen<'a> {
    /// `None`: there is no tmux.
    fn open(socket: &'a Path) -> Option<Self> {
        let screen = Self { socket };
        let Err(error) = Command::new("tmux").arg("-V").output() else {
            screen.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh"]);
            return Some(screen);
        };
        println!("skipped: tmux cannot be run ({error}); install it (apt-get install tmux)");
        None
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command
            .arg("-f")
            .arg("/dev/null")
            .arg("-S")
            .arg(self.socket);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The process that the terminal's shell runs.
    fn pid_of_top(&self) -> i32 {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(children).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// What is on it once that is so.
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.tmux(&["capture-pane", "-p"]);
            if is_so(&shown) {
                return shown;
            }
            assert!(Instant::now() < deadline, "not {what}:\n{shown}");
            std::thread::yield_now();
        }
    }

    /// Starts top, and says afterwards how it ended and how it left the terminal.
    fn top(&self, data: &Path) {
        let program = env!("CARGO_BIN_EXE_iris");
        let line = format!(
            "{program} top --interval 100ms --data {}; echo ended=$? $(stty -a | tr ' ;' '\\n\\n' | grep -x -e -*icanon -e -*echo)",
            data.display()
        );
        self.keys(&["-l", &line]);
        self.keys(&["Enter"]);
    }

    /// It has ended well: the shell's screen is back, with lines and echo, and the cursor is seen.
    fn assert_given_back(&self) {
        self.until("given back", |shown| shown.contains("ended=0 icanon echo"));
        assert_eq!(
            self.tmux(&["display-message", "-p", "#{cursor_flag}"]),
            "1\n"
        );
        assert_eq!(
            self.tmux(&["display-message", "-p", "#{alternate_on}"]),
            "0\n"
        );
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        let _ = command
            .arg("-S")
            .arg(self.socket)
            .arg("kill-server")
            .output();
    }
}

/// R: E-2
#[test]
fn in_a_terminal_it_follows_keys_and_sizes_tells_of_a_switch_that_goes_and_leaves_no_trace() {
    let directory = data_dir();
    let socket = directory.path().join("tmux");
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    let data = directory.path().join("data");
    let server = Server::start(&data);
    screen.top(&data);
    let shown = screen.until("live", |shown| {
        shown.contains("most unacknowledged first") && shown.contains("live, every 100 ms")
    });
    assert!(
        shown.contains("core  msg/s") && shown.contains("\n all "),
        "{shown}"
    );

    screen.keys(&["s"]);
    screen.until("ordered", |shown| shown.contains("longest waiting first"));
    screen.keys(&["p"]);
    screen.until("paused", |shown| shown.contains("PAUSED"));
    screen.keys(&["p"]);
    screen.until("live again", |shown| shown.contains("live, every"));

    screen.tmux(&["resize-window", "-x", "60", "-y", "10"]);
    let small = screen.until("small", |shown| {
        let lines: Vec<&str> = shown.lines().collect();
        lines.len() == 10 && lines[9].starts_with("live, every")
    });
    assert!(small.starts_with("iris "), "{small}");
    screen.tmux(&["resize-window", "-x", "80", "-y", "24"]);

    server.kill();
    screen.until("told that it is gone", |shown| {
        shown.contains("does not answer")
    });
    let server = Server::start(&data);
    screen.until("back", |shown| {
        shown.contains("iris ") && shown.contains("ready")
    });
    screen.keys(&["q"]);
    screen.assert_given_back();
    drop(server);
}

/// R: E-2
#[test]
fn a_signal_gives_the_terminal_back_too() {
    let directory = data_dir();
    let socket = directory.path().join("tmux");
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    screen.top(&directory.path().join("nothing"));
    screen.until("in words", |shown| {
        shown.contains("does not answer") && shown.contains("iris serve")
    });
    let top = screen.pid_of_top();
    // SAFETY: a signal to a process that our own terminal's shell runs and has not waited for.
    assert_eq!(unsafe { libc::kill(top, libc::SIGTERM) }, 0);
    screen.assert_given_back();
}

/// R: E-2
#[test]
fn it_ends_when_its_terminal_is_gone() {
    let directory = data_dir();
    let socket = directory.path().join("tmux");
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    screen.top(&directory.path().join("nothing"));
    screen.until("in words", |shown| shown.contains("does not answer"));
    let top = screen.pid_of_top();
    screen.tmux(&["kill-server"]);
    let is_there = || {
        let state = std::fs::read_to_string(format!("/proc/{top}/stat"));
        state.is_ok_and(|state| !state.contains(") Z "))
    };
    let deadline = Instant::now() + PATIENCE;
    while is_there() {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::yield_now();
    }
}
