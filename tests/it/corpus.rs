//! What fuzzing has found worth keeping, run again, and any bytes besides. The
//! targets are in `tests/fuzz`.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::watch::Watch;
use crate::{options, simulation};

type Run = fn(&[u8]) -> Result<(), String>;

fn replay(target: &str, run: Run) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let files = fs::read_dir(corpus.join(target)).expect("the corpus is there");
    let watch = Watch::start();
    let mut count = 0;
    for file in files {
        let path = file.expect("a file").path();
        watch.at(path.display().to_string());
        let bytes = fs::read(&path).expect("a readable file");
        if let Err(wrong) = run(&bytes) {
            panic!("{}:\n{wrong}", path.display());
        }
        count += 1;
    }
    assert!(count > 0, "the corpus of {target} is empty");
}

#[test]
fn the_corpus_of_builders_holds() {
    replay("builder", options::run);
}

#[test]
fn the_corpus_of_schedules_holds() {
    replay("schedule", simulation::run_bytes);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_options_are_refused_or_work(bytes in vec(any::<u8>(), 0..200)) {
        if let Err(wrong) = options::run(&bytes) {
            return Err(TestCaseError::fail(wrong));
        }
    }
}
