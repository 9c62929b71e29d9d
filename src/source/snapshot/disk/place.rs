//! Where a snapshot file is to be: what has its name, who else uses it, and whether one can be made there at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::{fs::OFlags, io::Errno, process::geteuid};

/// Who is allowed to read what the routes are.
const MODE: u32 = 0o600;
/// Whoever else may write it directs traffic.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The names of a snapshot file and of those beside it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) draft: PathBuf,
    pub(super) lock: PathBuf,
}

impl Place {
    /// # Errors
    ///
    /// When that can't be the name of a file.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let Some(name) = path.file_name() else {
            bail!("--snapshot: {shown} names no file");
        };
        // Which a path leaves out of its name.
        if [&b"/"[..], b"/."]
            .iter()
            .any(|end| path.as_os_str().as_bytes().ends_with(end))
        {
            bail!("--snapshot: {shown} is the name of a directory: name a file");
        }
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            bail!("--snapshot: {shown} is a directory, a pipe or a device: name a file");
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
        Ok(Self {
            path: path.to_owned(),
            draft: sibling(".tmp"),
            lock: sibling(".lock"),
            directory,
        })
    }

    /// The lock, which goes with the process, however that ends; its file stays. `None` if another process has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(MODE);
        // Where others may write, a link would make us create what it names, and a pipe make us wait.
        let file = options
            .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
            .open(&self.lock)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// A draft that a crash left behind is replaced; a link in its place isn't followed.
    pub(super) fn new_draft(&self) -> io::Result<File> {
        match fs::remove_file(&self.draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        options.open(&self.draft)
    }

    /// Whether a file can be made here.
    pub(super) fn try_draft(&self) -> anyhow::Result<()> {
        let made = self.new_draft().and_then(|_| fs::remove_file(&self.draft));
        made.with_context(|| {
            format!(
                "--snapshot: {} can't be written: no file can be made in {}",
                self.path.display(),
                self.directory.display()
            )
        })
    }

    /// The file to be read, if there is one, and its length.
    pub(super) fn open(&self) -> Result<Option<(File, u64)>, Untrusted> {
        // A pipe would wait for who writes to it.
        let nonblocking = flags(OFlags::NONBLOCK);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking)
            .open(&self.path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let there = file.metadata()?;
        if !there.is_file() {
            return Err(Untrusted::NoFile);
        }
        if there.uid() != 0 && there.uid() != geteuid().as_raw() {
            return Err(Untrusted::Owner(there.uid()));
        }
        if there.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(Untrusted::Writable(there.mode() & 0o7777));
        }
        Ok(Some((file, there.len())))
    }
}

/// Why what has the name of the file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It can't be read.
    #[error("it could not be read: {0}")]
    Io(#[from] io::Error),
    /// Something else has its name, a directory or a device.
    #[error("it is a directory, a pipe or a device, and no file")]
    NoFile,
    /// Somebody else may say where requests go.
    #[error("it belongs to user {0}, who is neither root nor the user of this process")]
    Owner(u32),
    /// Likewise.
    #[error("others than its owner may write it (its mode is {0:04o})")]
    Writable(u32),
}

/// Whether a disk is in no state to be written that a later try may not find better.
pub(super) fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        ReadOnlyFilesystem | StorageFull | QuotaExceeded
    ) || Errno::from_io_error(error) == Some(Errno::IO)
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}
