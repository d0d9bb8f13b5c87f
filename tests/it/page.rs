//! The page of the admin port in a real browser, where there is one.

use std::process::Command;

use super::admin_port;
use super::harness::data_dir;
use super::raw::Raw;

/// What the script says by its exit code when there is no browser.
const NO_BROWSER: i32 = 3;

/// R: E-2
#[test]
fn the_page_shows_a_running_switch_in_a_browser_to_who_has_the_token() {
    let directory = data_dir();
    let (server, port) = admin_port::start(directory.path());
    let (mut ann, _ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    ann.send_accepted("ben", 1, b"unread");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/page_check.py");
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args(["--seconds", "5", "--addr", &port.to_string()]);
    command
        .arg("--token-file")
        .arg(directory.path().join("admin.token"));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: python3 cannot be run ({error})"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(NO_BROWSER) {
        return println!("skipped: {said}");
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}{errors}");
    assert!(said.contains("ready"), "{said}");
}
