//! Reads a listener's certificates from disk, at first and again, and decides what a broken file means.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::crypto::CryptoProvider;

use super::{Certificate, Choice, ReloadReport, Sources};
use crate::config::CertificateFiles;

/// Reads everything at the start; the second part are pairs of the directory that were skipped, and why.
pub fn first(
    sources: &Sources,
    provider: &CryptoProvider,
) -> anyhow::Result<(Choice, Vec<String>)> {
    let default = match &sources.listener {
        Some(files) => Some(Arc::new(Certificate::read(files, provider)?)),
        None => None,
    };
    let (mut named, mut problems) = (Vec::new(), Vec::new());
    if let Some(dir) = &sources.tls_dir {
        let pairs = pairs(dir)
            .with_context(|| format!("cannot read the directory {} (--tls-dir)", dir.display()))?;
        for (_, pair) in pairs {
            match pair.read(provider) {
                Ok(certificate) => named.push(Arc::new(certificate)),
                Err(problem) => problems.push(problem),
            }
        }
    }
    let choice = Choice::new(default, named);
    if !choice.is_empty() {
        return Ok((choice, problems));
    }
    let Some(dir) = &sources.tls_dir else {
        bail!(
            "an https listener needs a certificate: give it cert=FILE&key=FILE, or use --tls-dir"
        );
    };
    if problems.is_empty() {
        problems.push("it holds no NAME.crt with a NAME.key".to_owned());
    }
    bail!(
        "no certificate for an https listener without cert= and key=: --tls-dir {}: {}",
        dir.display(),
        problems.join("; ")
    );
}

/// Reads everything again. What is unchanged keeps its `Arc`; what can't be read keeps its `previous` certificate.
pub fn again(
    sources: &Sources,
    provider: &CryptoProvider,
    previous: &Choice,
) -> (Choice, ReloadReport) {
    let mut report = ReloadReport::default();
    let default = sources.listener.as_ref().and_then(|files| {
        let read = Certificate::read(files, provider).map_err(|error| error.to_string());
        newer(read, previous.default.as_ref(), &mut report)
    });
    let named = match sources.tls_dir.as_deref().map(|dir| (dir, pairs(dir))) {
        None => Vec::new(),
        Some((_, Ok(pairs))) => {
            let known: HashMap<_, _> = previous
                .named
                .iter()
                .map(|certificate| (&certificate.files.certificate, certificate))
                .collect();
            for file in known.keys() {
                if !pairs.contains_key(*file) {
                    report.removed.push((*file).clone());
                }
            }
            pairs
                .into_iter()
                .filter_map(|(file, pair)| {
                    newer(pair.read(provider), known.get(&file).copied(), &mut report)
                })
                .collect()
        }
        Some((dir, Err(error))) => {
            let problem = format!("cannot read the directory {}: {error}", dir.display());
            report.problems.push(problem);
            previous.named.clone()
        }
    };
    let choice = Choice::new(default, named);
    if choice.is_empty() {
        let problem = "no certificate is left: the ones removed stay in use".to_owned();
        report.problems.push(problem);
        report.removed.clear();
        return (
            Choice::new(previous.default.clone(), previous.named.clone()),
            report,
        );
    }
    (choice, report)
}

/// The certificate to serve after one was read again.
fn newer(
    read: Result<Certificate, String>,
    previous: Option<&Arc<Certificate>>,
    report: &mut ReloadReport,
) -> Option<Arc<Certificate>> {
    match read {
        Ok(certificate) => {
            if let Some(previous) = previous.filter(|previous| previous.same_chain(&certificate)) {
                return Some(previous.clone());
            }
            let certificate = Arc::new(certificate);
            report.changed.push(certificate.clone());
            Some(certificate)
        }
        Err(problem) => {
            report.problems.push(problem);
            previous.cloned()
        }
    }
}

/// `NAME.crt` and `NAME.key`, of which one may be missing.
#[derive(Debug)]
struct Pair {
    files: CertificateFiles,
    has_certificate: bool,
    has_key: bool,
}

impl Pair {
    fn read(&self, provider: &CryptoProvider) -> Result<Certificate, String> {
        let CertificateFiles { certificate, key } = &self.files;
        if !self.has_key {
            return Err(format!(
                "{} has no {} beside it",
                certificate.display(),
                file_name(key)
            ));
        }
        if !self.has_certificate {
            return Err(format!(
                "{} has no {} beside it",
                key.display(),
                file_name(certificate)
            ));
        }
        let read = Certificate::read(&self.files, provider).map_err(|error| error.to_string())?;
        if read.names.is_empty() {
            return Err(format!(
                "{} names no host in its subjectAltName, so no client can ask for it",
                certificate.display()
            ));
        }
        Ok(read)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The pairs of a directory by the path of their certificate, halves included.
fn pairs(dir: &Path) -> io::Result<BTreeMap<PathBuf, Pair>> {
    let mut pairs = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_key = match path.extension() {
            Some(extension) if extension == "crt" => false,
            Some(extension) if extension == "key" => true,
            _ => continue,
        };
        let with = |extension: &str| {
            let mut name: OsString = path.file_stem().unwrap_or_default().to_owned();
            name.push(extension);
            path.with_file_name(name)
        };
        let certificate = with(".crt");
        let pair = pairs.entry(certificate.clone()).or_insert_with(|| Pair {
            files: CertificateFiles {
                certificate,
                key: with(".key"),
            },
            has_certificate: false,
            has_key: false,
        });
        match is_key {
            true => pair.has_key = true,
            false => pair.has_certificate = true,
        }
    }
    Ok(pairs)
}

/// Every file and directory that a reload would look at.
pub fn files(sources: &Sources) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Some(listener) = &sources.listener {
        files.push(listener.certificate.clone());
        files.push(listener.key.clone());
    }
    files.extend(sources.authorities().cloned());
    if let Some(dir) = &sources.tls_dir {
        files.push(dir.clone());
        // A directory that can't be read now shows in its own stamp once it can.
        for pair in pairs(dir).unwrap_or_default().into_values() {
            files.push(pair.files.certificate);
            files.push(pair.files.key);
        }
    }
    files
}

/// The directories in which a change of those files shows, by rename and by symlink too.
pub fn directories(sources: &Sources) -> Vec<PathBuf> {
    let mut directories = Vec::from_iter(sources.tls_dir.clone());
    let listener = sources.listener.iter();
    let files = listener.flat_map(|files| [&files.certificate, &files.key]);
    for file in files.chain(sources.authorities()) {
        // The parent of a bare file name is the empty path.
        let parent = file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        directories.push(parent.to_owned());
    }
    directories
}
