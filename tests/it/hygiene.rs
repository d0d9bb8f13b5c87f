//! What clients leave behind when they go: nothing.

use std::net::TcpStream;

use super::harness::{Server, Setup, data_dir};
use super::raw::Raw;

/// Connections that come and go. The first third warms allocator and receive buffers up.
const CYCLES: usize = 10_000;
/// What the allocator may keep in pieces after warming up.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

/// Sockets that it holds. Files are another matter: it opens some when it needs them.
fn sockets(server: &Server) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let is_socket = |target: &std::path::PathBuf| target.to_string_lossy().starts_with("socket:");
    targets.filter(is_socket).count()
}

/// Both ends of its connections as the kernel sees them, a line each.
fn connections(server: &Server) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{:04X} ", server.address.port());
    let lines = table.lines().filter(|line| line.contains(&port));
    lines.fold(String::new(), |all, line| all + "\n" + line)
}

fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// R: A-5, B-7
#[test]
fn ten_thousand_connections_that_end_in_the_middle_of_anything_leave_nothing_behind() {
    let data = data_dir();
    let environment = vec![("IRIS_LIMITS__HELLO_TIMEOUT_MS", "1000".to_owned())];
    let server = Server::start_with(
        data.path(),
        &Setup {
            environment,
            ..Setup::default()
        },
    );
    let identity = server.identity();
    let token = identity.token("ann");
    let mut watcher = Raw::login(&server, "watcher");
    let before = sockets(&server);
    let mut resident = 0;
    for cycle in 0..CYCLES {
        match cycle % 5 {
            0 => drop(TcpStream::connect(server.address).unwrap()),
            1 => {
                let stream = TcpStream::connect(server.address).unwrap();
                let _ = std::io::Write::write_all(&mut &stream, &[0x16, 0x03, 0x01, 0x02]);
            }
            2 => {
                let mut client = Raw::connect(server.address, &identity);
                client.write_bytes(&[0, 0, 1, 0]); // TLS, and a frame that is cut
            }
            3 => {
                let mut client = Raw::connect(server.address, &identity);
                client.hello(&token, &super::raw::Hello::default());
            }
            _ => {
                let mut client = Raw::connect(server.address, &identity);
                client.hello(&token, &super::raw::Hello::default());
                client.send("nobody-listens", 1, b"the same send again and again");
            }
        }
        if cycle == CYCLES / 3 {
            resident = resident_kib(&server);
        }
    }
    // Each Pong is a turn of the core; closing connections need some, and the silent ones a second.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while sockets(&server) > before && std::time::Instant::now() < deadline {
        watcher.until_pong();
    }
    let after = sockets(&server);
    let left = || connections(&server);
    assert!(
        after <= before,
        "{before} sockets before, {after} after: {}",
        left()
    );
    let grown = resident_kib(&server).saturating_sub(resident);
    assert!(
        grown <= GROWTH_KIB_MAX,
        "{grown} KiB more than after the first third"
    );
}
