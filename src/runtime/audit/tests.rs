//! The queues, the writer and its files, without a switch.

use super::*;

fn writer(directory: &Path) -> (Writer, Queue) {
    let (sender, receiver) = bounded(QUEUE_EVENTS);
    let counts = Arc::new(Counts::default());
    let queues = vec![receiver];
    let writer = Writer::new(directory.join(NAME), queues, Arc::clone(&counts));
    (writer, Queue { sender, counts })
}

/// What is in the first file.
fn written(data: &Path) -> String {
    let path = list(&data.join(NAME)).unwrap().remove(0).1;
    fs::read_to_string(path).unwrap()
}

fn reload() -> Event {
    let outcome = "x".repeat(512);
    Event::Reload { outcome }
}

/// R: A-10
#[test]
fn what_finds_no_room_in_a_queue_is_counted_and_the_count_is_a_record() {
    let data = tempfile::tempdir().unwrap();
    let (mut writer, mut queue) = writer(data.path());
    for _ in 0..QUEUE_EVENTS + 7 {
        queue.put(1, Event::Stop);
    }
    writer.turn(Clock::read(), false);
    writer.turn(Clock::read(), true);
    let text = written(data.path());
    let last = text.lines().last().unwrap();
    let lost = r#""event":"lost","what":"other","count":7,"why":"queue""#;
    assert!(last.contains(lost), "{last}");
    assert!(verify(data.path(), None).unwrap().is_sound());
}

/// R: A-10
#[test]
fn a_burst_of_refusals_and_renewals_displaces_no_login_and_no_revocation() {
    let data = tempfile::tempdir().unwrap();
    let (mut writer, mut queue) = writer(data.path());
    let text = |text: &str| text.to_owned();
    for number in 0..QUEUE_EVENTS {
        let (reason, address) = ("malformed", format!("192.0.2.{number}"));
        let user = None;
        queue.put(
            1,
            Event::Refused {
                reason,
                address,
                user,
            },
        );
        let (user, device) = (text("mallory"), text("phone"));
        queue.put(
            1,
            Event::Renewed {
                user,
                device,
                expires_s: 2,
                jti: None,
            },
        );
    }
    for number in 0..CHEAP_EVENTS_MAX {
        let (user, device) = (format!("user-{number}"), text("phone"));
        queue.put(1, Event::Ended { user, device });
    }
    let counts = queue.counts();
    assert_eq!(counts.taken(Kind::Ended), CHEAP_EVENTS_MAX as u64);
    assert_eq!(counts.lost(Kind::Ended), 0);
    let (refused, renewed) = (counts.lost(Kind::Refused), counts.lost(Kind::Renewed));
    assert_eq!(
        refused + renewed,
        (2 * QUEUE_EVENTS - CHEAP_EVENTS_MAX) as u64
    );
    writer.turn(Clock::read(), false);
    drop(queue);
    writer.turn(Clock::read(), true);
    let text = written(data.path());
    let ended = text
        .lines()
        .filter(|line| line.contains(r#""event":"ended""#));
    assert_eq!(ended.count(), CHEAP_EVENTS_MAX);
    for (what, count) in [("refused", refused), ("renewed", renewed)] {
        let lost = format!(r#""event":"lost","what":"{what}","count":{count},"why":"queue""#);
        assert_eq!(text.matches(&lost).count(), 1, "{lost}");
    }
    assert!(verify(data.path(), None).unwrap().is_sound());
}

/// R: A-10
#[test]
fn files_follow_each_other_and_the_oldest_leave_with_a_record() {
    let data = tempfile::tempdir().unwrap();
    let (mut writer, mut queue) = writer(data.path());
    let directory = data.path().join(NAME);
    let mut seen = 0;
    while list(&directory).map_or(true, |files| {
        files.first().is_none_or(|(first, _)| *first == 1)
    }) {
        for _ in 0..QUEUE_EVENTS {
            queue.put(1, reload());
        }
        writer.turn(Clock::read(), false);
        seen += 1;
        assert!(seen < 1_000, "it grows for ever");
    }
    writer.turn(Clock::read(), true);
    let files = list(&directory).unwrap();
    assert_eq!(files.len(), FILES_MAX);
    for (_, path) in &files {
        let len = fs::metadata(path).unwrap().len();
        assert!(len <= FILE_BYTES_MAX + 1_024 * 1_024, "{len}");
    }
    let verdict = verify(data.path(), None).unwrap();
    assert!(verdict.is_sound(), "{:?}", verdict.findings);
    assert!(verdict.notes[0].contains("were removed by the switch"));
    // A file that somebody removed is missed.
    fs::remove_file(&files[0].1).unwrap();
    assert!(!verify(data.path(), None).unwrap().is_sound());
    // A switch that starts there goes on behind the newest file.
    let (mut writer, mut queue) = self::writer(data.path());
    queue.put(1, Event::Stop);
    writer.turn(Clock::read(), true);
    assert_eq!(list(&directory).unwrap().len(), FILES_MAX - 1);
}

/// R: A-10
#[test]
fn a_log_without_its_head_is_not_sound_and_not_gone_on_with() {
    for is_cut in [false, true] {
        let data = tempfile::tempdir().unwrap();
        let (mut first, mut queue) = writer(data.path());
        queue.put(1, Event::Stop);
        first.turn(Clock::read(), true);
        let directory = data.path().join(NAME);
        let head = directory.join(HEAD);
        assert_eq!(
            fs::read_to_string(&head).unwrap().len(),
            head_text(&Chain::EMPTY).len()
        );
        if is_cut {
            fs::write(&head, "").unwrap();
        } else {
            fs::remove_file(&head).unwrap();
        }
        assert!(!verify(data.path(), None).unwrap().is_sound());
        // A start does not make it good: it begins a new chain, which says so for ever.
        let (mut writer, mut queue) = self::writer(data.path());
        queue.put(1, Event::Stop);
        writer.turn(Clock::read(), true);
        let verdict = verify(data.path(), None).unwrap();
        assert!(!verdict.is_sound(), "{verdict:?}");
        assert_eq!(list(&directory).unwrap().len(), 2);
    }
}

/// R: A-10
#[test]
fn a_crash_at_any_step_of_the_beginning_leaves_a_log_that_is_sound_or_none() {
    let empty = head_text(&Chain::EMPTY);
    // What is there after a kill behind each step: the directory, a part of the new head, the head,
    // a file without a record, and one with a part.
    let left: [&[(&str, &str)]; 6] = [
        &[],
        &[(HEAD_NEW, "0000")],
        &[(HEAD_NEW, &empty)],
        &[(HEAD, &empty)],
        &[(HEAD, &empty), ("00000000000000000001.jsonl", "")],
        &[(HEAD, &empty), ("00000000000000000001.jsonl", "{\"n\":1")],
    ];
    for files in left {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join(NAME);
        fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        let (mut writer, mut queue) = self::writer(data.path());
        queue.put(1, Event::Stop);
        writer.turn(Clock::read(), true);
        let verdict = verify(data.path(), None).unwrap();
        assert!(verdict.is_sound(), "{files:?}: {:?}", verdict.findings);
        assert_eq!(list(&directory).unwrap().len(), 1, "{files:?}");
    }
}

/// R: A-10
#[test]
fn a_crash_while_a_file_begins_leaves_nothing_in_the_way() {
    let data = tempfile::tempdir().unwrap();
    let (mut first, mut queue) = writer(data.path());
    queue.put(1, Event::Stop);
    first.turn(Clock::read(), true);
    let directory = data.path().join(NAME);
    for left in ["", "{\"n\":3,\"ti"] {
        let next = verify(data.path(), None).unwrap().last.unwrap().last + 1;
        fs::write(directory.join(format!("{next:020}{SUFFIX}")), left).unwrap();
        let (mut writer, mut queue) = self::writer(data.path());
        queue.put(1, Event::Stop);
        writer.turn(Clock::read(), true);
        let verdict = verify(data.path(), None).unwrap();
        assert!(verdict.is_sound(), "{left:?}: {:?}", verdict.findings);
        assert_eq!(list(&directory).unwrap().len(), 1);
    }
}

/// R: A-10
#[test]
fn a_log_whose_end_is_gone_is_not_gone_on_with() {
    let data = tempfile::tempdir().unwrap();
    let (mut first, mut queue) = writer(data.path());
    queue.put(1, Event::Stop);
    queue.put(1, Event::Stop);
    first.turn(Clock::read(), true);
    let directory = data.path().join(NAME);
    let path = list(&directory).unwrap().remove(0).1;
    let text = fs::read_to_string(&path).unwrap();
    let cut = &text[..text.trim_end().rfind('\n').unwrap() + 1];
    fs::write(&path, cut).unwrap();
    let (mut writer, mut queue) = self::writer(data.path());
    queue.put(1, Event::Stop);
    writer.turn(Clock::read(), true);
    assert_eq!(fs::read_to_string(&path).unwrap(), cut);
    let verdict = verify(data.path(), None).unwrap();
    assert!(!verdict.is_sound(), "{verdict:?}");
    assert_eq!(list(&directory).unwrap().len(), 2);
    // The new chain is gone on with.
    let (mut writer, mut queue) = self::writer(data.path());
    queue.put(1, Event::Stop);
    writer.turn(Clock::read(), true);
    assert_eq!(list(&directory).unwrap().len(), 2);
}
