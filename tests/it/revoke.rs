//! Revoked tokens: sessions end, logins are refused, whatever happens to the switch in between.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iris::auth::{MintRequest, REVOCATIONS_MAX, mint};
use iris_proto::id::UserId;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{Goodbye, GoodbyeReason, RejectCode};

use super::harness::{Identity, Server, Setup, all_cores, data_dir, iris, mint_with, now_s};
use super::raw::{Hello, Raw};

/// A-3 gives a revoked session a second; a machine that runs all tests at once may need more.
const DROP_MAX: Duration = Duration::from_secs(20);

/// A switch that allows clocks no difference.
fn exact(data: &Path) -> Server {
    let setup = Setup {
        environment: vec![("IRIS_AUTH__LEEWAY_S", "0".to_owned())],
        ..Setup::default()
    };
    Server::start_with(data, &setup)
}

fn revoke_command(data: &Path, what: &[&str]) -> Command {
    let mut command = iris();
    command.arg("revoke").arg("--data").arg(data).args(what);
    command
}

fn try_revoke(data: &Path, what: &[&str]) -> Output {
    revoke_command(data, what).output().unwrap()
}

fn revoke(data: &Path, what: &[&str]) -> String {
    let output = try_revoke(data, what);
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{errors}");
    said
}

/// The one line with which a revocation is refused.
fn refused(data: &Path, what: &[&str]) -> String {
    let output = try_revoke(data, what);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// A token that was issued so many seconds ago.
fn issued_before(identity: &Identity, user: &str, age_s: u64) -> String {
    mint_with(&identity.key, user, None, 3_600, now_s() - age_s)
}

fn with_id(identity: &Identity, user: &str, jti: &str) -> String {
    let request = MintRequest {
        user: &UserId::new(user).unwrap(),
        device: None,
        ttl_s: 3_600,
        now_s: now_s(),
        issuer: Some(iris::runtime::dev::ISSUER),
        audience: super::harness::AUDIENCE,
        jti: Some(jti),
    };
    mint(&identity.key, &request).unwrap()
}

fn hello_as(server: &Server, token: &str, device: &str, send_only: bool) -> Raw {
    let mut client = Raw::connect(server.address, &server.identity());
    let hello = Hello {
        device,
        send_only,
        ..Hello::default()
    };
    client.hello(token, &hello);
    client
}

/// What a login comes to; none is a Welcome.
fn turned_away(server: &Server, token: &str, device: &str) -> Option<Goodbye> {
    match hello_as(server, token, device, false).next() {
        ServerFrame::Welcome(_) => None,
        ServerFrame::Goodbye(goodbye) => Some(goodbye),
        other => panic!("Welcome or Goodbye was due, {other:?} came"),
    }
}

fn is_revoked(server: &Server, token: &str) -> bool {
    match turned_away(server, token, "other") {
        None => false,
        Some(goodbye) if goodbye.reason() == GoodbyeReason::Revoked => true,
        Some(other) => panic!("{other:?}"),
    }
}

/// R: A-3
#[test]
fn a_users_sessions_end_on_every_core_at_once_and_older_tokens_open_none() {
    let data = data_dir();
    let server = exact(data.path());
    let identity = server.identity();
    let before = (now_s() - 50).to_string();
    // Users of all cores, each with devices and a session that only sends.
    for number in 0..8 {
        let user = format!("user-{number}");
        let (old, new) = (
            issued_before(&identity, &user, 100),
            issued_before(&identity, &user, 20),
        );
        let mut sessions = Vec::new();
        for (device, send_only) in [("phone", false), ("desk", false), ("bot", true)] {
            let mut client = hello_as(&server, &old, device, send_only);
            client.welcome();
            sessions.push(client);
        }
        let mut stays = hello_as(&server, &new, "new", false);
        stays.welcome();
        let mut other = Raw::login(&server, &format!("other-{number}"));
        let began = Instant::now();
        let said = revoke(data.path(), &["--user", &user, "--before", &before]);
        assert!(said.starts_with("revoked: tokens of user-"), "{said}");
        for session in &mut sessions {
            assert_eq!(session.goodbye(), GoodbyeReason::Revoked);
        }
        assert!(began.elapsed() < DROP_MAX, "{:?}", began.elapsed());
        for _ in 0..4 {
            assert!(is_revoked(&server, &old), "{user}");
            assert!(!is_revoked(&server, &new), "{user}");
        }
        stays.send_accepted(&user, 1, b"still here");
        other.send_accepted(&user, 1, b"still here, too");
    }
    assert_eq!(server.stop().code(), Some(0));
}

/// R: A-3
#[test]
fn without_an_instant_everything_issued_until_now_is_revoked_and_the_leeway_too() {
    let data = data_dir();
    let server = Server::start(data.path()); // its leeway is 10 s
    let identity = server.identity();
    let mut ann = hello_as(&server, &identity.token("ann"), "phone", false);
    ann.welcome();
    revoke(data.path(), &["--user", "ann"]);
    let ServerFrame::Goodbye(goodbye) = ann.next() else {
        panic!("a Goodbye was due")
    };
    assert_eq!(goodbye.reason(), GoodbyeReason::Revoked);
    assert!(
        (1..=11_000).contains(&goodbye.retry_after_ms),
        "{goodbye:?}"
    );
    // An issuer whose clock is ahead could have issued this one before.
    let ahead = mint_with(&identity.key, "ann", None, 3_600, now_s() + 5);
    let goodbye = turned_away(&server, &ahead, "phone").unwrap();
    assert_eq!(goodbye.reason(), GoodbyeReason::Revoked);
    assert!(
        (1..=11_000).contains(&goodbye.retry_after_ms),
        "{goodbye:?}"
    );
    // One that is revoked for good is not told to come back.
    let before = (now_s() - 50).to_string();
    revoke(data.path(), &["--user", "ben", "--before", &before]);
    let goodbye = turned_away(&server, &issued_before(&identity, "ben", 100), "phone");
    assert_eq!(goodbye.unwrap().retry_after_ms, 0);
}

/// R
#[test]
fn one_token_is_revoked_by_its_id_also_when_a_session_would_go_on_with_it() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let (one, two, three) = (
        with_id(&identity, "ann", "id-1"),
        with_id(&identity, "ann", "id-2"),
        with_id(&identity, "ann", "id-3"),
    );
    let mut phone = hello_as(&server, &one, "phone", false);
    let mut desk = hello_as(&server, &two, "desk", false);
    let mut renewed = hello_as(&server, &one, "tablet", false);
    for session in [&mut phone, &mut desk, &mut renewed] {
        session.welcome();
    }
    renewed.reauth(&three);
    assert!(matches!(renewed.next(), ServerFrame::Reauthed(_)));
    let said = revoke(data.path(), &["--jti", "id-1"]);
    assert!(said.contains("\"id-1\""), "{said}");
    assert_eq!(phone.goodbye(), GoodbyeReason::Revoked);
    assert!(is_revoked(&server, &one));
    assert!(!is_revoked(&server, &two));
    assert_eq!(renewed.until_pong(), [], "it goes on with another token");
    desk.reauth(&one);
    assert_eq!(desk.rejected().0, RejectCode::BadToken);
    desk.send_accepted("ben", 1, b"the session goes on with the token before");
    revoke(data.path(), &["--jti", "id-3"]);
    assert_eq!(renewed.goodbye(), GoodbyeReason::Revoked);
}

/// R: A-3
#[test]
fn what_is_revoked_stays_revoked_after_a_kill_and_a_restart_and_in_a_backup() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let token = with_id(&identity, "ann", "id-1");
    let old = issued_before(&identity, "ben", 100);
    revoke(data.path(), &["--jti", "id-1"]);
    let before = (now_s() - 50).to_string();
    revoke(data.path(), &["--user", "ben", "--before", &before]);
    server.kill();
    let server = Server::start(data.path());
    assert!(is_revoked(&server, &token) && is_revoked(&server, &old));
    let copies = data_dir();
    let (backup, restored) = (copies.path().join("backup"), copies.path().join("restored"));
    let mut command = iris();
    command.arg("backup").arg("--data").arg(data.path());
    assert!(command.arg("--to").arg(&backup).status().unwrap().success());
    assert_eq!(server.stop().code(), Some(0));
    let mut command = iris();
    command.arg("restore").arg("--from").arg(&backup);
    let status = command.arg("--data").arg(&restored).status().unwrap();
    assert!(status.success());
    fs::create_dir(restored.join("dev")).unwrap();
    for file in fs::read_dir(data.path().join("dev")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), restored.join("dev").join(file.file_name())).unwrap();
    }
    let server = Server::start(&restored);
    assert!(is_revoked(&server, &token) && is_revoked(&server, &old));
}

/// R: A-3
#[test]
fn a_switch_does_not_start_on_a_damaged_list_and_leaves_it_as_it_is() {
    let data = data_dir();
    let server = Server::start(data.path());
    revoke(data.path(), &["--jti", "id-1"]);
    assert_eq!(server.stop().code(), Some(0));
    let path = data.path().join("REVOKED");
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    for damaged in [&changed[..], &whole[..whole.len() - 1], &[]] {
        fs::write(&path, damaged).unwrap();
        let mut command = iris();
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--cores", "0"]);
        let output = command
            .arg("--data")
            .arg(data.path())
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = said.lines().last().unwrap();
        assert!(
            line.contains("REVOKED") && line.contains("damaged"),
            "{said}"
        );
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
    fs::write(&path, whole).unwrap();
    // What a crash leaves of a list that nobody was told of.
    fs::write(data.path().join("REVOKED.tmp"), "iris revoca").unwrap();
    let server = Server::start(data.path());
    assert!(is_revoked(
        &server,
        &with_id(&server.identity(), "ann", "id-1")
    ));
}

/// R: A-3
#[test]
fn a_revocation_that_cannot_be_kept_is_refused_with_its_reason_and_changes_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let token = with_id(&server.identity(), "ann", "id-1");
    let mut ann = hello_as(&server, &token, "phone", false);
    ann.welcome();
    fs::create_dir(data.path().join("REVOKED.tmp")).unwrap(); // in the way of any list
    let line = refused(data.path(), &["--jti", "id-1"]);
    assert!(line.contains("cannot be written"), "{line}");
    assert_eq!(ann.until_pong(), []);
    assert!(!is_revoked(&server, &token));
    fs::remove_dir(data.path().join("REVOKED.tmp")).unwrap();
    let far = (now_s() + 100_000).to_string();
    let line = refused(data.path(), &["--user", "ann", "--before", &far]);
    assert!(line.contains("ahead"), "{line}");
    let line = refused(data.path(), &["--jti", &"x".repeat(65)]);
    assert!(line.contains("64 bytes"), "{line}");
    assert_eq!(server.stop().code(), Some(0));

    let until = now_s() + 1_000;
    let mut text = "iris revocations 1\n".to_owned();
    for number in 0..REVOCATIONS_MAX {
        text += &format!("{{\"jti\":\"{number}\",\"until\":{until}}}\n");
    }
    let crc = crc32fast::hash(text.as_bytes());
    text += &format!("end {REVOCATIONS_MAX} {crc:08x}\n");
    fs::write(data.path().join("REVOKED"), text).unwrap();
    let server = Server::start(data.path());
    let line = refused(data.path(), &["--jti", "id-1"]);
    assert!(line.contains("10000 revocations are held"), "{line}");
    assert!(!is_revoked(&server, &token));
    revoke(data.path(), &["--jti", "77"]); // held already
    assert!(is_revoked(
        &server,
        &with_id(&server.identity(), "ann", "78")
    ));
}

/// R: A-3
#[test]
fn sessions_that_ask_much_at_once_are_dropped_too() {
    let data = data_dir();
    let server = exact(data.path());
    let identity = server.identity();
    let before = (now_s() - 50).to_string();
    let old = issued_before(&identity, "ann", 100);
    let mut ann = hello_as(&server, &old, "phone", false);
    ann.welcome();
    // It reads nothing while it sends: its answers pile up until the switch stops reading it.
    for n in 1..=2_000 {
        ann.send("ben", n, &[7; 512]);
    }
    let began = Instant::now();
    revoke(data.path(), &["--user", "ann", "--before", &before]);
    let mut last = None;
    while let Ok(frame) = ann.try_next() {
        last = Some(frame);
    }
    assert!(began.elapsed() < DROP_MAX, "{:?}", began.elapsed());
    let Some(ServerFrame::Goodbye(goodbye)) = last else {
        panic!("a Goodbye was due last, {last:?} came")
    };
    assert_eq!(goodbye.reason(), GoodbyeReason::Revoked);
}

/// R: A-3
#[test]
fn what_is_no_revocation_gets_an_answer_that_says_so() {
    let data = data_dir();
    let _server = Server::start(data.path());
    let ask = |method: &str, body: &str| {
        let mut stream = UnixStream::connect(data.path().join("admin.sock")).unwrap();
        let len = body.len();
        let request = format!("{method} /revoke HTTP/1.0\r\nContent-Length: {len}\r\n\r\n{body}");
        let _ = stream.write_all(request.as_bytes()); // it may have answered before
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask("POST", "{\"user\":\"ann\",\"jti\":\"x\"}"), "400");
    assert_eq!(ask("POST", "no json"), "400");
    assert_eq!(ask("POST", &"x".repeat(5_000)), "413");
    assert_eq!(ask("GET", ""), "405");
    let output = try_revoke(&data.path().join("elsewhere"), &["--user", "ann"]);
    assert_eq!(output.status.code(), Some(2), "nobody to ask");
}

/// R: A-3. The table of connections has more places than a core looks at in one turn, and gets further ones
/// while it looks.
#[test]
fn sessions_that_begin_while_a_core_looks_for_those_to_end_do_not_slip_through() {
    const STRANGERS: usize = 1_500;
    let data = data_dir();
    let setup = Setup {
        cores: all_cores(1),
        environment: vec![
            ("IRIS_AUTH__LEEWAY_S", "0".to_owned()),
            ("IRIS_LIMITS__SESSIONS_PER_USER", "100000".to_owned()),
            ("IRIS_LIMITS__HELLO_TIMEOUT_MS", "60000".to_owned()),
            ("IRIS_LIMITS__HANDSHAKES_PER_CORE", "100000".to_owned()),
        ],
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    let identity = server.identity();
    let old = issued_before(&identity, "mallory", 10);
    let mut ann = Raw::login(&server, "ann");
    let silent = || TcpStream::connect(server.address).unwrap();
    let mut strangers: Vec<_> = (0..STRANGERS).map(|_| silent()).collect();
    let is_revoked = AtomicBool::new(false);
    let (mut sessions, turned_away) = std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            let (mut sessions, mut turned_away, mut epoch) = (Vec::new(), 0, 0);
            let mut is_asked = false;
            // Until a while after everybody was told.
            while turned_away < 20 {
                strangers.push(silent());
                epoch += 1;
                let mut client = Raw::connect(server.address, &identity);
                let hello = Hello {
                    device: "bot",
                    epoch,
                    send_only: true,
                    ..Hello::default()
                };
                let was_revoked = is_revoked.load(Ordering::SeqCst);
                client.hello(&old, &hello);
                match client.next() {
                    ServerFrame::Welcome(_) => {
                        assert!(!was_revoked, "session {epoch} began after the end");
                        sessions.push(client);
                    }
                    ServerFrame::Goodbye(goodbye) => {
                        assert_eq!(goodbye.reason(), GoodbyeReason::Revoked);
                        turned_away += 1;
                    }
                    other => panic!("{other:?}"),
                }
                if sessions.len() == 40 && !std::mem::replace(&mut is_asked, true) {
                    revoked(&server, &is_revoked, scope);
                }
            }
            (sessions, turned_away)
        });
        coming.join().unwrap()
    });
    assert!(sessions.len() >= 40 && turned_away == 20);
    for session in &mut sessions {
        assert_eq!(session.goodbye(), GoodbyeReason::Revoked);
    }
    ann.send_accepted("ben", 1, b"undisturbed");
}

/// Revokes mallory's tokens meanwhile, and says when that is done.
fn revoked<'scope>(
    server: &'scope Server,
    is_revoked: &'scope AtomicBool,
    scope: &'scope std::thread::Scope<'scope, '_>,
) {
    scope.spawn(|| {
        revoke(&server.data, &["--user", "mallory"]);
        is_revoked.store(true, Ordering::SeqCst);
    });
}
