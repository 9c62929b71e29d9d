//! Files that say how we are to run: read whole, so never endless ones.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::Path,
};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// A file that was read.
#[derive(Debug)]
pub struct SmallFile {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Whether it can't be read again, as a shell's `<(...)`.
    pub is_pipe: bool,
}

/// Reads a file, or what comes out of a pipe until its end.
///
/// # Errors
///
/// When it can't be read, is anything else (a directory, a device), or has over 1 MiB.
pub fn read(path: &Path) -> io::Result<SmallFile> {
    let file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        return Err(io::Error::other("it is neither a file nor a pipe"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it has over 1 MiB"));
    }
    Ok(SmallFile {
        bytes,
        is_pipe: kind.is_fifo(),
    })
}

impl SmallFile {
    /// As text.
    ///
    /// # Errors
    ///
    /// When it is not UTF-8.
    pub fn text(self) -> io::Result<String> {
        String::from_utf8(self.bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn files_and_pipes_are_read_to_their_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "text").unwrap();
        let file = read(&path).unwrap();
        assert!(!file.is_pipe);
        assert_eq!(file.text().unwrap(), "text");
        fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(read(&path).unwrap().bytes.len(), 1 << 20);

        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"text").unwrap();
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let end = std::thread::spawn(move || drop(writer));
        let pipe = read(Path::new(&path)).unwrap();
        end.join().unwrap();
        assert!(pipe.is_pipe);
        assert_eq!(pipe.text().unwrap(), "text");
    }

    #[test]
    fn what_is_endless_or_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        for (path, reason) in [
            (&*path, "over 1 MiB"),
            (Path::new("/dev/zero"), "neither a file nor a pipe"),
            (directory.path(), "neither a file nor a pipe"),
            (Path::new("/no/such"), "No such file"),
        ] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains(reason), "{}: {error}", path.display());
        }
        fs::write(&path, b"\xff").unwrap();
        assert!(read(&path).unwrap().text().is_err());
    }
}
