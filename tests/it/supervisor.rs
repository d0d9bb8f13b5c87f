//! What a supervisor hears from the switch, with the test in systemd's place.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use super::harness::{PATIENCE, Server, Setup, data_dir};

fn hear(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let len = socket.recv(&mut bytes).expect("the switch says something");
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

/// R: E-4, E-5
#[test]
fn a_supervisor_hears_that_the_switch_is_ready_lives_and_stops() {
    let directory = data_dir();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let environment = vec![
        ("NOTIFY_SOCKET", path.to_str().unwrap().to_owned()),
        ("WATCHDOG_USEC", "400000".to_owned()),
    ];
    let setup = Setup {
        environment,
        ..Setup::default()
    };
    let server = Server::start_with(&directory.path().join("data"), &setup);
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.push(hear(&socket));
    }
    let ready = format!("READY=1\nSTATUS=serving on {}\n", server.address);
    let place = heard.iter().position(|text| *text == ready);
    heard.remove(place.unwrap_or_else(|| panic!("never ready: {heard:?}")));
    assert!(heard.iter().all(|text| text == "WATCHDOG=1\n"), "{heard:?}");
    server.terminate();
    let stopping = loop {
        let text = hear(&socket);
        if text != "WATCHDOG=1\n" {
            break text;
        }
    };
    assert!(stopping.starts_with("STOPPING=1\n"), "{stopping}");
    assert_eq!(server.ended().0.code(), Some(0));
}

/// R: E-5
#[test]
fn a_supervisor_that_does_not_listen_costs_nothing() {
    let directory = data_dir();
    let gone = directory.path().join("gone");
    let setup = Setup {
        environment: vec![("NOTIFY_SOCKET", gone.to_str().unwrap().to_owned())],
        ..Setup::default()
    };
    let server = Server::start_with(&directory.path().join("data"), &setup);
    assert_eq!(server.stop().code(), Some(0));
}

/// R: E-5
#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    let directory = data_dir();
    let unit = include_str!("../../kernel-tuning/systemd/iris.service");
    assert!(unit.contains("\nType=notify\n") && unit.contains("\nWatchdogSec="));
    let path = directory.path().join("iris.service");
    let here = unit.replace("/usr/local/bin/iris", env!("CARGO_BIN_EXE_iris"));
    std::fs::write(&path, here).unwrap();
    let output = match Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
    {
        Ok(output) => output,
        Err(error) => return println!("skipped: systemd-analyze cannot be run ({error})"),
    };
    // It looks at the machine's own units, too, and may complain of those.
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("iris")).collect();
    assert_eq!(ours, [""; 0]);
}
