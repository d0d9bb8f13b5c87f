//! Starting, refusing to start, and stopping: one line that says what, why and what to do.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use super::harness::{Server, all_cores, data_dir, iris};

fn serve(data: &Path) -> Command {
    let mut command = iris();
    command.args([
        "serve",
        "--dev",
        "--listen",
        "127.0.0.1:0",
        "--log-level",
        "off",
    ]);
    command.arg("--data").arg(data);
    command
}

/// Runs a command that must fail; its exit code and its one line.
fn fails(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    (output.status.code().unwrap(), line)
}

fn one_line(text: &str) -> &str {
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text}");
    text
}

/// R: D-3
#[test]
fn a_data_directory_in_use_is_refused_with_the_process_that_has_it() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (code, line) = fails(&mut serve(data.path()));
    assert_eq!(code, 1);
    assert!(
        one_line(&line).contains(&server.pid().to_string()),
        "{line}"
    );
}

/// R: D-3
#[test]
fn a_directory_with_something_else_in_it_is_refused_and_untouched() {
    let data = data_dir();
    std::fs::write(data.path().join("precious.txt"), "mine").unwrap();
    let (code, line) = fails(&mut serve(data.path()));
    assert_eq!(code, 1, "{line}");
    one_line(&line);
    assert_eq!(
        std::fs::read_to_string(data.path().join("precious.txt")).unwrap(),
        "mine"
    );
}

/// R: D-3
#[test]
fn a_data_directory_of_another_version_is_refused() {
    let data = data_dir();
    Server::start(data.path()).kill();
    for name in ["SUPER.a", "SUPER.b"] {
        let path = data.path().join(name);
        if let Ok(mut bytes) = std::fs::read(&path) {
            bytes
                .iter_mut()
                .skip(8)
                .take(4)
                .for_each(|byte| *byte = 0xee);
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let (code, line) = fails(&mut serve(data.path()));
    assert_eq!(code, 1);
    one_line(&line);
}

#[test]
fn a_port_in_use_is_refused() {
    let data = data_dir();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = iris();
    command.args(["serve", "--dev", "--listen", &address, "--log-level", "off"]);
    let (code, line) = fails(command.arg("--data").arg(data.path()));
    assert_eq!(code, 1);
    assert!(one_line(&line).contains(&port), "{line}");
}

#[test]
fn a_port_that_another_switch_listens_on_is_refused() {
    let (first, second) = (data_dir(), data_dir());
    let server = Server::start(first.path());
    let mut command = iris();
    let address = server.address.to_string();
    command.args(["serve", "--dev", "--listen", &address, "--log-level", "off"]);
    let (code, line) = fails(command.arg("--data").arg(second.path()));
    assert_eq!(code, 1);
    assert!(
        one_line(&line).contains(&server.address.port().to_string()),
        "{line}"
    );
}

#[test]
fn processors_that_are_not_there_are_refused() {
    let data = data_dir();
    let (code, line) = fails(serve(data.path()).args(["--cores", "4000"]));
    assert_eq!(code, 1);
    assert!(one_line(&line).contains("4000"), "{line}");
}

#[test]
fn wrong_usage_has_exit_code_2() {
    assert_eq!(fails(iris().args(["serve", "--no-such-flag"])).0, 2);
    assert_eq!(fails(&mut iris()).0, 2);
    assert_eq!(
        fails(iris().arg("serve")).0,
        2,
        "neither --dev nor --config"
    );
}

/// R: E-5
#[test]
fn an_unknown_key_is_named_with_its_line_and_column() {
    let data = data_dir();
    let path = data.path().join("iris.toml");
    std::fs::write(&path, "[server]\nlisten = \"127.0.0.1:0\"\n  lissten = 1\n").unwrap();
    let (code, line) = fails(iris().arg("serve").arg("--config").arg(&path));
    assert_eq!(code, 1);
    assert!(
        one_line(&line).contains(":3:3") && line.contains("lissten"),
        "{line}"
    );
}

/// R: E-4
#[test]
fn sigterm_ends_the_switch_in_order_with_exit_code_0() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = super::raw::Raw::login(&server, "ann");
    ann.send_accepted("ann", 1, b"x");
    assert_eq!(server.stop().code(), Some(0));
}

/// R: E-5
#[test]
fn a_configuration_file_runs_a_switch_with_keys_and_certificate_of_its_own() {
    let data = data_dir();
    Server::start(data.path()).kill(); // makes an identity to point at
    let dev = data.path().join("dev");
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ndata = \"{data}\"\ncores = [{cores}]\n\
         [tls]\ncertificate = \"{dev}/certificate.pem\"\nkey = \"{dev}/key.pem\"\n\
         [auth]\nissuer = \"iris-dev\"\naudience = \"iris\"\n\
         [[auth.keys]]\nkid = \"dev\"\nalg = \"EdDSA\"\nfile = \"{dev}/token-verify.pem\"\n",
        data = data.path().display(),
        dev = dev.display(),
        cores = all_cores(1),
    );
    let path = data.path().join("dev").join("iris.toml");
    std::fs::write(&path, toml).unwrap();
    let checked = iris()
        .args(["config", "check", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
