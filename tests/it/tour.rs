//! The tour in the README, as a newcomer types it: every command runs, and prints what is promised.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::harness::{Server, data_dir, iris};

const README: &str = include_str!("../../README.md");
/// The line that begins the tour's block.
const FENCE: &str = "```sh tour";
/// What begins a line that says what the command above it prints.
const PRINTS: &str = "# prints ";
/// How long one command may take. None waits for anything but the switch.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command, and what its output must contain.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    line: usize,
    command: &'a str,
    prints: Vec<&'a str>,
}

/// The steps of a page's tour; or why it has none that could be run and checked.
fn tour(page: &str) -> Result<Vec<Step<'_>>, String> {
    let begins = page.lines().filter(|line| *line == FENCE).count();
    if begins != 1 {
        return Err(format!("{begins} blocks begin with {FENCE}, not one"));
    }
    let mut lines = (1..)
        .zip(page.lines())
        .skip_while(|(_, line)| *line != FENCE);
    lines.next();
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut is_closed = false;
    for (number, line) in lines {
        if line == "```" {
            is_closed = true;
            break;
        }
        if let Some(text) = line.strip_prefix(PRINTS) {
            let step = steps.last_mut().filter(|_| !text.trim().is_empty());
            let step = step.ok_or_else(|| format!("line {number} checks nothing: {line}"))?;
            step.prints.push(text);
        } else if line.starts_with("iris ") {
            steps.push(Step {
                line: number,
                command: line,
                prints: Vec::new(),
            });
        } else if !line.is_empty() && !line.starts_with("# ") {
            return Err(format!(
                "line {number} is no command of iris and no comment: {line}"
            ));
        }
    }
    if !is_closed {
        return Err("the tour does not end".to_owned());
    }
    if let Some(step) = steps.iter().find(|step| step.prints.is_empty()) {
        return Err(format!(
            "nothing is said about what line {} prints: {}",
            step.line, step.command
        ));
    }
    if steps.is_empty() {
        return Err("the tour has no command".to_owned());
    }
    Ok(steps)
}

/// Runs commands in `directory` as a shell does, with this build's `iris` first on the path.
pub(super) fn run(command: &str, directory: &Path, environment: &[(&str, String)]) -> Output {
    let binary = iris();
    let binaries = Path::new(binary.get_program()).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(directory)
        .env("PATH", format!("{}:{path}", binaries.display()))
        .env("XDG_STATE_HOME", directory.join("state"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for (name, _) in binary.get_envs().filter(|(_, value)| value.is_none()) {
        shell.env_remove(name);
    }
    let child = shell.spawn().unwrap();
    let group = i32::try_from(child.id()).unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = told.recv_timeout(PATIENCE) else {
        // SAFETY: a system call without pointers; the group is the one that we just made.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        panic!("no end within {} s: {command}", PATIENCE.as_secs());
    };
    output.unwrap()
}

/// R: G-1
#[test]
fn every_command_of_the_tour_prints_what_the_readme_says() {
    let steps = tour(README).unwrap();
    let directory = data_dir();
    let _server = Server::start(&directory.path().join("iris-data"));
    for Step {
        line,
        command,
        prints,
    } in steps
    {
        let output = run(command, directory.path(), &[]);
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "README.md:{line}: {command}\n{printed}{errors}"
        );
        for wanted in prints {
            assert!(
                printed.contains(wanted),
                "README.md:{line}: {command}\ndoes not print `{wanted}` but\n{printed}{errors}"
            );
        }
    }
}

#[test]
fn a_tour_that_could_not_be_checked_is_refused() {
    for (page, complaint) in [
        ("no block", "0 blocks"),
        ("```sh tour\n```\n", "no command"),
        ("```sh tour\niris token\n```\n", "nothing is said"),
        (
            "```sh tour\niris a\niris b\n# prints x\n```\n",
            "line 2 prints: iris a",
        ),
        ("```sh tour\n# prints x\niris a\n```\n", "line 2 checks"),
        (
            "```sh tour\niris a\n# prints \n```\n",
            "line 3 checks nothing",
        ),
        (
            "```sh tour\nrm -r x\n# prints x\n```\n",
            "no command of iris",
        ),
        ("```sh tour\niris a\n# prints x\n", "does not end"),
        ("```sh tour\n```\n```sh tour\n```\n", "2 blocks"),
    ] {
        let error = tour(page).unwrap_err();
        assert!(error.contains(complaint), "{page:?}: {error}");
    }
    let page = "text\n```sh tour\n# why\niris a 'b c'\n# prints x\n# prints y\n```\niris no\n";
    let step = Step {
        line: 4,
        command: "iris a 'b c'",
        prints: vec!["x", "y"],
    };
    assert_eq!(tour(page), Ok(vec![step]));
}
