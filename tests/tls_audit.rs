//! What testssl.sh has to say of a TLS listener: an auditor of its own, with handshakes of every age.

use std::{fs, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use crate::support::{command::program, soak, tls::Authority, waypost::Waypost};

/// What makes somebody act. `LOW` is taste, and `WARN` what the auditor could not find out.
const GRAVE: [&str; 4] = ["MEDIUM", "HIGH", "CRITICAL", "FATAL"];
/// What begins so is about the certificate, which is made for the test: nobody vouches for it or can revoke it.
const OF_THE_CERTIFICATE: [&str; 3] = ["cert", "OCSP", "DNS_CAA"];

/// What it finds by these checks, or in a soak by all it has.
async fn findings(checks: &[&str]) -> Vec<Value> {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = Waypost::builder()
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("findings.json");
    let (file_name, target) = (
        file.to_str().expect("a path of ours"),
        format!("a.test:{}", waypost.address().port()),
    );
    let quietly = ["--quiet", "--color", "0", "--warnings", "off"];
    let offline = ["--nodns", "none", "--ip", "127.0.0.1"];
    let checks = if soak::is_soak() { &[] } else { checks };
    let arguments = [
        &quietly[..],
        &offline,
        &["--jsonfile", file_name],
        checks,
        &[&*target],
    ]
    .concat();
    let mut testssl = program("testssl", &arguments);
    // It asks about the terminal, of which there is none.
    let audit = testssl.env("TERM", "dumb").output();
    let limit = if soak::is_soak() { 600 } else { 150 };
    let ended = timeout(Duration::from_secs(limit), audit).await;
    let ended = ended.expect("in time");
    let ended = ended.expect("testssl (of the package testssl.sh, see scripts/test) runs");
    let said = String::from_utf8_lossy(&ended.stdout);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {said}"));
    let findings: Vec<Value> = serde_json::from_str(&text).expect("a list");
    let is_whole = findings.iter().any(|finding| finding["id"] == "scanTime");
    assert!(is_whole, "{said}");
    findings
}

/// Holds that these were looked into and are well, and that nothing else is grave.
fn check(findings: &[Value], well: &[&str]) {
    let text = |finding: &Value, field: &str| finding[field].as_str().expect("text").to_owned();
    let grave: Vec<_> = (findings.iter())
        .filter(|finding| GRAVE.contains(&&*text(finding, "severity")))
        .filter(|finding| {
            let id = text(finding, "id");
            !OF_THE_CERTIFICATE.iter().any(|start| id.starts_with(start))
        })
        .collect();
    assert!(grave.is_empty(), "{grave:#?}");
    for id in well {
        let finding = findings.iter().find(|finding| finding["id"] == *id);
        let severity = finding.map(|finding| text(finding, "severity"));
        assert_eq!(severity.as_deref(), Some("OK"), "{id}: {finding:?}");
    }
}

#[tokio::test]
async fn testssl_finds_no_weak_protocol_or_cipher() {
    let findings = findings(&["-p", "-s", "-f", "-P", "-S"]).await;
    let well = [
        "SSLv2",
        "SSLv3",
        "TLS1_2",
        "TLS1_3",
        "cipherlist_NULL",
        "cipherlist_aNULL",
        "cipherlist_EXPORT",
        "cipherlist_LOW",
    ];
    check(&findings, &well);
}

#[tokio::test]
async fn testssl_finds_no_known_vulnerability() {
    let findings = findings(&["-U"]).await;
    let well = [
        "heartbleed",
        "CCS",
        "ticketbleed",
        "ROBOT",
        "secure_renego",
        "secure_client_renego",
        "CRIME_TLS",
        "BREACH",
        "POODLE_SSL",
        "SWEET32",
        "FREAK",
        "DROWN",
        "LOGJAM",
        "BEAST",
        "LUCKY13",
        "RC4",
    ];
    check(&findings, &well);
}
