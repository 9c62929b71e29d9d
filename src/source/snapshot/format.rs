//! The bytes of a snapshot file. Pure.
//!
//! | at | |
//! |---|---|
//! | 0 | magic, format, zeros |
//! | 512, 1024 | the head, in two slots that are written in turn |
//! | 1536 | the body: prefix, cluster, keys, each with its length before it |
//!
//! Numbers are little-endian. A slot that a crash tore has a wrong checksum, and the other one counts. Each head names
//! the length and the checksum of the body that it belongs to, so that it can't vouch for another.

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, Bytes};

use super::{Frame, Stored, Unreadable, Version, Versions};
use crate::{
    route::Revision,
    source::{Entry, etcd::pulse_key},
};

const MAGIC: [u8; 16] = *b"waypost snapshot";
const FORMAT: u32 = 1;

/// A sector: the least that disks write whole.
pub const SLOT: usize = 512;
/// Where the body begins.
pub const BODY_AT: usize = 3 * SLOT;

/// Of a slot: what its last four bytes are the checksum of.
const CHECKED: usize = SLOT - 4;
/// The longest value of a pulse that has room in a head; ours are far shorter.
const LONGEST_PULSE: usize = 256;
/// How much of a body is looked at at a time.
const PIECE: usize = 1 << 20;
/// What an entry takes beside its key and value.
const ENTRY: usize = 24;

/// Why a file is no snapshot of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends too early.
    #[error("it is truncated")]
    Truncated,
    /// It is not as it was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It never was one.
    #[error("it is no snapshot of Waypost's")]
    Foreign,
    /// Its format came later than this program.
    #[error("it was written by a newer version of Waypost (its format is {0}, ours {FORMAT})")]
    Newer(u32),
    /// It is of other keys.
    #[error("it is of the prefix {theirs}, ours is {ours}")]
    OtherPrefix {
        /// The prefix that it was written for.
        theirs: String,
        /// `--prefix`.
        ours: String,
    },
}

/// What changes though no key does but the pulse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The newest head counts; its slot follows from this.
    pub sequence: u64,
    /// All up to here is in the body.
    pub revision: Revision,
    /// When the source last said so, in milliseconds since the epoch.
    confirmed: u64,
    /// Of the body, in bytes.
    pub body_length: u64,
    body_checksum: u32,
    /// As of that revision. Anybody may put it, so one that is too long is left out.
    pulse: Option<Version>,
}

impl Head {
    /// The newest of a file that begins so: with [`BODY_AT`] bytes, or fewer if there are no more.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn find(start: &[u8]) -> Result<Self, Damage> {
        let common = start.len().min(MAGIC.len());
        if start[..common] != MAGIC[..common] {
            return Err(Damage::Foreign);
        }
        if start.len() < BODY_AT {
            return Err(Damage::Truncated);
        }
        let (mut preamble, slots) = start[MAGIC.len()..BODY_AT].split_at(SLOT - MAGIC.len());
        match preamble.get_u32_le() {
            FORMAT => {}
            newer if newer > FORMAT => return Err(Damage::Newer(newer)),
            _ => return Err(Damage::Checksum),
        }
        if preamble.iter().any(|byte| *byte != 0) {
            return Err(Damage::Checksum);
        }
        let heads = slots.chunks_exact(SLOT).filter_map(Self::parse);
        heads
            .max_by_key(|head| head.sequence)
            .ok_or(Damage::Checksum)
    }

    fn parse(slot: &[u8]) -> Option<Self> {
        let (mut checked, mut checksum) = slot.split_at(CHECKED);
        if crc32fast::hash(checked) != checksum.get_u32_le() {
            return None;
        }
        Some(Self {
            sequence: checked.get_u64_le(),
            revision: checked.get_i64_le(),
            confirmed: checked.get_u64_le(),
            body_length: checked.get_u64_le(),
            body_checksum: checked.get_u32_le(),
            pulse: pulse(checked)?,
        })
    }

    /// The same body, as of a later frame: to be written to the other slot.
    pub fn next(&self, frame: &Frame) -> Self {
        Self {
            sequence: self.sequence.wrapping_add(1),
            ..Self::of(frame, self.body_length, self.body_checksum)
        }
    }

    fn of(frame: &Frame, body_length: u64, body_checksum: u32) -> Self {
        let has_room = |pulse: &Version| pulse.value.len() <= LONGEST_PULSE;
        Self {
            sequence: 0,
            revision: frame.revision,
            confirmed: milliseconds(frame.confirmed),
            body_length,
            body_checksum,
            pulse: frame.pulse.clone().filter(has_room),
        }
    }

    /// Where its slot is in the file.
    pub fn offset(&self) -> u64 {
        SLOT as u64 * (1 + self.sequence % 2)
    }

    /// What its slot holds.
    pub fn slot(&self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let mut rest = &mut slot[..];
        for number in [
            self.sequence,
            self.revision.cast_unsigned(),
            self.confirmed,
            self.body_length,
        ] {
            put(&mut rest, &number.to_le_bytes());
        }
        put(&mut rest, &self.body_checksum.to_le_bytes());
        if let Some(pulse) = &self.pulse
            && let Ok(length) = u16::try_from(pulse.value.len())
        {
            put(&mut rest, &[1]);
            put(&mut rest, &length.to_le_bytes());
            put(&mut rest, &pulse.mod_revision.to_le_bytes());
            put(&mut rest, &pulse.lease.to_le_bytes());
            put(&mut rest, &pulse.value);
        }
        let checksum = crc32fast::hash(&slot[..CHECKED]);
        slot[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        slot
    }

    /// Whether what comes is the body of this head, without room for more than a piece of it.
    ///
    /// # Errors
    ///
    /// What `from` has, or that it is not.
    pub fn check(&self, from: &mut impl Read) -> Result<(), Unreadable> {
        let mut checksum = crc32fast::Hasher::new();
        let mut piece = vec![0; PIECE];
        let mut rest = from.take(self.body_length);
        loop {
            match rest.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => checksum.update(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if checksum.finalize() != self.body_checksum {
            return Err(Damage::Checksum.into());
        }
        Ok(())
    }

    /// What this body says, if it is the one of this head and of this prefix. Its keys and values are slices of it.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub fn read(&self, body: Bytes, prefix: &str) -> Result<Stored, Damage> {
        if (body.len() as u64) < self.body_length {
            return Err(Damage::Truncated);
        }
        if body.len() as u64 > self.body_length || crc32fast::hash(&body) != self.body_checksum {
            return Err(Damage::Checksum);
        }
        let mut body = Body(body);
        let length = body.length()?;
        let theirs = body.take(length)?;
        if theirs != prefix.as_bytes() {
            return Err(Damage::OtherPrefix {
                theirs: String::from_utf8_lossy(&theirs).into_owned(),
                ours: prefix.to_owned(),
            });
        }
        let mut stored = Stored {
            cluster_id: body.number()?,
            revision: self.revision,
            confirmed: (UNIX_EPOCH.checked_add(Duration::from_millis(self.confirmed)))
                .unwrap_or(UNIX_EPOCH),
            entries: body.entries()?,
            kept: body.entries()?,
        };
        if !body.0.is_empty() {
            return Err(Damage::Checksum);
        }
        if let Some(pulse) = &self.pulse {
            stored.entries.push(Entry {
                key: pulse_key(prefix.as_bytes()).into(),
                value: pulse.value.clone(),
                mod_revision: pulse.mod_revision,
                lease: pulse.lease,
            });
        }
        Ok(stored)
    }
}

/// Writes a whole file, its first head included; returns that head.
///
/// # Errors
///
/// Whatever `out` has; or that something is longer than a file can tell.
pub fn write(out: &mut (impl Write + Seek), frame: &Frame, prefix: &str) -> io::Result<Head> {
    let mut start = [0; BODY_AT];
    let mut rest = &mut start[..];
    put(&mut rest, &MAGIC);
    put(&mut rest, &FORMAT.to_le_bytes());
    out.write_all(&start)?;
    let mut body = Checked {
        out: &mut *out,
        length: 0,
        checksum: crc32fast::Hasher::new(),
    };
    body.write_all(&length_of(prefix.as_bytes())?)?;
    body.write_all(prefix.as_bytes())?;
    body.write_all(&frame.cluster_id.to_le_bytes())?;
    for versions in [&frame.entries, &frame.kept] {
        write_versions(&mut body, versions)?;
    }
    let head = Head::of(frame, body.length, body.checksum.finalize());
    out.seek(SeekFrom::Start(head.offset()))?;
    out.write_all(&head.slot())?;
    Ok(head)
}

/// What a slot says of the pulse behind all else; `None` if that can't be.
fn pulse(mut rest: &[u8]) -> Option<Option<Version>> {
    if rest.try_get_u8().ok()? == 0 {
        return Some(None);
    }
    let length = usize::from(rest.try_get_u16_le().ok()?);
    let (mod_revision, lease) = (rest.try_get_i64_le().ok()?, rest.try_get_i64_le().ok()?);
    let value = rest.get(..length)?;
    Some(Some(Version {
        value: Bytes::copy_from_slice(value),
        mod_revision,
        lease,
    }))
}

fn write_versions(out: &mut impl Write, versions: &Versions) -> io::Result<()> {
    out.write_all(&(versions.len() as u64).to_le_bytes())?;
    for (key, version) in versions {
        let Version {
            value,
            mod_revision,
            lease,
        } = version;
        out.write_all(&length_of(key)?)?;
        out.write_all(&length_of(value)?)?;
        out.write_all(&mod_revision.to_le_bytes())?;
        out.write_all(&lease.to_le_bytes())?;
        out.write_all(key)?;
        out.write_all(value)?;
    }
    Ok(())
}

fn length_of(bytes: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    Ok(length.to_le_bytes())
}

/// Of times before the epoch, the epoch.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn put(rest: &mut &mut [u8], bytes: &[u8]) {
    let (place, behind) = std::mem::take(rest).split_at_mut(bytes.len());
    place.copy_from_slice(bytes);
    *rest = behind;
}

/// What is left of a body.
struct Body(Bytes);

impl Body {
    fn take(&mut self, length: usize) -> Result<Bytes, Damage> {
        if length > self.0.len() {
            return Err(Damage::Checksum);
        }
        Ok(self.0.split_to(length))
    }

    fn number(&mut self) -> Result<u64, Damage> {
        self.0.try_get_u64_le().map_err(|_| Damage::Checksum)
    }

    fn length(&mut self) -> Result<usize, Damage> {
        let length = self.0.try_get_u32_le().map_err(|_| Damage::Checksum)?;
        usize::try_from(length).map_err(|_| Damage::Checksum)
    }

    fn entries(&mut self) -> Result<Vec<Entry>, Damage> {
        let count = usize::try_from(self.number()?).map_err(|_| Damage::Checksum)?;
        if count > self.0.len() / ENTRY {
            return Err(Damage::Checksum);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (key, value) = (self.length()?, self.length()?);
            let (mod_revision, lease) = (self.number()?, self.number()?);
            entries.push(Entry {
                key: self.take(key)?,
                value: self.take(value)?,
                mod_revision: mod_revision.cast_signed(),
                lease: lease.cast_signed(),
            });
        }
        Ok(entries)
    }
}

/// Knows the length and the checksum of what was written.
struct Checked<W> {
    out: W,
    length: u64,
    checksum: crc32fast::Hasher,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.checksum.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
