use std::io::Cursor;

use super::*;
use crate::source::snapshot::testing::{frame, stored_of};

const PREFIX: &str = "/hosts/";

fn written(frame: &Frame) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    write(&mut file, frame, PREFIX).expect("memory takes all");
    file.into_inner()
}

/// As [`super::super::disk`] does it.
fn read(file: &[u8], prefix: &str) -> Result<Stored, Damage> {
    let head = Head::find(&file[..file.len().min(BODY_AT)])?;
    head.read(Bytes::copy_from_slice(&file[BODY_AT..]), prefix)
}

#[test]
fn what_was_written_is_read() {
    let frame = frame(7);
    let file = written(&frame);
    assert_eq!(read(&file, PREFIX), Ok(stored_of(&frame)));

    let nothing = Frame::default();
    assert_eq!(read(&written(&nothing), PREFIX), Ok(stored_of(&nothing)));
}

#[test]
fn every_truncation_is_noticed() {
    let file = written(&frame(7));
    for length in 0..file.len() {
        assert_eq!(
            read(&file[..length], PREFIX),
            Err(Damage::Truncated),
            "{length}"
        );
    }
    let longer = [&file[..], b"\0"].concat();
    assert_eq!(read(&longer, PREFIX), Err(Damage::Checksum));
}

#[test]
fn every_changed_byte_is_noticed() {
    let frame = frame(7);
    let mut file = written(&frame);
    let head = Head::find(&file[..BODY_AT]).unwrap();
    let moved = Frame {
        revision: 8,
        confirmed: UNIX_EPOCH + Duration::from_secs(9),
        pulse: None,
        ..frame.clone()
    };
    let later = head.next(&moved);
    let second = usize::try_from(later.offset()).unwrap();
    file[second..second + SLOT].copy_from_slice(&later.slot());
    let newest = stored_of(&moved);
    assert_eq!(read(&file, PREFIX).as_ref(), Ok(&newest));
    for place in 0..file.len() {
        for bit in [1, 0x80] {
            file[place] ^= bit;
            let found = read(&file, PREFIX);
            match place {
                0..SLOT => assert!(found.is_err(), "{place}"),
                // The newest head is whole.
                SLOT..1024 => assert_eq!(found.as_ref(), Ok(&newest), "{place}"),
                // It is not, and the one before it counts.
                1024..BODY_AT => assert_eq!(found, Ok(stored_of(&frame)), "{place}"),
                _ => assert_eq!(found, Err(Damage::Checksum), "{place}"),
            }
            file[place] ^= bit;
        }
    }
    file[SLOT + 1] ^= 1;
    file[second + 1] ^= 1;
    assert_eq!(
        read(&file, PREFIX),
        Err(Damage::Checksum),
        "no head is whole"
    );
}

#[test]
fn a_head_vouches_for_its_own_body_only() {
    let file = written(&frame(7));
    let mut other = frame(7);
    other.cluster_id += 1;
    let other = written(&other);
    assert_eq!(file.len(), other.len());
    let mixed = [&file[..BODY_AT], &other[BODY_AT..]].concat();
    assert_eq!(read(&mixed, PREFIX), Err(Damage::Checksum));
}

#[test]
fn files_of_others_are_told_apart() {
    let file = written(&frame(7));
    let mut newer = file.clone();
    newer[MAGIC.len()] = 2;
    let mut older = file.clone();
    older[MAGIC.len()] = 0;
    let elsewhere = Damage::OtherPrefix {
        theirs: PREFIX.to_owned(),
        ours: "/x/".to_owned(),
    };
    for (file, prefix, expected) in [
        (&b""[..], PREFIX, Damage::Truncated),
        (&b"way"[..], PREFIX, Damage::Truncated),
        (&b"127.0.0.1 localhost\n"[..], PREFIX, Damage::Foreign),
        (&[0; 4096][..], PREFIX, Damage::Foreign),
        (&newer, PREFIX, Damage::Newer(2)),
        (&older, PREFIX, Damage::Checksum),
        (&file, "/x/", elsewhere),
    ] {
        assert_eq!(read(file, prefix), Err(expected));
    }
}

/// Whoever makes such a file on purpose gets its checksums right; still nothing is made room for that isn't there.
#[test]
fn lengths_that_lie_are_noticed() {
    let body = written(&frame(7)).split_off(BODY_AT);
    let past = Frame {
        revision: i64::MAX,
        confirmed: UNIX_EPOCH - Duration::from_secs(1),
        ..frame(7)
    };
    for place in 0..body.len() - 8 {
        for lie in [u64::MAX, u64::from(u32::MAX), 1 << 40] {
            let mut body = body.clone();
            body[place..place + 8].copy_from_slice(&lie.to_le_bytes());
            let head = Head {
                sequence: u64::MAX,
                revision: i64::MIN,
                confirmed: u64::MAX,
                body_length: body.len() as u64,
                body_checksum: crc32fast::hash(&body),
                pulse: None,
            };
            // It must end, with whatever it finds.
            let _ = head.read(body.into(), PREFIX);
            let _ = head.next(&past).slot();
        }
    }
    let mut counted = body.clone();
    let count_at = 4 + PREFIX.len() + 8;
    counted[count_at..count_at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let head = Head {
        sequence: 0,
        revision: 1,
        confirmed: 0,
        body_length: counted.len() as u64,
        body_checksum: crc32fast::hash(&counted),
        pulse: None,
    };
    assert_eq!(head.read(counted.into(), PREFIX), Err(Damage::Checksum));
}

#[test]
fn a_pulse_that_is_too_long_is_left_out() {
    for (length, has_room) in [(0, true), (LONGEST_PULSE, true), (LONGEST_PULSE + 1, false)] {
        let mut frame = frame(7);
        let value = Bytes::from(vec![7; length]);
        frame.pulse = frame.pulse.map(|pulse| Version { value, ..pulse });
        let mut expected = stored_of(&frame);
        if !has_room {
            expected.entries.pop();
        }
        assert_eq!(read(&written(&frame), PREFIX), Ok(expected), "{length}");
    }
}
