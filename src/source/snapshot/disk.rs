//! The snapshot file on its disk: read whole, replaced whole, its head refreshed in place. Blocks.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;

use super::{
    Frame, Stored,
    format::{self, BODY_AT, Damage, Head},
};

/// Who is allowed to read what the routes are.
const MODE: u32 = 0o600;

/// Few calls for a million keys.
const BUFFER: usize = 1 << 20;

/// A snapshot file that is this instance's own.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    directory: PathBuf,
    draft: PathBuf,
    prefix: String,
    /// What was written last, still open: its head may be refreshed.
    current: Option<(File, Head)>,
    /// Held for as long as it is open.
    _lock: File,
}

/// Why nothing is read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// What is in it is of no use.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// It can't be read.
    #[error("it could not be read: {0}")]
    Io(#[from] io::Error),
    /// Something else has its name, a directory or a device.
    #[error("it is a directory or a device, and no file")]
    NoFile,
}

impl Disk {
    /// Locks the file, which need not be there, for the keys below `prefix`.
    ///
    /// # Errors
    ///
    /// Says, with the flag, why no file can be written there, or that another instance has it.
    pub fn open(path: &Path, prefix: &str) -> anyhow::Result<Self> {
        let shown = path.display();
        let Some(name) = path.file_name() else {
            bail!("--snapshot: {shown} names no file");
        };
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            bail!("--snapshot: {shown} is a directory or a device: name a file");
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let sibling = |ending: &str| {
            let mut sibling = OsString::from(name);
            sibling.push(ending);
            directory.join(sibling)
        };
        let lock = lock(&sibling(".lock")).with_context(|| {
            format!(
                "--snapshot: {shown} can't be written; its directory must be there and writable"
            )
        })?;
        let disk = Self {
            path: path.to_owned(),
            draft: sibling(".tmp"),
            prefix: prefix.to_owned(),
            current: None,
            _lock: lock.ok_or_else(|| {
                anyhow!("--snapshot: another instance uses {shown}; each needs a file of its own")
            })?,
            directory,
        };
        disk.new_draft()
            .and_then(|_| fs::remove_file(&disk.draft))
            .with_context(|| {
                format!(
                    "--snapshot: {shown} can't be written: no file can be made in {}",
                    disk.directory.display()
                )
            })?;
        Ok(disk)
    }

    /// What the file has; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Why what is there is of no use.
    pub fn read(&self) -> Result<Option<Stored>, Unreadable> {
        let there = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            there => there?,
        };
        // Opening a pipe would wait for who writes to it.
        if !there.is_file() {
            return Err(Unreadable::NoFile);
        }
        let mut file = File::open(&self.path)?;
        let mut start = Vec::with_capacity(BODY_AT);
        (&mut file).take(BODY_AT as u64).read_to_end(&mut start)?;
        let head = Head::find(&start)?;
        // Before room is made for what the head promises.
        if file.metadata()?.len().saturating_sub(BODY_AT as u64) < head.body_length {
            return Err(Damage::Truncated.into());
        }
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
        match self.write_draft(frame) {
            Ok(written) => {
                self.current = Some(written);
                // Else a crash may bring the old file back.
                File::open(&self.directory)?.sync_all()
            }
            Err(error) => {
                // It may be what fills the disk.
                let _ = fs::remove_file(&self.draft);
                Err(error)
            }
        }
    }

    fn write_draft(&self, frame: &Frame) -> io::Result<(File, Head)> {
        let mut out = BufWriter::with_capacity(BUFFER, self.new_draft()?);
        let head = format::write(&mut out, frame, &self.prefix)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.draft, &self.path)?;
        Ok((file, head))
    }

    /// A draft that a crash left behind is replaced; a link in its place isn't followed.
    fn new_draft(&self) -> io::Result<File> {
        match fs::remove_file(&self.draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        options.open(&self.draft)
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
        if !fs::metadata(&self.path).is_ok_and(is_ours) {
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
        &self.path
    }
}

/// `None` if another process has it. The lock goes with the process, however that ends; its file stays.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
