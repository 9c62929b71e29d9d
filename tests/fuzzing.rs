//! Parsers, and a worker, are given thousands of texts made up by a seed, and those of the corpus of `cargo fuzz`
//! (docs/fuzzing.md): `WAYPOST_SEED=7` runs that one again.

mod answers;
mod differential;
mod invariants;
mod pieces;
mod reference;

use std::{env, fs, panic, path::Path};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// So many inputs for each parser, and for the worker.
const TEXTS: usize = 20_000;
const STREAMS: usize = 4000;

#[test]
fn keys_mean_the_same_when_they_are_written_as_shown() {
    holds("keys", invariants::keys, pieces::KEYS, TEXTS);
}

#[test]
fn values_that_are_no_objects_mean_the_defaults() {
    holds("values", invariants::values, pieces::VALUES, TEXTS);
}

#[test]
fn settings_are_objects() {
    holds("settings", invariants::settings, pieces::SETTINGS, TEXTS);
}

#[test]
fn canonical_hosts_are_their_own_canonical_form() {
    holds("hosts", invariants::hosts, pieces::HOSTS, TEXTS);
}

#[test]
fn normalised_paths_have_nothing_left_to_normalise() {
    holds("paths", invariants::paths, pieces::PATHS, TEXTS);
}

#[test]
fn proxy_headers_are_read_the_same_whatever_follows() {
    let pieces = pieces::PROXY_HEADERS;
    holds("proxy_headers", invariants::proxy_headers, pieces, TEXTS);
}

#[test]
fn requests_are_taken_as_a_strict_reader_takes_them() {
    let pieces = pieces::REQUESTS;
    holds("requests", differential::requests, pieces, STREAMS);
}

/// Gives it what is kept of this kind, and `count` made-up texts.
fn holds(kind: &str, keeps_its_word: fn(&[u8]), pieces: &[&str], count: usize) {
    let mut random = StdRng::seed_from_u64(seed());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(kind);
    let kept = fs::read_dir(corpus).into_iter().flatten();
    let kept = kept.map(|file| fs::read(file.expect("an entry").path()).expect("a file"));
    let kept: Vec<Vec<u8>> = kept.collect();
    assert!(!kept.is_empty(), "no corpus of {kind}");
    let made = (0..count).map(|_| assembled(&mut random, pieces));
    for bytes in kept.into_iter().chain(made) {
        let kept = panic::catch_unwind(|| keeps_its_word(&bytes));
        assert!(
            kept.is_ok(),
            "{kind}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

/// The seed of this run, which is printed: what fails shows it.
fn seed() -> u64 {
    let seed = env::var("WAYPOST_SEED").ok();
    let seed = seed.map_or_else(rand::random, |text| text.parse().expect("a number"));
    eprintln!("WAYPOST_SEED={seed}");
    seed
}

/// A text of these pieces, some of them damaged.
fn assembled(random: &mut impl Rng, pieces: &[&str]) -> Vec<u8> {
    let count = random.random_range(0..12);
    let chosen = (0..count).filter_map(|_| pieces.choose(random));
    let mut bytes = chosen.flat_map(|piece| piece.bytes()).collect();
    while random.random_bool(0.3) {
        damage(random, &mut bytes);
    }
    bytes
}

/// Puts a byte in, takes one out, or turns one into another.
fn damage(random: &mut impl Rng, bytes: &mut Vec<u8>) {
    const ODD: &[u8] = b"\0\t\n\r \"%+,-./0;:=@[]\\_{}~\x7f\x80\xc3\xff";
    let byte = match random.random_bool(0.7) {
        true => *ODD.choose(random).expect("some"),
        false => random.random(),
    };
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..3) {
        0 => bytes.insert(at, byte),
        _ if at == bytes.len() => bytes.push(byte),
        1 => bytes[at] = byte,
        _ => {
            bytes.remove(at);
        }
    }
}
