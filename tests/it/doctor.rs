//! `iris doctor` on the machine at hand.

use std::path::Path;
use std::process::{Command, Output};

use super::harness::{data_dir, iris};

fn doctor(data: &Path, more: &[&str]) -> Output {
    let mut command = iris();
    command.arg("doctor").arg("--data").arg(data).args(more);
    command.output().unwrap()
}

fn rows(output: &Output) -> Vec<serde_json::Value> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap().clone();
    let breaks = rows.iter().any(|row| row["verdict"] == "breaks");
    assert_eq!(report["healthy"], !breaks);
    assert_eq!(output.status.code(), Some(i32::from(breaks)), "{rows:?}");
    rows
}

fn row<'a>(rows: &'a [serde_json::Value], knob: &str) -> &'a serde_json::Value {
    rows.iter().find(|row| row["knob"] == knob).unwrap()
}

/// R: E-3
#[test]
fn the_doctor_tells_what_it_found_and_ends_by_whether_a_promise_breaks() {
    let data = data_dir();
    let rows = rows(&doctor(data.path(), &["--json"]));
    for knob in ["kernel", "kernel.io_uring_disabled", "LimitMEMLOCK"] {
        assert_eq!(row(&rows, knob)["verdict"], "ok", "the tests run here");
    }
    for found in &rows {
        for field in ["found", "wanted", "why", "how"] {
            assert!(!found[field].as_str().unwrap().is_empty(), "{found}");
        }
    }
    let output = doctor(data.path(), &[]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(&format!("\n{} rows: ", rows.len())), "{told}");
    assert!(
        std::fs::read_dir(data.path()).unwrap().next().is_none(),
        "it left something"
    );
}

/// R: E-3
#[test]
fn a_limit_that_is_too_small_and_a_disk_that_is_none_break_a_promise() {
    let data = data_dir();
    let program = env!("CARGO_BIN_EXE_iris");
    let script = format!(
        "ulimit -n 512; exec {program} doctor --json --data {}",
        data.path().display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(row(&rows(&output), "LimitNOFILE")["verdict"], "breaks");

    let memory = Path::new("/dev/shm");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts
        .lines()
        .any(|line| line.contains(" /dev/shm ") && line.contains(" - tmpfs "))
    {
        println!("skipped: /dev/shm is no file system in memory here");
        return;
    }
    let found = rows(&doctor(memory, &["--json"]));
    let system = row(&found, "file system");
    assert_eq!(system["verdict"], "breaks");
    assert!(
        system["found"].as_str().unwrap().contains("memory"),
        "{system}"
    );
}
