//! The snapshot file on its disk: read whole, replaced whole, its head refreshed in place. Blocks.

mod place;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use tracing::{debug, warn};

pub use self::place::Untrusted;
use self::place::{Place, may_pass};
use super::{
    Frame, Stored,
    format::{self, BODY_AT, Damage, Head},
};

/// Few calls for a million keys.
const BUFFER: usize = 1 << 20;

/// No body of ours is longer, in bytes: etcd is made for 8 GiB at most.
const LARGEST_BODY: u64 = 16 << 30;

/// A snapshot file that is this instance's own.
#[derive(Debug)]
pub struct Disk {
    place: Place,
    /// To flush a new name to the disk; `None` where it can't be read, so that nothing can.
    directory: Option<File>,
    prefix: String,
    /// What was written last, still open: its head may be refreshed.
    current: Option<(File, Head)>,
    /// Held for as long as it is open; `None` where none can be had yet.
    lock: Option<File>,
}

/// Why nothing is read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// What is in it is of no use.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// It can't be read, or anybody may have written it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// It promises more than there can be.
    #[error("it has over 16 GiB")]
    TooLarge,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Untrusted(error.into())
    }
}

impl Disk {
    /// Locks the file, which need not be there, for the keys below `prefix`. A disk that is full, read-only or broken is
    /// warned of: what it has can be read, and later it may be written. Blocks.
    ///
    /// # Errors
    ///
    /// Says, with the flag, why no file can be written there, or that another instance has it.
    pub fn open(path: &Path, prefix: &str) -> anyhow::Result<Self> {
        let place = Place::of(path)?;
        let in_use = || {
            let shown = path.display();
            anyhow!("--snapshot: another instance uses {shown}; each needs a file of its own")
        };
        let lock = match place.lock() {
            Ok(lock) => Some(lock.ok_or_else(in_use)?),
            Err(error) if may_pass(&error) => {
                warn!(file = %path.display(), %error, "the snapshot can't be locked yet");
                None
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "--snapshot: {} can't be opened, which is to be a file of ours in a directory that is there and \
                         that we may write to",
                        place.lock.display()
                    )
                });
            }
        };
        match place.try_draft() {
            Err(error) if (error.downcast_ref()).is_some_and(may_pass) => {
                warn!("{error:#}; it is tried again for ever");
            }
            tried => tried?,
        }
        Ok(Self {
            directory: File::open(&place.directory).ok(),
            place,
            prefix: prefix.to_owned(),
            current: None,
            lock,
        })
    }

    /// What the file has; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Why what is there is of no use.
    pub fn read(&self) -> Result<Option<Stored>, Unreadable> {
        let Some((mut file, length)) = self.place.open()? else {
            return Ok(None);
        };
        let mut start = Vec::with_capacity(BODY_AT);
        (&mut file).take(BODY_AT as u64).read_to_end(&mut start)?;
        let head = Head::find(&start)?;
        // Before room is made for what the head promises, and for what is not what it says.
        if length.saturating_sub(BODY_AT as u64) < head.body_length {
            return Err(Damage::Truncated.into());
        }
        if head.body_length > LARGEST_BODY {
            return Err(Unreadable::TooLarge);
        }
        head.check(&mut file)?;
        file.seek(SeekFrom::Start(BODY_AT as u64))?;
        let length = usize::try_from(head.body_length).map_err(io::Error::other)?;
        let mut body = Vec::new();
        body.try_reserve_exact(length + 1)
            .map_err(io::Error::other)?;
        // A byte too many is noticed.
        file.take(head.body_length + 1).read_to_end(&mut body)?;
        Ok(Some(head.read(Bytes::from(body), &self.prefix)?))
    }

    /// Puts a new file in the place of the old one, which stays as it is until then.
    ///
    /// # Errors
    ///
    /// Why the old one is still there.
    pub fn replace(&mut self, frame: &Frame) -> io::Result<()> {
        self.current = None;
        if self.lock.is_none() {
            self.lock = self.place.lock()?;
        }
        if self.lock.is_none() {
            return Err(io::Error::other("another instance uses it"));
        }
        match self.write_draft(frame) {
            Ok(written) => self.current = Some(written),
            Err(error) => {
                // It may be what fills the disk.
                let _ = fs::remove_file(&self.place.draft);
                return Err(error);
            }
        }
        // Else a crash may bring the old file back, which is no worse than had it come earlier.
        if let Some(Err(error)) = self.directory.as_ref().map(File::sync_all) {
            debug!(%error, "the directory of the snapshot can't be flushed");
        }
        Ok(())
    }

    fn write_draft(&self, frame: &Frame) -> io::Result<(File, Head)> {
        let mut out = BufWriter::with_capacity(BUFFER, self.place.new_draft()?);
        let head = format::write(&mut out, frame, &self.prefix)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.place.draft, &self.place.path)?;
        Ok((file, head))
    }

    /// Says in the head that the keys are still those of this frame; `false` if that file is no longer there, or there was none.
    ///
    /// # Errors
    ///
    /// Why it does not say so; it is to be replaced.
    pub fn refresh(&mut self, frame: &Frame) -> io::Result<bool> {
        let Some((file, head)) = self.current.take() else {
            return Ok(false);
        };
        let ours = file.metadata()?;
        let is_ours = |there: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !fs::metadata(&self.place.path).is_ok_and(is_ours) {
            return Ok(false);
        }
        let head = head.next(frame);
        file.write_all_at(&head.slot(), head.offset())?;
        file.sync_data()?;
        self.current = Some((file, head));
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }
}

#[cfg(test)]
mod tests;
