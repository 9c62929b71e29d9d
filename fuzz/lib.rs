//! What the targets of `cargo fuzz` call: the same functions that the tests of the package call.

#[path = "../tests/fuzzing/invariants.rs"]
pub mod invariants;

#[path = "../tests/fuzzing/answers.rs"]
pub mod answers;
#[path = "../tests/fuzzing/differential.rs"]
pub mod differential;
#[path = "../tests/fuzzing/reference.rs"]
pub mod reference;
