//! docs/failure-modes.md names the tests that prove it: they must be there, and none of them be left out.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_fault_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/failure-modes.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.filter(|line| !line.starts_with("| fault")).collect();
    assert!(rows.len() > 30, "{} rows", rows.len());
    let sources = sources(root);
    let mut named = BTreeSet::new();
    for row in rows {
        let proofs = row.trim_end_matches(" |").rsplit(" | ").next();
        let proofs: Vec<_> = proofs.expect("a column").split(", ").collect();
        for proof in proofs {
            let name = proof.trim_matches('`');
            let is_there = |(_, text): &(String, String)| text.contains(&format!("fn {name}()"));
            assert!(sources.iter().any(is_there), "no test {proof} for: {row}");
            named.insert(name.to_owned());
        }
    }
    let of_faults = sources
        .iter()
        .filter(|(path, _)| path.contains("/tests/faults_"));
    for (path, text) in of_faults {
        for attribute in [
            "#[test]\n",
            "#[tokio::test(flavor = \"multi_thread\", worker_threads = 2)]\n",
        ] {
            let tests = text.split(attribute).skip(1);
            let names = tests.filter_map(|test| test.split("fn ").nth(1)?.split('(').next());
            for name in names {
                assert!(
                    named.contains(name),
                    "the page doesn't name {name} of {path}"
                );
            }
        }
    }
}

/// Every source file below `src` and `tests`: its path and its text.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut directories = vec![root.join("src"), root.join("tests")];
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                sources.push((path.display().to_string(), text));
            }
        }
    }
    sources
}
